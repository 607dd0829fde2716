"""Read the reports of a finished simulation that kept them, as `domain.Report`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from edgewise.domain import PeerReport, QueueItem, Report, Service, ServiceReport
from edgewise.scenario import Scenario
from edgewise.sim.layout import Sim


def reports(
    sim: Sim, scenario: Scenario, services: Sequence[Service]
) -> Iterator[tuple[Report, float]]:
    """Every report of `sim` as the first balancer received it, with the time of receipt, in order
    of time.

    Needs `SimOptions.keep_reports`; raises ValueError without. Where all peers share one uplink,
    its backlog and flows are given with the first peer only, and its measurements with each.
    """
    clock = sim.world.clock[0]
    settings = sim.world.settings[0]
    if not settings["keep_reports"]:
        raise ValueError("the simulation did not keep its reports")
    heads = sim.reports.heads
    made = len(heads) if clock["free_report"] < 0 else int(clock["free_report"])
    order = sorted(range(made), key=lambda p: (float(heads["at"][p]), p))
    for p in order:
        at = float(heads["at"][p])
        yield _report(sim, scenario, services, p), at + float(settings["report_delay"])


def _report(sim: Sim, scenario: Scenario, services: Sequence[Service], p: int) -> Report:
    names = scenario.server_names
    kept = sim.reports
    head, seen = kept.heads[p], kept.seen[p, 0]
    s = int(head["server"])
    name = names[s]
    waiting = int(head["queued"])
    mine = [service for service in services if service.server == name]
    return Report(
        server=name,
        at=float(head["at"]),
        workers=int(sim.world.servers["workers"][s]),
        running=tuple(kept.running[p, : int(head["running"])].tolist()),
        queue=tuple(
            QueueItem(deadline, work)
            for deadline, work in zip(*kept.jobs[:, p, :waiting].tolist(), strict=True)
        ),
        prepare_backlog=float(head["prepare_backlog"]),
        services={
            service.model: ServiceReport(
                float(row["service_time"]), float(row["batch"]), int(row["served"])
            )
            for service, row in zip(mine, kept.services[p], strict=False)
        },
        peers=_peers(kept.links[p], s, names, scenario.network.topology == "uplink"),
        utilisation=min(1.0, max(0.0, float(head["utilisation"]))),
        commands_seen=int(seen["commands"]),
        arrivals_low=int(seen["low"]),
        arrivals_bits=int(seen["bits"]),
    )


def _peers(links: Any, s: int, names: Sequence[str], uplink: bool) -> dict[str, PeerReport]:
    peers: dict[str, PeerReport] = {}
    for other, name in enumerate(names):
        if other != s:
            amounts = not uplink or not peers
            peers[name] = _peer(links[1 if uplink else 1 + other - (other > s)], amounts)
    return {**peers, names[s]: _peer(links[0], True)}


def _peer(link: Any, amounts: bool) -> PeerReport:
    rate, rtt = float(link["rate"]), float(link["rtt"])
    known = rate == rate
    return PeerReport(
        throughput=rate if known else None,
        measured_at=float(link["rate_at"]) if known else None,
        rtt=rtt if rtt == rtt else None,
        backlog=float(link["backlog"]) if amounts else 0.0,
        flows=round(float(link["flows"])) if amounts else 0,
    )
