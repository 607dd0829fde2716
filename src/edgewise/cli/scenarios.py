"""``edgewise scenarios`` and ``edgewise scenario``: list, check and show scenarios."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from edgewise.cli import output
from edgewise.cli.options import ScenarioName
from edgewise.decoding import nearest
from edgewise.domain import Service
from edgewise.errors import BadInput, ScenarioError
from edgewise.policy_names import is_code
from edgewise.scenario import LinkSettings, Scenario, ServerSpec, dump, load, presets, warnings_of
from edgewise.scenario.files import find
from edgewise.tasks import task_of
from edgewise.tasks.services import services_of
from edgewise.worlds import workload
from edgewise.worlds.doubts import doubts_of_files, doubts_of_load

scenario = typer.Typer(help="Check or show a scenario.", no_args_is_help=True)


def scenarios() -> None:
    """List the scenarios that come with edgewise."""
    table = Table(title="Presets", caption="edgewise scenario show NAME prints one")
    for heading in ("name", "about", "servers"):
        table.add_column(heading, overflow="fold")
    table.add_column("requests/s", justify="right")
    table.add_column("s", justify="right")
    for name in presets():
        preset = load(name)
        table.add_row(
            name,
            escape(preset.about),
            ", ".join(preset.server_names),
            f"{workload.mean_rate(preset.workload.arrivals):.3g}",
            f"{preset.workload.duration:g}",
        )
    output.console().print(table)


@scenario.command()
def check(file: ScenarioName) -> None:
    """Check a scenario: show its servers, links and load, and warn of likely mistakes.

    Reads every file that the scenario names, but imports no Python code.
    """
    read = load(file, allow_code=True)
    for key, policy in (("policy", read.policy), ("shadow", read.shadow)):
        if policy is not None and not is_code(policy):
            _find_policy(str(find(file)), key, policy)
    services = services_of(read)
    doubts = [*doubts_of_files(read), *doubts_of_load(read, services), *_models_missing(read)]
    console = output.console()
    rate = workload.mean_rate(read.workload.arrivals)
    kind = read.workload.arrivals.__struct_config__.tag
    console.print(f"[bold]{escape(read.name)}[/]: {escape(read.about)}", highlight=False)
    console.print(
        f"{rate:.3g} requests/s ({kind}) for {read.workload.duration:g} s, "
        f"policy {read.policy}, {read.discipline}, executor {read.executor}, "
        f"network {'emulated' if read.network.emulate else 'as it is'}",
        highlight=False,
    )
    console.print(_servers(read, rate, services))
    accuracies = {service.model: service.accuracy for service in services}
    for warning in (*warnings_of(read, accuracies.get), *doubts):
        output.warn(console, warning)
    console.print("[green]ok[/]")


def _find_policy(file: str, key: str, policy: str) -> None:
    from edgewise.policies import find as find_policy  # slow to import

    try:
        find_policy(policy)
    except BadInput as error:
        raise ScenarioError(file, key, str(error)) from None


def _models_missing(read: Scenario) -> Iterator[str]:
    """A sentence for each model that a live run would need and the task does not have."""
    known = {card.name for card in task_of(read.task).models()}
    used = {service.model for server in read.servers.values() for service in server.services}
    for model in sorted(used - known) if read.executor == "onnx" else ():
        yield (
            f"executor onnx has no model {model!r}{nearest(model, known)}: it can be simulated, "
            "but live only with `executor: replay`"
        )


@scenario.command()
def show(
    name: ScenarioName,
    full: Annotated[
        bool, typer.Option("--full", help="Print every field, defaults included, without comments.")
    ] = False,
) -> None:
    """Print a scenario as YAML, with its comments: a good start for your own."""
    read = load(name, allow_code=True)  # checked before it is printed, with or without --full
    text = dump(read) if full else find(name).read_text(encoding="utf-8")
    typer.echo(text, nl=not text.endswith("\n"))


def _servers(read: Scenario, rate: float, services: tuple[Service, ...]) -> Table:
    table = Table(
        caption="load: busy share of the workers if a server runs every request that arrives at "
        "it, each on its fastest service that meets the demand; +: some demands it cannot meet"
    )
    for heading in ("server", "speed", "services"):
        table.add_column(heading)
    for heading in ("req/s", "load"):
        table.add_column(heading, justify="right")
    table.add_column("links")
    names = read.server_names
    for (name, server), share in zip(read.servers.items(), read.ingress_shares(), strict=True):
        own = tuple(service for service in services if service.server == name)
        others = [other for other in names if other != name]
        links = dict([read.access_of(name), *(read.link_between(name, each) for each in others)])
        table.add_row(
            name,
            f"{server.workers} × {server.speed:g}",
            _models(server),
            f"{rate * share:.3g}",
            _load(read, rate * share, server, own),
            "\n".join(f"{_kind(link)} {_link(spec)}" for link, spec in links.items()),
        )
    return table


def _models(server: ServerSpec) -> str:
    return "\n".join(service.model for service in server.services) or "-"


def _kind(link: str) -> str:
    """``access``, ``uplink`` or ``>depot``, without the name of the row's own server."""
    return f">{link.partition('>')[2]}" if ">" in link else link.partition(":")[0]


def local_load(
    read: Scenario, rate: float, workers: int, own: tuple[Service, ...]
) -> tuple[float, bool]:
    """Busy share of a server's workers if it runs all its requests, and whether it fails a demand.

    `rate` requests/s arrive; each runs on the fastest of the services `own` that meets its demand.
    """
    total = sum(demand.share for demand in read.workload.demands)
    seconds, unmet = 0.0, False
    for demand in read.workload.demands:
        fit = [service.latency[0] for service in own if service.accuracy >= demand.accuracy]
        seconds += demand.share / total * min(fit, default=0.0)
        unmet = unmet or (not fit and demand.share > 0)
    return rate * seconds / workers, unmet


def _load(read: Scenario, rate: float, server: ServerSpec, own: tuple[Service, ...]) -> str:
    if not own:
        return "-" if not server.services else "?"
    load, unmet = local_load(read, rate, server.workers, own)
    return f"{100 * load:.0f} %{' +' if unmet and rate else ''}"


def _link(link: LinkSettings) -> str:
    if link.trace is not None:
        what = str(link.trace.__struct_config__.tag)
        mean = getattr(link.trace, "mean_mbps", None)
        rate = f"{what} ~{mean:g} Mbit/s" if mean is not None else what
    else:
        rate = "unlimited" if link.rate_mbps is None else f"{link.rate_mbps:g} Mbit/s"
    return f"{rate}, {1000 * link.delay:g} ms"
