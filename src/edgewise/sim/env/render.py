"""Draws a simulation at a decision: servers, links, and the waiting request, as text or a picture.

Workers, queues and transfers are the simulation's true state, which the balancer does not see. The
predicted latencies of the candidates are the balancer's, which is what it decides by.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.compile import jit_no_refcount
from edgewise.domain import PayloadForm
from edgewise.errors import MissingExtra
from edgewise.fleet.arrays import Array
from edgewise.scenario import Scenario
from edgewise.sim.layout import Sim
from edgewise.sim.links import backlog, capacity
from edgewise.sim.results import candidates
from edgewise.tasks.services import services_of

TEXT_CANDIDATES = 6
"""Candidates listed in the text, quickest first."""


class LinkView(Struct, frozen=True, kw_only=True):
    """One link at the time of the decision."""

    source: str
    destination: str
    transfers: int
    bytes_left: float
    """Bytes of these transfers that the link has still to send."""

    @property
    def label(self) -> str:
        return f"{self.source} → {self.destination}"


class ServerView(Struct, frozen=True, kw_only=True):
    """One server at the time of the decision."""

    name: str
    up: bool
    workers: int
    busy: int
    queued: int
    queued_seconds: float
    """Expected service time of the queued requests, s."""
    upload: LinkView
    links: tuple[LinkView, ...]
    """Links to other servers that have something on them."""


class CandidateView(Struct, frozen=True, kw_only=True):
    """One admissible candidate of the waiting request."""

    server: str
    model: str
    form: PayloadForm
    accuracy: float
    latency: float
    """s predicted, from sending to the answer at the client."""


class RequestView(Struct, frozen=True, kw_only=True):
    """The request that waits for a decision."""

    ingress: str
    payload_bytes: float
    deadline: float
    """s from sending."""
    elapsed: float
    """s since sending."""
    accuracy: float
    """Demanded."""
    candidates: tuple[CandidateView, ...]
    """Quickest first."""


class Frame(Struct, frozen=True, kw_only=True):
    """One simulation at one decision."""

    scenario: str
    seed: int
    now: float
    decision: int
    servers: tuple[ServerView, ...]
    request: RequestView | None
    """None if no request waits: the episode is over."""


@jit_no_refcount
def _bytes_left(links: Array, e: int, numbers: Array, fifo: bool, now: float) -> float:
    """Bytes that link `e` has still to send at `now`; 0 for an unlimited link."""
    link = links[e]
    left: float = backlog(link, fifo)
    return max(0.0, left - capacity(link, numbers, link.at, now))


def frame_of(sim: Sim, scenario: Scenario) -> Frame:
    """What there is to show of `sim`, which plays `scenario` and has stopped at a decision."""
    world, names = sim.world, scenario.server_names
    clock = world.clock[0]
    count = len(names)
    now, fifo = float(clock["now"]), bool(world.settings[0]["fifo_links"])

    def link(e: int, source: str, destination: str) -> LinkView:
        left = _bytes_left(world.links, e, world.numbers, fifo, now)
        transfers = int(world.links["flows"][e])
        return LinkView(
            source=source, destination=destination, transfers=transfers, bytes_left=left
        )

    def links_from(s: int) -> tuple[LinkView, ...]:
        ends: dict[int, list[str]] = {}
        for t in range(count):
            if world.path[s, t] >= 0:
                ends.setdefault(int(world.path[s, t]), []).append(names[t])
        return tuple(
            link(e, names[s], "others" if len(end) > 1 else end[0])
            for e, end in ends.items()
            if world.links["flows"][e] > 0
        )

    servers = tuple(
        ServerView(
            name=names[s],
            up=bool(server["up"]),
            workers=int(server["workers"]),
            busy=int(server["busy"]),
            queued=int(server["waiting"]),
            queued_seconds=max(0.0, float(server["work"])),
            upload=link(s, "clients", names[s]),
            links=links_from(s),
        )
        for s, server in enumerate(world.servers[:count])
    )
    return Frame(
        scenario=scenario.name,
        seed=scenario.seed,
        now=now,
        decision=int(clock["decisions"]),
        servers=servers,
        request=_request(sim, scenario) if clock["current"] >= 0 else None,
    )


def _request(sim: Sim, scenario: Scenario) -> RequestView:
    """The waiting request of `sim`."""
    table, by_row = sim.table, candidates(services_of(scenario))
    found = []
    for r in np.flatnonzero(table.mask[:-1]).tolist():
        candidate = by_row[r]
        assert candidate is not None  # only the shed row has none
        found.append(
            CandidateView(
                server=candidate.server,
                model=candidate.model,
                form=candidate.form,
                accuracy=float(table.rows.accuracy[r]),
                latency=float(table.rows.latency[r]),
            )
        )
    context = table.context
    return RequestView(
        ingress=scenario.server_names[int(context.ingress)],
        payload_bytes=float(context.payload),
        deadline=float(context.deadline),
        elapsed=float(context.elapsed),
        accuracy=float(context.accuracy),
        candidates=tuple(sorted(found, key=lambda each: each.latency)),
    )


def _title(frame: Frame) -> str:
    return f"{frame.scenario}, seed {frame.seed}: {frame.now:.3f} s, decision {frame.decision}"


def _request_line(request: RequestView | None) -> str:
    if request is None:
        return "no request waits: the episode is over"
    left = 1e3 * (request.deadline - request.elapsed)
    return (
        f"request at {request.ingress}: {request.payload_bytes / 1e3:.0f} kB, {left:.0f} of "
        f"{1e3 * request.deadline:.0f} ms left, accuracy at least {request.accuracy:.3g}"
    )


def _load(link: LinkView) -> str:
    """The transfers on a link in words."""
    return f"{link.transfers} ({link.bytes_left / 1e3:.0f} kB)" if link.transfers else "none"


# -- text ----------------------------------------------------------------------------------------


def ansi(sim: Sim, scenario: Scenario) -> str:
    """`sim` at its decision as lines of text; `>` marks the request's ingress.

    `scenario` is the one that `sim` plays.
    """
    frame = frame_of(sim, scenario)
    request = frame.request
    width = max(6, *(len(server.name) for server in frame.servers))
    lines = [
        _title(frame),
        _request_line(request),
        f"  {'server':<{width}}  busy   queue          uploads",
    ]
    for server in frame.servers:
        mark = ">" if request is not None and server.name == request.ingress else " "
        busy = f"{server.busy}/{server.workers}" if server.up else "down"
        lines.append(
            f"{mark} {server.name:<{width}}  {busy:<5}  {server.queued:>4} "
            f"{server.queued_seconds:>6.3f} s  {_load(server.upload)}"
        )
    links = [link for server in frame.servers for link in server.links]
    lines.append("links between servers: " + ("" if links else "nothing on them"))
    lines += [f"  {link.label}: {_load(link)}" for link in links]
    if request is not None and request.candidates:
        lines.append("quickest candidates (predicted latency, accuracy):")
        for each in request.candidates[:TEXT_CANDIDATES]:
            form = ", model-ready" if each.form is PayloadForm.MODEL_READY else ""
            late = ", late" if each.latency > request.deadline else ""
            lines.append(
                f"  {1e3 * each.latency:>6.0f} ms  {each.accuracy:.3f}  "
                f"{each.server}/{each.model}{form}{late}"
            )
    elif request is not None:
        lines.append("no candidate: the request can only be shed")
    return "\n".join(line.rstrip() for line in lines) + "\n"


# -- picture -------------------------------------------------------------------------------------

WIDTH, MARGIN, HEAD, ROW, FOOT = 880, 12, 66, 66, 34
LINKS_AT, AXIS = 300, (570, WIDTH - 3 * MARGIN)
"""px: where the links begin, and the span of the time axis."""
WORKERS_DRAWN, QUEUE_DRAWN, TRANSFERS_DRAWN, LINKS_DRAWN = 8, 22, 12, 3
"""What gets a mark or a line of its own; numbers beside the marks give the whole count."""
INK, FAINT, GRID = (34, 34, 34), (110, 110, 110), (224, 224, 224)
BLUE, PALE, ORANGE = (0, 114, 178), (214, 229, 240), (230, 159, 0)
RED, GREEN, PURPLE = (213, 94, 0), (0, 158, 115), (204, 121, 167)
COLOURS = {PayloadForm.ORIGINAL: BLUE, PayloadForm.MODEL_READY: GREEN}


class _Canvas:
    """A picture under construction, with its two fonts."""

    def __init__(self, height: int) -> None:
        try:
            from PIL import Image, ImageDraw, ImageFont
        except ImportError:
            raise MissingExtra("live", "pillow") from None
        self.image = Image.new("RGB", (WIDTH, height), "white")
        self.draw = ImageDraw.Draw(self.image)
        self._fonts = {size: ImageFont.load_default(size) for size in (11, 13)}

    def text(self, x: float, y: float, text: str, colour: Any = FAINT, size: int = 11) -> None:
        self.draw.text((x, y), text, colour, self._fonts[size])

    def marks(
        self, x: float, y: float, count: int, colour: Any, width: int = 4, height: int = 10
    ) -> float:
        """`count` small rectangles in a line; returns where the next would begin."""
        for _ in range(count):
            self.draw.rectangle((x, y, x + width - 1, y + height - 1), colour)
            x += width + 2
        return x


def rgb_array(sim: Sim, scenario: Scenario) -> NDArray[np.uint8]:
    """`sim` at its decision as a picture, (height, width, 3).

    A strip per server shows its workers and queue, the transfers on its links, and its candidates
    on an axis of predicted latency that ends at twice the deadline. `scenario` is the one that
    `sim` plays. Raises MissingExtra if pillow is not installed.
    """
    frame = frame_of(sim, scenario)
    request = frame.request
    bottom = HEAD + ROW * len(frame.servers)
    canvas = _Canvas(bottom + FOOT)
    canvas.text(MARGIN, 8, _title(frame), INK, 13)
    canvas.text(MARGIN, 26, _request_line(request), INK, 13)
    canvas.text(MARGIN, HEAD - 16, "busy workers, queue")
    canvas.text(LINKS_AT, HEAD - 16, "transfers on its links")
    canvas.text(AXIS[0], HEAD - 16, "candidates")
    for s, server in enumerate(frame.servers):
        top = HEAD + ROW * s
        canvas.draw.line((MARGIN, top, WIDTH - MARGIN, top), GRID)
        _draw_server(canvas, server, top, request is not None and server.name == request.ingress)
        _draw_links(canvas, server, top)
    if request is not None:
        _draw_candidates(canvas, frame, request, bottom)
    return np.asarray(canvas.image, np.uint8).copy()


def _draw_server(canvas: _Canvas, server: ServerView, top: int, ingress: bool) -> None:
    """Name, workers and queue."""
    name = f"{server.name} (ingress)" if ingress else server.name
    canvas.text(MARGIN, top + 5, name, INK if server.up else RED, 13)
    if not server.up:
        canvas.text(MARGIN, top + 44, "down", RED)
        return
    busy = min(server.busy, WORKERS_DRAWN)
    x = canvas.marks(MARGIN, top + 26, busy, BLUE, 10, 12)
    x = canvas.marks(x, top + 26, min(server.workers, WORKERS_DRAWN) - busy, PALE, 10, 12)
    canvas.marks(x + 6, top + 27, min(server.queued, QUEUE_DRAWN), ORANGE)
    queue = f"{server.queued} queued ({server.queued_seconds:.2f} s)"
    canvas.text(MARGIN, top + 44, f"{server.busy} of {server.workers} busy, {queue}")


def _draw_links(canvas: _Canvas, server: ServerView, top: int) -> None:
    """The uploads to the server and the transfers that it sends."""
    shown = (server.upload, *server.links)
    for n, link in enumerate(shown[:LINKS_DRAWN]):
        y = top + 5 + 15 * n
        end = "from clients" if n == 0 else f"to {link.destination}"
        canvas.text(LINKS_AT, y, f"{end}: {_load(link)}")
        canvas.marks(LINKS_AT + 150, y + 3, min(link.transfers, TRANSFERS_DRAWN), PURPLE)
    if len(shown) > LINKS_DRAWN:
        more = sum(link.transfers for link in shown[LINKS_DRAWN:])
        canvas.text(LINKS_AT, top + 5 + 15 * LINKS_DRAWN, f"{more} more")


def _draw_candidates(canvas: _Canvas, frame: Frame, request: RequestView, bottom: int) -> None:
    """The time axis with the deadline, and a bar for each candidate in its server's strip."""
    last = 2.0 * request.deadline

    def across(seconds: float) -> float:
        return AXIS[0] + (AXIS[1] - AXIS[0]) * min(seconds / last, 1.0)

    base = {server.name: HEAD + ROW * s + 58 for s, server in enumerate(frame.servers)}
    for y in base.values():
        canvas.draw.line((AXIS[0], y, AXIS[1], y), GRID)
    canvas.draw.rectangle((AXIS[0], HEAD, across(request.elapsed), bottom), GRID)
    for each in reversed(request.candidates):
        x, y = across(each.latency), base[each.server]
        canvas.draw.line((x, y - 48 * each.accuracy, x, y), COLOURS[each.form], 3)
    canvas.draw.line((across(request.deadline), HEAD, across(request.deadline), bottom), RED, 2)
    for seconds in (0.0, request.deadline, last):
        label = f"{1e3 * seconds:.0f} ms" + ("+" if seconds == last else "")
        canvas.text(across(seconds) - 3 * len(label), bottom + 2, label)
    x = canvas.marks(MARGIN, bottom + 18, 1, BLUE)
    canvas.text(x + 2, bottom + 15, "original")
    x = canvas.marks(MARGIN + 70, bottom + 18, 1, GREEN)
    canvas.text(x + 2, bottom + 15, "model-ready; a bar is as high as the model is accurate")
    x = canvas.marks(AXIS[0], bottom + 18, 1, RED)
    canvas.text(x + 2, bottom + 15, "deadline")
    x = canvas.marks(AXIS[0] + 70, bottom + 18, 1, GRID)
    canvas.text(x + 2, bottom + 15, "time passed")
