"""``edgewise up``: run a scenario under one policy after another, and compare them.

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

from edgewise.errors import BadInput
from edgewise.files import new_folder
from edgewise.live.records import RUN_SCENARIO
from edgewise.live.run.containers import ContainerPlatform
from edgewise.live.run.deployment import Deployment, ignored_settings
from edgewise.live.run.evaluation import evaluate
from edgewise.live.run.platforms import LocalPlatform, Platform
from edgewise.live.run.progress_view import ProgressView
from edgewise.policies import find
from edgewise.policy_names import is_code, labels
from edgewise.scenario import ImagesPayload, Scenario, check, dump, load
from edgewise.summary import Summary
from edgewise.tasks import task_of
from edgewise.tasks.services import services_of
from edgewise.worlds.doubts import doubts_of_files

RUNS = Path("runs")
"""Parent of the runs' folders, relative to the working directory."""


class RunOptions(Struct, frozen=True, kw_only=True):
    """The options of ``edgewise up``; None leaves a setting as the scenario has it."""

    scenario: str = "three-sites"
    policies: tuple[str, ...] = ()
    """Empty: the scenario's own. Paths are absolute (`policy_names.absolute`)."""
    allow_code: bool = False
    """Whether the scenario file may name a policy that is Python code."""
    emulate: bool | None = None
    duration: float | None = None
    """s"""
    rate: float | None = None
    """requests/s"""
    images: str | None = None
    seed: int | None = None
    out: Path | None = None
    network: Literal["relay", "tc", "tun", "auto"] | None = None
    """The network's backend."""
    image: str | None = None
    """Container image for balancer, relay and servers; None: processes of this machine."""
    identities: bool = False
    """Mutual TLS also on the loopback."""


def launch(options: RunOptions, console: Console) -> tuple[Summary, Path]:
    """Run a scenario under each policy; returns the summary and the run's folder.

    Progress goes to `console`. Raises BadInput for options that cannot be used, PeerError with the
    end of its log for a process that fails, KeyboardInterrupt for Ctrl-C and SIGTERM; whatever
    happens, no process is left.
    """
    scenario = scenario_of(options)
    notes = (*doubts_of_files(scenario), *ignored_settings(scenario))
    services = services_of(scenario)  # an unknown model is named now
    if isinstance(scenario.workload.payload, ImagesPayload):
        photos = task_of(scenario.task).samples(scenario.workload.images)  # and a missing photo
        notes += (photos.note,) if photos.note else ()
    if scenario.executor == "onnx" and options.image is None:  # the image has its own
        prepare_models(scenario.task, dict.fromkeys(service.model for service in services), console)
    backend = backend_of(scenario, in_containers=options.image is not None)
    folder = run_folder(scenario, options.out)
    if backend is not None:
        from edgewise.live.run import netns

        notes += netns.ignored_settings(scenario, backend)
    for sentence in notes:
        console.print(f"[yellow]note:[/] {escape(sentence)}", highlight=False)
    (folder / RUN_SCENARIO).write_text(dump(scenario), encoding="utf-8")
    policies = options.policies or (scenario.policy,)
    try:
        with asyncio.Runner() as runner:
            runner.run(_run_policies(scenario, policies, folder, console, options, backend))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None  # SIGTERM
    summary = evaluate(folder)
    (folder / "summary.json").write_bytes(summary.to_json())
    return summary, folder


def scenario_of(options: RunOptions) -> Scenario:
    """The scenario to run, checked. Raises ScenarioError, and BadInput for an unknown policy."""
    if options.image is not None and any(is_code(policy) for policy in options.policies):
        raise BadInput("--policy: a policy from a Python file is not in the containers' image")
    images = options.images
    if images is not None and images != "builtin":
        images = str(Path(images).expanduser().absolute())
    scenario = load(options.scenario, allow_code=options.allow_code).with_overrides(
        duration=options.duration,
        rate=options.rate,
        emulate=options.emulate,
        images=images,
        seed=options.seed,
        backend=options.network,
    )
    for policy in (*(options.policies or [scenario.policy]), scenario.shadow):
        if policy is not None:
            find(policy)
    return check(scenario, options.scenario)


def run_folder(scenario: Scenario, out: Path | None) -> Path:
    """Make the folder of a new run: `out`, or ``runs/DATE-TIME-SCENARIO``.

    Raises BadInput if it is not empty: two runs in one folder would be added up.
    """
    if out is None:
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{scenario.name}"
        out = RUNS / stem
        number = 1
        while out.exists():
            number += 1
            out = RUNS / f"{stem}-{number}"
    return new_folder(out)


def backend_of(scenario: Scenario, *, in_containers: bool) -> Literal["tc", "tun"] | None:
    """The backend that emulates the network over devices of namespaces; None: relays, or nothing.

    Raises BadInput if this machine cannot do it, MissingExtra if a package is missing.
    """
    wanted = scenario.network.backend
    if not scenario.network.emulate or wanted == "relay" or (in_containers and wanted == "auto"):
        return None
    if in_containers:
        raise BadInput(f"network.backend: {wanted!r} is not for --containers; use 'relay'")
    if wanted == "auto" and importlib.util.find_spec("pyroute2") is None:
        return None
    from edgewise.live.run import netns

    backend = netns.choose_backend(wanted)
    if backend is not None:
        netns.require_backend(backend)
    return backend


async def _run_policies(
    scenario: Scenario,
    policies: Sequence[str],
    folder: Path,
    console: Console,
    options: RunOptions,
    backend: Literal["tc", "tun"] | None,
) -> None:
    task = asyncio.current_task()
    assert task is not None
    # SIGTERM as SIGINT: clean up, then end.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    label = labels(policies)
    several = len(policies) > 1
    for number, policy in enumerate(policies, 1):
        out = folder / label[policy] if several else folder
        title = f"{label[policy]} ({number}/{len(policies)})" if several else label[policy]
        with ProgressView(console, title) as view:
            under_policy = scenario.with_overrides(policy=policy)
            platform = _platform(under_policy, out, options.image, backend)
            async with Deployment(
                under_policy,
                out,
                view.say,
                platform=platform,
                identities=options.identities,
            ) as deployment:
                await deployment.run(view.watch(deployment))


def _platform(
    scenario: Scenario, folder: Path, image: str | None, backend: Literal["tc", "tun"] | None
) -> Platform:
    if image is not None:
        return ContainerPlatform(scenario, folder, image)
    if backend is not None:
        from edgewise.live.run import netns

        return netns.NamespacePlatform(scenario, backend)
    return LocalPlatform()


def prepare_models(task: str, models: Iterable[str], console: Console) -> None:
    """Convert models of `task`, showing progress; quick if they are in the cache.

    Raises ModelError and MissingExtra.
    """
    with console.status("models") as status:

        def progress(name: str, what: str, done: float) -> None:
            status.update(f"{escape(name)}: {escape(what[:40])}, {100 * done:.0f} %")

        task_of(task).prepare(models, progress)
