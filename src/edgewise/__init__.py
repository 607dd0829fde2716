"""edgewise: a network-aware load balancer for inference at the edge.

    import edgewise as ew

    results = ew.simulate("three-sites", ["edgewise", "earliest_completion"], seeds=3)
    print(results)

The names in ``__all__`` are the public interface; ``docs/library.md`` introduces them. Each is
imported when it is first used, so that ``import edgewise`` costs neither numba nor aiohttp.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgewise.api import SimulationResults, bench, explain, simulate, train, tune
    from edgewise.domain import (
        Candidate,
        Command,
        Decision,
        Observation,
        Outcome,
        PayloadForm,
        Report,
        Request,
        Score,
        Service,
        ShedReason,
        Status,
    )
    from edgewise.errors import BadInput, EdgewiseError
    from edgewise.policies import POLICIES, Parameter, draw, policy
    from edgewise.scenario import Scenario, check, load, presets
    from edgewise.summary import Summary

__version__ = "0.1.0"

__all__ = [
    "POLICIES",
    "BadInput",
    "Candidate",
    "Command",
    "Decision",
    "EdgewiseError",
    "Observation",
    "Outcome",
    "Parameter",
    "PayloadForm",
    "Report",
    "Request",
    "Scenario",
    "Score",
    "Service",
    "ShedReason",
    "SimulationResults",
    "Status",
    "Summary",
    "bench",
    "check",
    "draw",
    "explain",
    "load",
    "policy",
    "presets",
    "simulate",
    "train",
    "tune",
]

_MODULES = {
    "api": ("SimulationResults", "bench", "explain", "simulate", "train", "tune"),
    "domain": (
        *("Candidate", "Command", "Decision", "Observation", "Outcome", "PayloadForm"),
        *("Report", "Request", "Score", "Service", "ShedReason", "Status"),
    ),
    "errors": ("BadInput", "EdgewiseError"),
    "policies": ("POLICIES", "Parameter", "draw", "policy"),
    "scenario": ("Scenario", "check", "load", "presets"),
    "summary": ("Summary",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'edgewise' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"edgewise.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
