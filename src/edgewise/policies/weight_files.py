"""The learned policy's weights on disk: numbers by name in safetensors, with a JSON card beside.

``NAME.safetensors`` holds a tensor for each part of the parameters (`TENSORS`). Its metadata says
what each number belongs to: ``server_heads.price`` has a weight for each feature named there. What
is absent has its neutral value: 0 for a weight, the tuned value for a parameter of the heuristic,
no limit for the guard. So a file stays valid when a feature is added; an unknown name is refused.
The small network is stored only if it is switched on.

``NAME.json`` is the card: how the weights were made, what they were found to be worth, and the
file's sha256. Neither can execute anything.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as parse
from safetensors.numpy import save as dump

from edgewise.errors import BadInput
from edgewise.policies import learned, priced
from edgewise.policies.base import PolicySpec
from edgewise.policies.features import REQUEST_FEATURES, ROW_FEATURES, SERVER_FEATURES
from edgewise.policies.learned import OPTIONS
from edgewise.policies.tuning import shipped_values, tuned_as
from edgewise.policy_names import WEIGHTS

Floats = NDArray[np.float64]

VERSION = 2
"""Of the meaning of the features and of the file; a new feature is no new version."""
_SIZE_MAX = 1 << 20
"""Bytes; there are a thousand numbers. What is larger is something else."""


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


class _Path(Protocol):
    """What `Path` and a resource of a package have in common."""

    @property
    def name(self) -> str: ...

    def read_bytes(self) -> bytes: ...


_PRICED = tuple(parameter.name for parameter in priced.PRICED_GREEDY)
TENSORS: dict[str, tuple[str, ...]] = {
    "options": tuple(OPTIONS),
    "priced": _PRICED,
    "calibrated": _PRICED,
    **{
        f"{limit}.{features}": tuple(names)
        for limit in ("low", "high")
        for features, names in (
            ("server", SERVER_FEATURES),
            ("row", ROW_FEATURES),
            ("request", REQUEST_FEATURES),
        )
    },
    **{f"server_heads.{head}": tuple(SERVER_FEATURES) for head in learned.SERVER_HEADS},
    **{f"row_heads.{head}": tuple(ROW_FEATURES) for head in learned.ROW_HEADS},
    "shed_head": tuple(REQUEST_FEATURES),
    "server_in": tuple(SERVER_FEATURES),
    "row_in": tuple(ROW_FEATURES),
    "hidden": (),
    "bias": (),
    "out": (),
}
"""The tensors of a file, and what the numbers along the last axis of each are called; () = they
have no names."""
_NETWORK = ("server_in", "row_in", "hidden", "bias", "out")


def neutral() -> Floats:
    """Params where nothing is learned: the tuned heuristic, without limits."""
    tuned = tuned_as(priced.priced_greedy, shipped_values()["priced_greedy"])
    return learned.untrained(tuned.params)


def part_of(params: Floats, tensor: str) -> Floats:
    """The numbers of a tensor, a view of the flat vector."""
    name, _, row = tensor.partition(".")
    numbers = params[learned.LAYOUT[name]]
    if name in ("low", "high"):
        found: Floats = numbers.view(learned.LIMITS)[row][0]
    elif row:
        rows = learned.SERVER_HEADS if name == "server_heads" else learned.ROW_HEADS
        found = numbers.reshape(len(rows), -1)[rows.index(row)]
    else:
        kind = learned.PARAMS[name]
        found = numbers if kind.subdtype is None else numbers.reshape(kind.shape)
    return found


def save(
    path: Path, params: Floats, card: WeightsCard, write: Callable[[Path, bytes], object]
) -> WeightsCard:
    """Write the weights to `path` (….safetensors) and the card beside, each by `write`; returns the
    card as written, with its checksum."""
    network = learned.named(params).options.network > 0.0
    stored = [tensor for tensor in TENSORS if network or tensor not in _NETWORK]
    tensors = {tensor: np.array(part_of(params, tensor)) for tensor in stored}
    names = {tensor: " ".join(TENSORS[tensor]) for tensor in stored if TENSORS[tensor]}
    data = dump(tensors, names)
    card = msgspec.structs.replace(card, sha256=hashlib.sha256(data).hexdigest())
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
    folder = files("edgewise.policies") / "weights"
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
    try:
        return _params(arrays, _metadata(data)), card
    except ValueError as error:
        raise refuse(str(error)) from None


def _metadata(data: bytes) -> dict[str, str]:
    """Of a file that was parsed: a length, then a header in JSON (the format of safetensors)."""
    header = msgspec.json.decode(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return dict(header.get("__metadata__", {}))


def _params(arrays: dict[str, NDArray[Any]], names: dict[str, str]) -> Floats:
    """The flat vector. Raises ValueError for an unknown name, a wrong shape, or a NaN."""
    params = neutral()
    for tensor, values in arrays.items():
        if tensor not in TENSORS:
            raise ValueError(f"unknown tensor {tensor}; known: {', '.join(TENSORS)}")
        known = TENSORS[tensor]
        found = part_of(params, tensor)
        index = np.arange(found.shape[-1])
        if known:
            given = names.get(tensor, "").split()
            unknown = [name for name in given if name not in known]
            if unknown:
                raise ValueError(
                    f"{tensor} has {', '.join(unknown)}, which this version does not know"
                )
            index = np.array([known.index(name) for name in given], np.int64)
        expected = (*found.shape[:-1], len(index))
        if values.dtype != np.float64 or values.shape != expected:
            raise ValueError(
                f"{tensor}: expected float64 {expected}, got {values.dtype} {values.shape}"
            )
        without_limits = tensor.startswith(("low.", "high.")) or tensor == "options"
        if np.isnan(values).any() or not (without_limits or np.isfinite(values).all()):
            raise ValueError(f"{tensor}: not all are finite numbers")
        found[..., index] = values
    return params


def rule(params: Floats, about: str, card: WeightsCard | None = None) -> PolicySpec:
    """The learned policy with these params. Raises ValueError for another number of them."""
    if params.shape != (learned.LENGTH,):
        raise ValueError(f"expected {learned.LENGTH} params, got {params.shape}")
    return msgspec.structs.replace(
        learned.edgewise,
        params=tuple(params.tolist()),
        tuned="" if card is None else card.command,
        about=about,
    )


def shipped_rule() -> PolicySpec:
    """The policy `edgewise`."""
    params, card = shipped()
    return rule(params, learned.edgewise.about, card)


def from_file(path: str) -> PolicySpec:
    """The policy in a weights file. Raises BadInput as `load` does."""
    params, card = load(Path(path))
    return rule(params, f"{card.name}, trained on {', '.join(card.families)}", card)


def release(params: Floats, low: Floats, high: Floats, oldest: float) -> Floats:
    """Params as they are shipped: guarded within the limits, deterministic, no survey."""
    out = params.copy()
    out[learned.LAYOUT["low"]], out[learned.LAYOUT["high"]] = low, high
    options = learned.named(out).options
    options.guarded, options.oldest = 1.0, oldest
    options.survey = options.temperature = 0.0
    assert math.isfinite(float(low.sum() + high.sum()))
    return out
