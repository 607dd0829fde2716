"""The learned policy's weights on disk: numbers in safetensors, and a JSON card beside them.

``NAME.safetensors`` holds one float64 vector, ``params`` (`learned.LAYOUT`); ``NAME.json`` the
card: how it was made, what it was found to be worth, within which features, and the file's sha256.
Neither can execute anything. A file of another shape, version or checksum, or with numbers that are
none, is refused, and the message says which.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as parse
from safetensors.numpy import save as dump

from edgewise.errors import BadInput
from edgewise.policy import learned
from edgewise.policy.base import PolicySpec, record_of
from edgewise.policy.features import OMEGA, PHI, PSI
from edgewise.policy.guard import COUNTERS
from edgewise.policy_names import WEIGHTS

Floats = NDArray[np.float64]

VERSION = 1
"""Of the features and the layout. Another meaning of any of them is another version."""
_SIZE_MAX = 1 << 20
"""Bytes; the vector has a thousand numbers. What is larger is something else."""


class Effect(Struct, frozen=True, kw_only=True):
    """A paired difference in mean expected utility to the heuristic."""

    mean: float
    half: float
    """Of the 95 % confidence interval, clustered by seed."""


class WeightsCard(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands beside the weights."""

    version: int = VERSION
    name: str
    sha256: str = ""
    """Of the weights' file."""
    command: str
    """That trained them."""
    seeds: tuple[int, ...]
    """Of the training runs, in order."""
    families: tuple[str, ...]
    """Trained on, or the scenario's name."""
    commit: str
    """Of the source; "" = not known."""
    decisions: int
    """Training decisions."""
    heuristic: dict[str, float]
    """Parameters of the heuristic that they were judged by and that the guard falls back to."""
    results: dict[str, Effect] = {}
    """By family, against that heuristic on validation worlds; none: it was not tried."""
    accepted: bool = False
    """Whether no family's interval lies below the heuristic."""
    limits: dict[str, tuple[float, float]] = {}
    """By feature (phi.…, psi.…, omega.…): least and greatest in training."""


class _Path(Protocol):
    """What `Path` and a resource of a package have in common."""

    @property
    def name(self) -> str: ...

    def read_bytes(self) -> bytes: ...


FEATURE_NAMES = (
    *(f"phi.{name}" for name in PHI),
    *(f"psi.{name}" for name in PSI),
    *(f"omega.{name}" for name in OMEGA),
)


def save(
    path: Path, params: Floats, card: WeightsCard, write: Callable[[Path, bytes], object]
) -> WeightsCard:
    """Write the weights to `path` (….safetensors) and the card beside, each by `write`; returns the
    card as written, with limits and checksum."""
    data = dump({"params": np.ascontiguousarray(params, np.float64)})
    low, high = params[learned.LAYOUT["low"]], params[learned.LAYOUT["high"]]
    limits = {}
    if np.isfinite(low).all() and np.isfinite(high).all():
        limits = {
            name: (float(a), float(b)) for name, a, b in zip(FEATURE_NAMES, low, high, strict=True)
        }
    card = msgspec.structs.replace(card, sha256=hashlib.sha256(data).hexdigest(), limits=limits)
    write(path, data)
    text = msgspec.json.format(msgspec.json.encode(card), indent=1)
    write(path.with_suffix(".json"), text + b"\n")
    return card


def load(path: Path) -> tuple[Floats, WeightsCard]:
    """Weights and card from `path`. Raises BadInput saying what is wrong with it."""
    beside = path.with_suffix(".json")
    for each in (path, beside):
        if not each.is_file():
            raise BadInput(
                f"{each}: no such file" + (" (the weights' card)" if each is beside else "")
            )
    return _load(path, beside)


def shipped() -> tuple[Floats, WeightsCard]:
    """The weights of the policy `edgewise` that come with the package."""
    folder = files("edgewise.policy") / "weights"
    return _load(folder / f"edgewise{WEIGHTS}", folder / "edgewise.json")


def _load(path: _Path, beside: _Path) -> tuple[Floats, WeightsCard]:
    data = path.read_bytes()

    def refuse(reason: str) -> BadInput:
        return BadInput(f"{path.name}: weights refused: {reason}")

    try:
        card = msgspec.json.decode(beside.read_bytes(), type=WeightsCard)
    except msgspec.MsgspecError as error:
        raise BadInput(f"{beside.name}: not a card of weights: {error}") from None
    if card.version != VERSION:
        raise refuse(f"version {card.version}, expected {VERSION}")
    if len(data) > _SIZE_MAX:
        raise refuse(f"{len(data):,} bytes, expected at most {_SIZE_MAX:,}")
    found = hashlib.sha256(data).hexdigest()
    if found != card.sha256:
        raise refuse(f"sha256 {found[:12]}…, the card says {card.sha256[:12]}…")
    try:
        arrays = parse(data)
    except SafetensorError as error:
        raise refuse(f"not safetensors: {error}") from None
    if set(arrays) != {"params"}:
        raise refuse(f"expected the tensor params, got {', '.join(sorted(arrays)) or 'none'}")
    params = arrays["params"]
    if params.dtype != np.float64 or params.shape != (learned.LENGTH,):
        raise refuse(f"expected float64 ({learned.LENGTH},), got {params.dtype} {params.shape}")
    unlimited = np.zeros(learned.LENGTH, bool)
    unlimited[learned.LAYOUT["low"]] = unlimited[learned.LAYOUT["high"]] = True
    unlimited[learned.O_OLDEST] = True
    if np.isnan(params).any() or not np.isfinite(params[~unlimited]).all():
        raise refuse("not all are finite numbers")
    return np.array(params), card


def rule(
    params: Floats, about: str, card: WeightsCard | None = None, name: str = "edgewise"
) -> PolicySpec:
    """The policy with these weights."""
    if params.shape != (learned.LENGTH,):
        raise ValueError(f"expected {learned.LENGTH} params, got {params.shape}")
    return PolicySpec(
        name=name,
        kernel=learned.edgewise,
        params=tuple(params.tolist()),
        tuned="" if card is None else card.command,
        fleet_type=record_of(np.dtype([("values", "f8", learned.MEMORY)])),
        server_type=record_of(np.dtype([("values", "f8", learned.PER_SERVER)])),
        counters=tuple(COUNTERS),
        about=about,
    )


def shipped_rule() -> PolicySpec:
    """The policy `edgewise`."""
    params, card = shipped()
    return rule(params, "priced_greedy with learned prices, margins and threshold", card)


def from_file(path: str) -> PolicySpec:
    """The policy in a weights file. Raises BadInput as `load` does."""
    params, card = load(Path(path))
    return rule(params, f"{card.name}, trained on {', '.join(card.families)}", card)


def release(params: Floats, low: Floats, high: Floats, oldest: float) -> Floats:
    """Params as they are shipped: guarded within the limits, deterministic, no survey."""
    out = params.copy()
    out[learned.LAYOUT["low"]], out[learned.LAYOUT["high"]] = low, high
    out[learned.O_GUARDED], out[learned.O_OLDEST] = 1.0, oldest
    out[learned.O_SURVEY] = out[learned.O_TEMPERATURE] = 0.0
    assert math.isfinite(float(low.sum() + high.sum()))
    return out
