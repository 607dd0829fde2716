"""What the relay is told: links by name, and routes over them. YAML or JSON, or these structs.

::

    control: {host: 127.0.0.1, port: 0}
    links:
      a-up: {rate_bps: 20e6, delay: 0.01, outages: [{at: 5, duration: 2}]}
      b-down: {trace: {kind: cellular, seed: 1, mean_bps: 30e6}, delay: 0.02}
    routes:
      - listen: {host: 127.0.0.1, port: 0}
        to: {host: 127.0.0.1, port: 8000}
        forward: [a-up, b-down]
        backward: []

A port of 0 lets the kernel choose. Times in ``events``, ``outages`` and traces count from the
relay's time 0: ``POST /start``, or the start of the process if that never comes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edgewise.errors import BadInput, ScenarioError
from edgewise.network.capacity import Capacity, constant
from edgewise.network.link import STALL_S, LinkSettings
from edgewise.network.trace import TraceSpec

NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Probability = Annotated[float, msgspec.Meta(ge=0, lt=1)]
LossMode = Literal["stall", "reset"]


class Address(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to listen or to connect."""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0


class OutageConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing is sent from ``at`` (s from time 0) for ``duration`` (s)."""

    at: NotNegative
    duration: Positive


class LinkPatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A change of a link; what is not given stays. Fields as in :class:`LinkConfig`.

    ``rate_bps`` and ``trace`` replace each other; ``rate_bps: null`` makes the link unlimited.
    """

    rate_bps: NotNegative | msgspec.UnsetType | None = msgspec.UNSET
    trace: TraceSpec | msgspec.UnsetType = msgspec.UNSET
    delay: NotNegative | msgspec.UnsetType = msgspec.UNSET
    jitter: NotNegative | msgspec.UnsetType = msgspec.UNSET
    loss: Probability | msgspec.UnsetType = msgspec.UNSET
    loss_mode: LossMode | msgspec.UnsetType = msgspec.UNSET
    stall: NotNegative | msgspec.UnsetType = msgspec.UNSET
    queue_bytes: Annotated[int, msgspec.Meta(gt=0)] | msgspec.UnsetType | None = msgspec.UNSET

    def changes(self, folder: Path) -> dict[str, Any]:
        """The fields of ``link.LinkSettings`` that change, with their values.

        Reads the trace's file, if it names one, so that applying it later costs nothing.

        Raises:
            BadInput: rate and trace are both given, or a value is wrong.
        """
        changes = {
            name: value
            for name in ("delay", "jitter", "loss", "loss_mode", "stall", "queue_bytes")
            if (value := getattr(self, name)) is not msgspec.UNSET
        }
        if self.trace is not msgspec.UNSET:
            if self.rate_bps is not msgspec.UNSET:
                raise BadInput("rate_bps: expected either 'rate_bps' or 'trace', got both")
            changes["capacity"] = self.trace.load(folder)
        elif self.rate_bps is not msgspec.UNSET:
            changes["capacity"] = constant(self.rate_bps)
        LinkSettings(**changes)  # checks what the types above cannot, such as an infinite delay
        return changes


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """At ``at`` (s from time 0) a link changes."""

    at: NotNegative
    set: LinkPatch


class LinkConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A link as it begins.

    Attributes:
        rate_bps: constant rate, bits/s; None = unlimited, 0 = stopped.
        trace: instead of a rate.
        delay, jitter, stall: s. loss: probability per 1,500-byte packet. See
            :class:`~edgewise.network.link.LinkSettings`.
        queue_bytes: bytes that may wait; beyond it senders are held back, nothing is dropped. Each
            flow may always have one chunk waiting, or it would starve.
        outages, events: planned.
    """

    rate_bps: NotNegative | None = None
    trace: TraceSpec | None = None
    delay: NotNegative = 0.0
    jitter: NotNegative = 0.0
    loss: Probability = 0.0
    loss_mode: LossMode = "stall"
    stall: NotNegative = STALL_S
    queue_bytes: Annotated[int, msgspec.Meta(gt=0)] | None = None
    outages: tuple[OutageConfig, ...] = ()
    events: tuple[Event, ...] = ()

    def capacity(self, folder: Path) -> Capacity:
        """The rate or the trace.

        Raises:
            BadInput: both are given, or the trace is wrong.
        """
        if self.trace is None:
            return constant(self.rate_bps)
        if self.rate_bps is not None:
            raise BadInput("rate_bps: expected either 'rate_bps' or 'trace', got both")
        return self.trace.load(folder)

    def settings(self, folder: Path) -> LinkSettings:
        """What the link begins with; relative trace files start at ``folder``.

        Raises:
            BadInput: as :meth:`capacity`.
        """
        return LinkSettings(
            capacity=self.capacity(folder),
            delay=self.delay,
            jitter=self.jitter,
            loss=self.loss,
            loss_mode=self.loss_mode,
            stall=self.stall,
            queue_bytes=self.queue_bytes,
        )

    def intervals(self) -> list[tuple[float, float]]:
        """The planned outages as (start, end), s from time 0."""
        return [(o.at, o.at + o.duration) for o in self.outages]


class Route(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A port that leads to another one.

    Attributes:
        listen: where clients connect.
        to: where the relay connects for each of them.
        forward: links that bytes from the client to the target cross, in order.
        backward: links on the way back.
    """

    to: Address
    listen: Address = Address()
    forward: tuple[str, ...] = ()
    backward: tuple[str, ...] = ()


class RelayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a relay process does.

    Attributes:
        links: by name.
        routes: at least one.
        control: address of the HTTP API. It has no authentication: keep it on the loopback.
        seed: of jitter and loss; each link draws from its own stream.
        realtime: ask the kernel for SCHED_RR (only :func:`~edgewise.network.relay.relay.run`
        does; it
            needs CAP_SYS_NICE). Off by default: a relay that saturates a core of a small machine
            would hold up the servers whose network it plays.
        folder: where relative trace files are; :func:`load_config` sets the configuration's own.
    """

    routes: Annotated[tuple[Route, ...], msgspec.Meta(min_length=1)]
    links: dict[str, LinkConfig] = {}
    control: Address = Address()
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    realtime: bool = False
    folder: str = "."

    def check(self, file: str = "relay configuration") -> None:
        """See that every name leads somewhere.

        Raises:
            ScenarioError: a route names a link that is not there, or goes to port 0.
        """
        for i, route in enumerate(self.routes):
            for direction in ("forward", "backward"):
                for j, name in enumerate(getattr(route, direction)):
                    if name not in self.links:
                        known = ", ".join(sorted(self.links)) or "none is defined"
                        raise ScenarioError(
                            file,
                            f"routes[{i}].{direction}[{j}]",
                            f"expected the name of a link ({known}), got {name!r}",
                        )
            if route.to.port == 0:
                raise ScenarioError(file, f"routes[{i}].to.port", "expected a port from 1 on")


def load_config(path: Path) -> RelayConfig:
    """Read a configuration; ``.json`` is JSON, everything else YAML (which JSON nearly is).

    Raises:
        ScenarioError: it cannot be read or is wrong; the message names the field.
    """
    try:
        text = path.read_bytes()
    except OSError as e:
        raise ScenarioError(str(path), "", f"expected a readable file: {e}") from e
    is_json = path.suffix == ".json"
    try:
        raw = msgspec.json.decode(text) if is_json else msgspec.yaml.decode(text)
    except msgspec.DecodeError as e:
        raise ScenarioError(str(path), "", f"expected YAML or JSON: {e}") from e
    try:
        # YAML 1.1 reads 20e6 as a string (it wants 20.0e+6); not strict, msgspec makes it a number.
        config = msgspec.convert(raw, RelayConfig, strict=is_json)
    except msgspec.ValidationError as e:
        where, problem = split_error(e)
        if where.startswith("links[...]"):
            where = _named_link(raw, is_json) + where.removeprefix("links[...]")
        raise ScenarioError(str(path), where, problem) from e
    if config.folder == ".":
        config = msgspec.structs.replace(config, folder=str(path.parent))
    config.check(str(path))
    return config


def split_error(error: msgspec.ValidationError) -> tuple[str, str]:
    """msgspec's ``Expected X, got Y - at `$.a.b``` as ("a.b", "expected X, got Y")."""
    problem, _, where = str(error).partition(" - at `")
    problem = problem[:1].lower() + problem[1:]
    # A wrong key of a mapping reads: at `key` in `$.a`.
    if where.startswith("key` in `"):
        where, problem = where.removeprefix("key` in `"), "key: " + problem
    return re.sub(r"^\$\.?", "", where.rstrip("`")), problem


def _named_link(raw: Any, strict: bool) -> str:
    """Where msgspec says ``links[...]``, the first link that is wrong: ``links.NAME``."""
    for name, link in raw["links"].items():
        try:
            msgspec.convert(link, LinkConfig, strict=strict)
        except msgspec.ValidationError:
            return f"links.{name}"
    raise AssertionError("msgspec found fault with a link and does not any more")
