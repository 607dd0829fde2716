"""The main job: a scenario, one policy after another on the same trace, to one comparison.

Each policy gets processes of its own, so that none inherits what another has measured, warmed up or
left in a queue; the seed makes the requests the same.
"""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from edgewise.errors import BadInput
from edgewise.live.records import RUN_SCENARIO
from edgewise.live.run.containers import ContainerPlatform
from edgewise.live.run.deployment import Deployment, ignored_settings
from edgewise.live.run.evaluation import evaluate
from edgewise.live.run.platforms import LocalPlatform, Platform
from edgewise.live.run.progress_view import ProgressView
from edgewise.policy import label, make
from edgewise.scenario import ImagesPayload, Scenario, check, dump, load
from edgewise.summary import Summary, comparison, per_server
from edgewise.tasks import task_of
from edgewise.tasks.services import services_of

RUNS = Path("runs")
"""Where results go, relative to the working directory; every run has a folder of its own there."""


class RunOptions(Struct, frozen=True, kw_only=True):
    """What the command line may change of a scenario; None = as the scenario has it."""

    scenario: str = "three-sites"
    policies: tuple[str, ...] = ()
    """Empty: the scenario's own."""
    emulate: bool | None = None
    duration: float | None = None
    """s"""
    rate: float | None = None
    """requests/s"""
    images: str | None = None
    seed: int | None = None
    out: Path | None = None
    network: Literal["relay", "tc", "tun", "auto"] | None = None
    """What plays the network; None = as the scenario has it."""
    image: str | None = None
    """Of containers to run balancer, relay and servers in; None: processes of this machine."""


def scenario_of(wishes: RunOptions) -> Scenario:
    """The scenario to run, checked. Raises ScenarioError, and BadInput for an unknown policy."""
    for policy in wishes.policies:
        make(policy)
    if len(set(wishes.policies)) != len(wishes.policies):
        raise BadInput(f"--policy: a policy stands twice in {','.join(wishes.policies)}")
    images = wishes.images
    if images is not None and images != "builtin":
        images = str(Path(images).expanduser().absolute())
    scenario = load(wishes.scenario).with_overrides(
        duration=wishes.duration,
        rate=wishes.rate,
        emulate=wishes.emulate,
        images=images,
        seed=wishes.seed,
        backend=wishes.network,
    )
    return check(scenario, wishes.scenario)


def run_folder(scenario: Scenario, out: Path | None) -> Path:
    """The folder of a new run: `out`, or ``runs/DATE-TIME-SCENARIO``.

    Raises BadInput if it holds a run already: two runs in one folder would be added up.
    """
    if out is None:
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{scenario.name}"
        out = RUNS / stem
        number = 1
        while out.exists():
            number += 1
            out = RUNS / f"{stem}-{number}"
    elif out.is_dir() and any(out.iterdir()):
        raise BadInput(f"{out}: expected an empty or a new folder; it holds something already")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{out}: cannot be made: {error.strerror}") from None
    return out


def launch(wishes: RunOptions, console: Console) -> tuple[Summary, Path]:
    """Do it all; returns the summary and the run's folder. What is seen goes to `console`.

    Raises BadInput for what cannot be used, PeerError with the end of its log for a process that
    fails, KeyboardInterrupt for Ctrl-C and SIGTERM; whatever happens, no process is left.
    """
    scenario = scenario_of(wishes)
    policies = wishes.policies or (scenario.policy,)
    services = services_of(scenario)  # says now which model is unknown
    if isinstance(scenario.workload.payload, ImagesPayload):
        task_of(scenario.task).samples(scenario.workload.images)  # and which photo is missing
    if scenario.executor == "onnx" and wishes.image is None:  # the image has its own
        prepare_models(scenario.task, dict.fromkeys(service.model for service in services), console)
    backend = backend_of(scenario, in_containers=wishes.image is not None)
    folder = run_folder(scenario, wishes.out)
    notes = ignored_settings(scenario)
    if backend is not None:
        from edgewise.live.run import netns

        notes += netns.ignored_settings(scenario, backend)
    for sentence in notes:
        console.print(f"[yellow]note:[/] {escape(sentence)}", highlight=False)
    (folder / RUN_SCENARIO).write_text(dump(scenario), encoding="utf-8")
    try:
        with asyncio.Runner() as runner:
            runner.run(_all(scenario, policies, folder, console, wishes.image, backend))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None  # SIGTERM
    summary = evaluate(folder)
    (folder / "summary.json").write_bytes(summary.to_json())
    return summary, folder


def backend_of(scenario: Scenario, *, in_containers: bool) -> Literal["tc", "tun"] | None:
    """What plays the network over devices of namespaces; None: relays, or nothing does.

    Raises BadInput if this machine cannot do it, MissingExtra if a package is missing.
    """
    wish = scenario.network.backend
    if not scenario.network.emulate or wish == "relay" or (in_containers and wish == "auto"):
        return None
    if in_containers:
        raise BadInput(f"network.backend: {wish!r} is not for --containers; use 'relay'")
    if wish == "auto" and importlib.util.find_spec("pyroute2") is None:
        return None
    from edgewise.live.run import netns

    backend = netns.choose_backend(wish)
    if backend is not None:
        netns.check(backend)
    return backend


async def _all(
    scenario: Scenario,
    policies: Sequence[str],
    folder: Path,
    console: Console,
    image: str | None,
    backend: Literal["tc", "tun"] | None,
) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    # SIGTERM as SIGINT: tidy up, then end.
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    for number, policy in enumerate(policies, 1):
        where = folder if len(policies) == 1 else folder / label(policy)
        title = policy if len(policies) == 1 else f"{policy} ({number}/{len(policies)})"
        with ProgressView(console, title) as view:
            one = scenario.with_overrides(policy=policy)
            hosting: Platform = LocalPlatform()
            if image is not None:
                hosting = ContainerPlatform(one, where, image)
            elif backend is not None:
                from edgewise.live.run import netns

                hosting = netns.NamespacePlatform(one, backend)
            async with Deployment(one, where, view.say, hosting=hosting) as deployment:
                await deployment.run(view.watch(deployment))


def prepare_models(task: str, models: Iterable[str], console: Console) -> None:
    """Convert the models of `task` that a run needs, with a bar; quick if they are in the cache.

    Raises ModelError and MissingExtra.
    """
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        console=console,
        transient=True,
    ) as bar:
        row = bar.add_task("models", total=1.0)

        def progress(name: str, what: str, done: float) -> None:
            bar.update(row, description=f"{name}: {what[:40]}", completed=done)

        task_of(task).prepare(models, progress)


def show(summary: Summary, console: Console) -> None:
    """The tables at the end of a run."""
    console.print(comparison(summary))
    console.print(per_server(summary))
