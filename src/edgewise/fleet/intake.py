"""Update a belief by reports, link states and ends of requests. Compiled.

The live balancer (`fleet.tracker`) and the simulator (`sim.reports`) share these functions, so
their beliefs cannot drift apart.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import Array, Belief
from edgewise.fleet.belief import (
    drain_link,
    on_answer,
    on_outcome,
    on_peer_report,
    on_report,
    on_service_report,
    restore_sends,
)
from edgewise.fleet.ejection import forget_server, on_served, on_signs
from edgewise.fleet.observe import link_rate

FORGET_AFTER = 5.0
"""s. A dispatch without an outcome is closed this long after its answer became worthless. Its
client has given up, and otherwise it would count as outstanding for ever."""
RATE_MIN, RATE_MAX = 1e3, 1e12
"""bytes/s. Bounds for rates from the emulator, because 0 (an outage) or inf (unlimited) would lead
to 0/0. At 1 kB/s a photo takes longer than any deadline."""

REPORT = np.dtype(
    [
        ("server", "i8"),
        ("at", "f8"),  # on the balancer's clock
        ("prepare_backlog", "f8"),  # CPU s
        ("utilisation", "f8"),  # 0–1
        ("draining", "f8"),  # 1: takes nothing new
    ]
)
ACKNOWLEDGED = np.dtype([("commands", "i8"), ("low", "i8"), ("bits", "i8")])
"""One balancer's commands and dispatches that a server acknowledges (`belief.acknowledged`)."""
REPORT_SERVICE = np.dtype(
    [("service", "i8"), ("service_time", "f8"), ("batch", "f8"), ("served", "i8")]
)
REPORT_LINK = np.dtype(
    [
        ("link", "i8"),
        ("rate", "f8"),  # bytes/s; NaN: never measured
        ("rate_at", "f8"),
        ("rtt", "f8"),  # s; NaN: never measured
        ("backlog", "f8"),  # bytes
        ("flows", "f8"),
        ("first", "i8"),  # 0: an earlier entry of this report has the same link
    ]
)


class ReportArrays(NamedTuple):
    """A report, as arrays for compiled code."""

    head: Any  # a record with the fields of REPORT
    acknowledged: Any  # a record of ACKNOWLEDGED
    running: Array  # float64 (≤ workers,): s left of each running job
    deadlines: Array  # float64 (n,): absolute, of the waiting jobs
    works: Array  # float64 (n,): their work, s of a worker
    services: Array  # REPORT_SERVICE
    links: Array  # REPORT_LINK
    signs: Array  # int64 (S,): `ejection.on_signs` of each peer; (0,): not known


@jit_no_refcount
def take_report(belief: Belief, report: ReportArrays, links_true: bool, now: float) -> bool:
    """Update the belief by a report. Returns False, and changes nothing, if a newer report of that
    server came before.

    `links_true`: its links hold the emulator's true state, not the sender's measurements.
    """
    head, acknowledged = report.head, report.acknowledged
    used = on_report(
        belief,
        head.server,
        head.at,
        now,
        report.running,
        report.deadlines,
        report.works,
        head.prepare_backlog,
        head.utilisation,
        head.draining,
        acknowledged.commands,
        acknowledged.low,
        acknowledged.bits,
    )
    if not used:
        return False
    served = 0
    for n in range(report.services.size):
        service = report.services[n]
        served += service.served
        if service.served > 0:
            on_service_report(belief, service.service, service.service_time, service.batch)
    for n in range(report.links.size):
        link = report.links[n]
        if links_true:
            take_link_state(belief, link.link, link.rate, link.rate_at, link.rtt, link.backlog, now)
            continue
        on_peer_report(
            belief,
            link.link,
            head.at,
            link.rate,
            link.rate_at,
            link.rtt,
            link.backlog,
            link.flows,
            link.first != 0,
        )
    if not links_true:
        restore_sends(belief, head.server, head.at)
    on_served(belief, head.server, served, head.at)
    for peer in range(report.signs.size):
        if peer != head.server:
            on_signs(belief, head.server, peer, report.signs[peer], now)
    return True


@jit_no_refcount
def renew_server(belief: Belief, s: int) -> None:
    """Forget what was measured of server `s`, which has restarted, and its failures."""
    server = belief.servers[s]
    for k in range(belief.first[s], belief.first[s + 1]):
        on_service_report(belief, k, belief.services[k].latency, 1.0)
    server.failure = 0.0
    server.response = math.nan
    server.peak = 0.0
    server.by_rif[:] = math.nan
    forget_server(belief, s)


@jit_no_refcount
def take_link_state(
    belief: Belief,
    link: int,
    rate: float,
    rate_at: float,
    rtt: float,
    backlog: float,
    now: float,
) -> None:
    """Update a link by its true state from an emulator.

    `rate` in bytes/s as of `rate_at`, `rtt` in s, `backlog` in bytes. Transfers just decided have
    not reached the emulator yet, so the larger of its backlog and the believed one holds.
    """
    drain_link(belief, link, now, link_rate(belief, link, now))
    state = belief.links[link]
    backlog = max(backlog, state.backlog)
    flows = max(1.0, state.flows)
    on_peer_report(belief, link, now, clamp_rate(rate), rate_at, rtt, backlog, flows, True)


@jit_no_refcount(inline=True)
def clamp_rate(rate: float) -> float:
    """Limit an emulator's rate to [`RATE_MIN`, `RATE_MAX`]."""
    return min(max(rate, RATE_MIN), RATE_MAX)


@jit_no_refcount
def close_dispatch(
    belief: Belief,
    server: int,
    dispatch: int,
    rif: int,
    decided_at: float,
    worthless_at: float,
    failed: bool,
    now: float,
) -> None:
    """Update the belief by the end of a dispatch to `server`.

    The response time of a failure counts at least until the answer would have been worthless: a
    server that fails fast must not look fast.
    """
    on_outcome(belief, server, dispatch, failed)
    response = now - decided_at
    if failed:
        response = max(response, worthless_at - decided_at)
    on_answer(belief, server, now, response, rif, failed)
