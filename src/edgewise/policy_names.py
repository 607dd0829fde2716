"""How a policy is named on a command line and in a file; nothing here is imported or run.

    sed                            one that comes with the package, or with an installed one
    mine/edgewise.safetensors      learned weights
    my_rules.py:careful            Python code: the policy `careful` of that file
    sed@tuned.json                 any of these, with the tuned values in that file

Paths are relative to the folder of whoever names the policy: the current folder for a command line,
the file's own folder for a scenario or a process configuration.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

WEIGHTS = ".safetensors"
_CODE = re.compile(r"^(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)$")


def split_tuned(name: str) -> tuple[str, str | None]:
    """(policy, file of tuned values or None).

    >>> split_tuned("sed@tuned.json")
    ('sed', 'tuned.json')
    """
    policy, at, file = name.rpartition("@")
    return (policy, file) if at and policy and file.endswith(".json") else (name, None)


def split_code(name: str) -> tuple[str, str] | None:
    """(Python file, name of the policy in it); None if `name` is no code.

    >>> split_code("my_rules.py:careful")
    ('my_rules.py', 'careful')
    """
    found = _CODE.match(split_tuned(name)[0])
    return None if found is None else (found["file"], found["name"])


def is_code(name: str) -> bool:
    """Whether a policy of this name is Python code that would be imported."""
    return split_code(name) is not None


def absolute(name: str, folder: Path) -> str:
    """The name with its paths made absolute; relative ones start from `folder`.

    >>> absolute("my_rules.py:careful@tuned.json", Path("/home/me"))
    '/home/me/my_rules.py:careful@/home/me/tuned.json'
    """

    def fix(path: str) -> str:
        return str((folder / Path(path).expanduser()).absolute())

    policy, tuned = split_tuned(name)
    code = split_code(policy)
    if code is not None:
        policy = f"{fix(code[0])}:{code[1]}"
    elif policy.endswith(WEIGHTS):
        policy = fix(policy)
    return policy if tuned is None else f"{policy}@{fix(tuned)}"


def label(name: str) -> str:
    """The name as it can stand in records and be the name of a folder.

    >>> label("mine/edgewise.safetensors"), label("my_rules.py:careful@tuned.json")
    ('edgewise', 'careful@tuned')
    """
    return _label(name, parents=0)


def labels(names: Sequence[str]) -> dict[str, str]:
    """A label for each name, no two alike.

    A policy without a path keeps its name; files that are called alike get their folder's name too,
    and if that is not enough a number.

    >>> labels(["/abs/mine/edgewise.safetensors", "edgewise"])
    {'/abs/mine/edgewise.safetensors': 'mine-edgewise', 'edgewise': 'edgewise'}
    """
    distinct = list(dict.fromkeys(names))
    found = {name: label(name) for name in distinct}
    for name in _clashing(found):
        if name != found[name]:
            found[name] = _label(name, parents=1)
    taken = {name for name in distinct if found[name] == name}
    for name in distinct:
        if name != found[name]:
            number, free = 1, found[name]
            while free in taken:
                number += 1
                free = f"{found[name]}-{number}"
            found[name] = free
            taken.add(free)
    return found


def _clashing(found: dict[str, str]) -> Iterable[str]:
    counts = Counter(found.values())
    return [name for name, each in found.items() if counts[each] > 1]


def _label(name: str, parents: int) -> str:
    policy, tuned = split_tuned(name)
    code = split_code(policy)
    if code is not None:
        found = code[1] if parents == 0 else f"{Path(code[0]).stem}-{code[1]}"
    elif policy.endswith(WEIGHTS):
        path = Path(policy)
        found = path.stem if parents == 0 else f"{path.parent.name}-{path.stem}".lstrip("-")
    else:
        found = policy
    return found if tuned is None else f"{found}@{Path(tuned).stem}"
