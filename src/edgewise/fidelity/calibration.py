"""Turn a recorded run into a scenario that reproduces it.

What comes in: the folder of a run (of `edgewise up`, or of `simulate --out`). What goes out: the
run's own scenario with values measured from its records, and a list of the fitted values, with
their number of observations and their old value.

Fitted: service times and how much model-ready saves (per service), their noise, rates and delays of
links (access, and between servers), the report period and delay, the arrival process, the shares of
ingresses and demands, and payload sizes if they are drawn. Kept: services, workers, speeds,
failures, slow spells, and every value with too few observations or of a link whose bandwidth varies
(`FittedValue` says so).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.domain import PayloadForm, Service
from edgewise.errors import BadInput
from edgewise.fidelity import fitting
from edgewise.fidelity.comparison import float_column, requests_with_outcomes
from edgewise.live import records
from edgewise.live.recorder import read
from edgewise.live.records import RUN_SCENARIO
from edgewise.scenario import (
    Arrivals,
    ConstantArrivals,
    Demand,
    LinkSettings,
    LognormalPayload,
    MmppArrivals,
    PoissonArrivals,
    Scenario,
    ServerSpec,
    ServiceNoise,
    WorkloadSpec,
    check,
    load,
)
from edgewise.tasks.services import services_of

Floats = fitting.Floats

ENOUGH = 12
"""With fewer observations a value is kept. At a noise of 15 % the standard error of a mean is 4 %
with so many."""
ENOUGH_TRANSFERS = 20
"""The same for links, of which two values are fitted."""
DEMANDS_MAX = 16
"""With more different accuracies, demands do not come in classes and are kept."""
SAME_CLOCK = 0.005
"""s. Clocks that differ by less count as the same: the rest is the delay being measured."""


class FittedValue(Struct, frozen=True, kw_only=True):
    """One value of the scenario."""

    field: str
    """Its place in the scenario file."""
    unit: str
    was: float | None
    found: float | None
    """None: kept."""
    count: int
    """Observations."""
    note: str = ""


class Calibration(Struct, frozen=True, kw_only=True):
    """The values that were fitted to a run."""

    run: str
    requests: int
    fitted: tuple[FittedValue, ...]
    report_delay: float | None
    """s, median time until a report arrives; None: no reports were recorded. A scenario has no such
    field: it is for the simulation (`sim.build.SimOptions`)."""


class _Record:
    """The tables of a run, and the list of values fitted so far."""

    def __init__(self, folder: Path) -> None:
        file = folder / RUN_SCENARIO
        if not file.is_file():  # simulate has it above the folders of policies and seeds
            above = [each / RUN_SCENARIO for each in folder.absolute().parents[:3]]
            file = next((each for each in above if each.is_file()), file)
        self.scenario: Scenario = load(file, allow_code=True)  # nothing is run
        self.table: pa.Table = requests_with_outcomes(folder)
        self.services: tuple[Service, ...] = services_of(self.scenario)
        self.server = np.array(self.table.column("server").to_pylist(), dtype=object)
        self.model = np.array(self.table.column("model").to_pylist(), dtype=object)
        self.ingress = np.array(self.table.column("ingress").to_pylist(), dtype=object)
        self.form = float_column(self.table, "form")
        self.sent = float_column(self.table, "sent_at")
        self.begun = float(self.sent.min())
        self.fitted: list[FittedValue] = []

    def column(self, name: str) -> Floats:
        return float_column(self.table, name)

    def stamp(self, name: str) -> Floats:
        """Times of a stamp, s from the first request."""
        return self.column(f"stamp_{name}") - self.begun

    def note(
        self,
        field: str,
        unit: str,
        was: float | None,
        found: float | None,
        count: int,
        note: str = "",
    ) -> None:
        self.fitted.append(
            FittedValue(field=field, unit=unit, was=was, found=found, count=count, note=note)
        )


def calibrate(folder: Path) -> tuple[Scenario, Calibration]:
    """The scenario that reproduces the run in `folder`, and the fitted values.

    Raises BadInput for a folder that is not the run of one policy and seed.
    """
    if not any((folder / f"requests.{each}").exists() for each in ("parquet", "parts")):
        raise BadInput(
            f"{folder}: expected the folder of one policy and seed, with requests.parquet"
        )
    record = _Record(folder)
    scenario = record.scenario
    servers, noise = _services(record)
    links, access = _links(record)
    period, delay = _reports(record, folder)
    workload = _workload(record)
    replace = msgspec.structs.replace
    calibrated = replace(
        scenario,
        name=f"{scenario.name[:53]}-calibrated",
        about=f"calibrated from a recorded run of {scenario.name}",
        servers=servers,
        service_noise=noise,
        report_period=period,
        network=replace(scenario.network, links=links, access_links=access),
        workload=workload,
    )
    return check(calibrated), Calibration(
        run=str(folder),
        requests=record.table.num_rows,
        fitted=tuple(record.fitted),
        report_delay=delay,
    )


# -- service times -------------------------------------------------------------------------------


def _services(record: _Record) -> tuple[dict[str, ServerSpec], ServiceNoise]:
    replace = msgspec.structs.replace
    execute = record.column("stage_execute")
    groups: list[Floats] = []
    changes: dict[tuple[str, str], dict[str, Any]] = {}
    for service in record.services:
        mine = (record.server == service.server) & (record.model == service.model)
        mine &= np.isfinite(execute) & (execute > 0.0)
        original = execute[mine & (record.form != PayloadForm.MODEL_READY)]
        ready = execute[mine & (record.form == PayloadForm.MODEL_READY)]
        speed = record.scenario.servers[service.server].speed
        where = f"servers.{service.server}.{service.model}"
        was, count = service.latency[0] * speed, len(original) + len(ready)
        if len(service.latency) > 1:
            record.note(f"{where}.latency", "s", was, None, count, "kept: it runs batches")
            continue
        if max(len(original), len(ready)) < ENOUGH:
            record.note(f"{where}.latency", "s", was, None, count, "kept: too few")
            continue
        groups += [each for each in (original, ready) if len(each) >= ENOUGH]
        latency, saving = _service_time(service, original, ready)
        new = {"latency": (latency * speed,), "ready_saving": saving * speed}
        changes[service.server, service.model] = new
        record.note(f"{where}.latency", "s", was, latency * speed, count)
        if len(ready) >= ENOUGH:
            old = service.ready_saving * speed
            record.note(f"{where}.ready_saving", "s", old, saving * speed, len(ready))
    servers = {
        name: replace(
            server,
            services=tuple(
                replace(spec, **changes.get((name, spec.model), {})) for spec in server.services
            ),
        )
        for name, server in record.scenario.servers.items()
    }
    noise = record.scenario.service_noise
    if groups:
        cv = math.sqrt(math.expm1(fitting.pooled_sigma(groups) ** 2))
        record.note("service_noise.cv", "ratio", noise.cv, cv, sum(map(len, groups)))
        noise = replace(noise, cv=cv)
    return servers, noise


def _service_time(service: Service, original: Floats, ready: Floats) -> tuple[float, float]:
    """Latency of an original photo, and how much model-ready saves, s on this server.

    A form with too few observations keeps the proportion to the other that the scenario has.
    """
    was, saved = service.latency[0], service.ready_saving
    if len(original) >= ENOUGH:
        latency = fitting.fit_lognormal(original)[0]
        if len(ready) >= ENOUGH:
            return latency, max(0.0, latency - fitting.fit_lognormal(ready)[0])
        return latency, saved * latency / was
    times = fitting.fit_lognormal(ready)[0] / max(was - saved, 0.1 * was)
    return was * times, saved * times


# -- links ---------------------------------------------------------------------------------------


def _links(record: _Record) -> tuple[dict[str, LinkSettings], dict[str, LinkSettings]]:
    network = record.scenario.network
    links, access = dict(network.links), dict(network.access_links)
    size = record.column("payload_bytes")
    sent, uploaded = record.stamp("sent"), record.stamp("uploaded")
    uploads = fitting.Transfers(sent, size, uploaded)
    for name in record.scenario.servers:
        full, spec = record.scenario.access_of(name)
        mine = (record.ingress == name) & np.isfinite(uploaded)
        new = _link(record, full, spec, uploads.where(mine))
        if new is not None:
            access[name] = new
    decided, there = record.stamp("decided"), record.stamp("transferred")
    moved = np.array([s is not None for s in record.server]) & (record.server != record.ingress)
    moved &= np.isfinite(decided) & np.isfinite(there) & np.isfinite(uploaded)
    start, sizes = _transfers(record, size, decided, uploaded)
    original = record.form != PayloadForm.MODEL_READY
    transfers = fitting.Transfers(start, sizes, there, uploaded, original)
    for key, full, spec, of in _between(record):
        new = _link(record, full, spec, transfers.where(moved & of))
        if new is not None:
            links[key] = new
    return links, access


def _between(record: _Record) -> Iterator[tuple[str, str, LinkSettings, NDArray[np.bool_]]]:
    """Key in ``network.links``, full name, settings and requests of each link between servers."""
    names = record.scenario.server_names
    uplink = record.scenario.network.topology == "uplink"
    for a in names:
        others = [b for b in names if b != a]
        for b in others[:1] if uplink else others:
            full, spec = record.scenario.link_between(a, b)
            of = record.ingress == a
            yield (a, full, spec, of) if uplink else (full, full, spec, of & (record.server == b))


def _transfers(
    record: _Record, size: Floats, decided: Floats, uploaded: Floats
) -> tuple[Floats, Floats]:
    """When each request's transfer began, and its bytes.

    The original is sent from the decision on. The model-ready form is first made from the whole
    photo. How long that waits is not recorded, but it follows from what the ingress ran meanwhile.
    """
    ready = (record.form == PayloadForm.MODEL_READY) & (record.server != record.ingress)
    bytes_of = {(each.server, each.model): each.ready_bytes for each in record.services}
    pairs = zip(record.server, record.model, strict=True)
    made = np.array([bytes_of.get(pair, 0) for pair in pairs], np.float64)
    start = decided.copy()
    prepare = record.scenario.prepare
    began, ended = record.stamp("started"), record.stamp("finished")
    for name, server in record.scenario.servers.items():
        mine = np.flatnonzero(ready & (record.ingress == name) & np.isfinite(decided + uploaded))
        asked = np.maximum(decided, uploaded)[mine]
        mine = mine[np.argsort(asked)]
        here = (record.server == name) & np.isfinite(began + ended)
        if prepare.on == "own":
            here[:] = False
        start[mine] = fitting.conversion_ends(
            np.sort(asked),
            prepare.seconds / server.speed,
            1 if prepare.on == "own" else server.workers,
            began[here],
            ended[here],
        )
    return start, np.where(ready, made, size)


def _link(
    record: _Record, name: str, spec: LinkSettings, transfers: fitting.Transfers
) -> LinkSettings | None:
    """`spec` with the measured rate and delay; None if it is kept.

    If there are enough transfers of originals, only these are fitted: their beginning is known.
    """
    if transfers.fitted is not None and transfers.fitted.sum() < ENOUGH_TRANSFERS:
        transfers = transfers._replace(fitted=None)
    count = len(transfers.starts)
    rate_at, delay_at = f"{name}.rate_mbps", f"{name}.delay"
    resolved = [record.scenario.resolve_link(e.link) for e in record.scenario.network.events]
    why = ""
    if spec.trace is not None or spec.outages or name in resolved:
        why = "kept: its bandwidth varies"
    elif spec.rate_mbps is None:
        why = "kept: unlimited"
    elif count < ENOUGH_TRANSFERS:
        why = "kept: too few"
    if why:
        record.note(rate_at, "Mbit/s", spec.rate_mbps, None, count, why)
        return None
    fit = fitting.fit_link(transfers)
    mbps = fit.rate * 8e-6
    error = f"off by {1e3 * fit.error:.1f} ms at the median"
    record.note(rate_at, "Mbit/s", spec.rate_mbps, mbps, fit.count, error)
    record.note(delay_at, "s", spec.delay, fit.delay, fit.count)
    return msgspec.structs.replace(spec, rate_mbps=mbps, delay=fit.delay)


# -- reports and workload ------------------------------------------------------------------------


def _reports(record: _Record, folder: Path) -> tuple[float, float | None]:
    was = record.scenario.report_period
    try:
        table = read(folder, records.REPORTS.name)
    except BadInput:  # `simulate` writes them only with --out
        record.note("report_period", "s", was, None, 0, "kept: no reports were recorded")
        return was, None
    server = np.array(table.column("server").to_pylist(), dtype=object)
    at, received = float_column(table, "at"), float_column(table, "received")
    ahead = float_column(table, "clock_ahead")
    each = [fitting.fit_report_period(at[server == name]) for name in record.scenario.servers]
    known = [period for period in each if period is not None]
    if not known:
        record.note("report_period", "s", was, None, len(at), "kept: too few")
        return was, None
    period = float(np.median(known))
    ahead = np.where(np.abs(ahead) < SAME_CLOCK, 0.0, ahead)
    delay = max(0.0, float(np.median(received - at + ahead)))
    record.note("report_period", "s", was, period, len(at))
    record.note("report delay", "s", None, delay, len(at), "not in the file")
    return period, delay


def _workload(record: _Record) -> WorkloadSpec:
    replace = msgspec.structs.replace
    workload, count = record.scenario.workload, record.table.num_rows
    times = np.sort(record.sent) - record.begun
    duration = max(workload.duration, float(times[-1]) + 1e-9)
    arrivals: Arrivals = workload.arrivals
    was, kind = arrivals.mean_rate, "workload.arrivals"
    process = fitting.fit_arrivals(times, duration)
    if process is None:
        arrivals = ConstantArrivals(rate=count / duration)
        record.note(kind, "1/s", was, arrivals.rate, count, "constant")
    elif isinstance(process, fitting.Bursts):
        bursts = MmppArrivals(rates=process.rates, sojourns=process.sojourns)
        # A run has few sojourns, so their weights are uncertain; how many requests came is not.
        rates = tuple(each * count / duration / bursts.mean_rate for each in process.rates)
        arrivals = replace(bursts, rates=rates)
        states = "bursts: " + ", ".join(
            f"{rate:.3g}/s for {stay:.3g} s"
            for rate, stay in zip(rates, process.sojourns, strict=True)
        )
        record.note(kind, "1/s", was, count / duration, count, states)
    else:
        arrivals = PoissonArrivals(rate=process)
        record.note(kind, "1/s", was, process, count, "poisson")
    shares = {name: float((record.ingress == name).sum()) for name in record.scenario.servers}
    total = math.fsum(workload.ingress.values())
    for name, mine in shares.items():
        old = workload.ingress.get(name, 0.0) / total
        record.note(f"workload.ingress.{name}", "share", old, mine / count, count)
    payload = workload.payload
    if isinstance(payload, LognormalPayload):
        logs = np.log(record.column("payload_bytes"))
        median, sigma = math.exp(float(np.median(logs))), float(logs.std())
        record.note("workload.payload.median_bytes", "bytes", payload.median_bytes, median, count)
        record.note("workload.payload.sigma", "", payload.sigma, sigma, count)
        payload = LognormalPayload(median_bytes=median, sigma=sigma)
    return replace(
        workload,
        duration=duration,
        arrivals=arrivals,
        ingress={name: mine for name, mine in shares.items() if mine > 0.0},
        demands=_demands(record),
        payload=payload,
    )


def _demands(record: _Record) -> tuple[Demand, ...]:
    """One class for each accuracy demanded, with the range of its deadlines."""
    accuracy, deadline = record.column("accuracy"), record.column("deadline")
    levels = np.unique(accuracy)
    demands = record.scenario.workload.demands
    if len(levels) > DEMANDS_MAX:
        record.note("workload.demands", "", None, None, len(levels), "kept: no classes")
        return demands
    classes = []
    for level in levels.tolist():
        mine = deadline[accuracy == level]
        low, high = float(mine.min()), float(mine.max())
        span: float | tuple[float, float] = low if high - low < 1e-9 * high else (low, high)
        classes.append(Demand(share=float(len(mine)), deadline=span, accuracy=level))
    record.note("workload.demands", "classes", len(demands), len(classes), len(accuracy))
    return tuple(classes)
