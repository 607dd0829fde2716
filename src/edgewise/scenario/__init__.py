"""Scenarios: one file describes a fleet, its network, its workload and how answers are scored.

`load` reads a scenario; the simulator, the emulator and the real system run it. ``schema``,
``network_schema`` and ``workload_schema`` hold the types, ``checks`` the rules that types cannot
express, and ``files`` reads and writes.
"""

from edgewise.network.settings import LinkChange, LinkEvent, LinkSettings, Outage
from edgewise.network.trace import BackhaulTrace, CellularTrace, FileTrace, LinkTrace, WifiTrace
from edgewise.scenario.checks import check, link_events, warnings_of
from edgewise.scenario.files import dump, load, loads, presets
from edgewise.scenario.network_schema import NetworkSpec
from edgewise.scenario.schema import (
    DownFailure,
    EjectionSpec,
    ErrorsFailure,
    Failure,
    MuteFailure,
    Prepare,
    Scenario,
    ScoreSpec,
    ServerSpec,
    ServiceNoise,
    ServiceSpec,
    SlowFailure,
    Spell,
    WrongFailure,
)
from edgewise.scenario.slow_spells import Misbehaviour, misbehaviours, slowness
from edgewise.scenario.workload_schema import (
    Arrivals,
    ConstantArrivals,
    Demand,
    DiurnalArrivals,
    ImagesPayload,
    LognormalPayload,
    MmppArrivals,
    Payload,
    PoissonArrivals,
    TraceArrivals,
    WorkloadSpec,
)

__all__ = [
    "Arrivals",
    "BackhaulTrace",
    "CellularTrace",
    "ConstantArrivals",
    "Demand",
    "DiurnalArrivals",
    "DownFailure",
    "EjectionSpec",
    "ErrorsFailure",
    "Failure",
    "FileTrace",
    "ImagesPayload",
    "LinkChange",
    "LinkEvent",
    "LinkSettings",
    "LinkTrace",
    "LognormalPayload",
    "Misbehaviour",
    "MmppArrivals",
    "MuteFailure",
    "NetworkSpec",
    "Outage",
    "Payload",
    "PoissonArrivals",
    "Prepare",
    "Scenario",
    "ScoreSpec",
    "ServerSpec",
    "ServiceNoise",
    "ServiceSpec",
    "SlowFailure",
    "Spell",
    "TraceArrivals",
    "WifiTrace",
    "WorkloadSpec",
    "WrongFailure",
    "check",
    "dump",
    "link_events",
    "load",
    "loads",
    "misbehaviours",
    "presets",
    "slowness",
    "warnings_of",
]
