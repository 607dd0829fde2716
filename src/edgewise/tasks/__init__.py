"""What requests ask for: the tasks, each in a folder of its own behind the interface `Task`."""

from edgewise.domain import DEFAULT_TASK
from edgewise.errors import BadInput
from edgewise.tasks.imagenet.task import ImageNet
from edgewise.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (ImageNet(),)}


def task_of(name: str = DEFAULT_TASK) -> Task:
    """The task of that name. Raises BadInput, naming the known ones."""
    try:
        return TASKS[name]
    except KeyError:
        raise BadInput(f"unknown task {name!r:.60}; known: {', '.join(TASKS)}") from None
