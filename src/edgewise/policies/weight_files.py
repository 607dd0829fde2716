"""Files of weights for the learned policy: numbers by name in safetensors, with a card in JSON.

``NAME.safetensors`` holds one tensor for each part of the parameters (`TENSORS`). Its metadata
names the numbers of each tensor: ``server_heads.price`` has one weight for each feature listed
there. A number that is absent has its neutral value: 0 for a weight, the tuned value for a
parameter of the heuristic, no limit for the guard. So a file stays valid when a feature is added.
Unknown names are refused. The small network is stored only if it is switched on.

``NAME.json`` is the card: how the weights were made, how much they gained, and the sha256 of the
weights. Reading either file executes no code.
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

VERSION = 3
"""Version of the format and of the meaning of the features. A new feature needs no new version."""
_SIZE_MAX = 1 << 20
"""Bytes. Weights are about a thousand numbers, so a larger file is something else."""


class Effect(Struct, frozen=True, kw_only=True):
    """The gain over the heuristic in mean expected utility, from paired runs."""

    mean: float
    half: float
    """Half the width of its 95 % confidence interval, clustered by seed."""


class WeightsCard(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the weights were made and how much they gained."""

    version: int = VERSION
    name: str
    sha256: str = ""
    """Checksum of the weights' file."""
    command: str
    """The command that trained them."""
    seeds: tuple[int, ...]
    """The seeds of the training runs, in order."""
    families: tuple[str, ...]
    """The families that they were trained on, or the name of the scenario."""
    commit: str
    """The commit of the source; "" = not known."""
    decisions: int
    """The number of decisions made in training."""
    heuristic: dict[str, float]
    """Parameters of the heuristic that they are compared with; the guard falls back to it."""
    results: dict[str, Effect] = {}
    """The gain over that heuristic on validation worlds, by family; empty = not measured."""
    accepted: bool = False
    """Whether they were accepted: no family's interval lies wholly below the heuristic."""


class _Path(Protocol):
    """A `Path`, or a resource of a package."""

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
"""The tensors of a file. The names are those of the numbers along the last axis; () = none."""
_NETWORK = ("server_in", "row_in", "hidden", "bias", "out")


def neutral() -> Floats:
    """Params of the tuned heuristic, with nothing learned and no limits."""
    tuned = tuned_as(priced.priced_greedy, shipped_values()["priced_greedy"])
    return learned.untrained(tuned.params)


def part_of(params: Floats, tensor: str) -> Floats:
    """A view of a tensor's numbers in the flat vector."""
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
    """Write the weights to `path` (….safetensors) and the card beside it.

    `write` writes each file. Returns the card as written, with the checksum.
    """
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
    """The weights in `path`, and their card. Raises BadInput saying what is wrong with a file."""
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
    except KeyError as error:  # a type that NumPy does not have
        raise refuse(f"expected float64, got {error.args[0]}") from None
    try:
        return _params(arrays, _metadata(data)), card
    except ValueError as error:
        raise refuse(str(error)) from None


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file, which begins with a length and a header in JSON."""
    header = msgspec.json.decode(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return dict(header.get("__metadata__") or {})


def _params(arrays: dict[str, NDArray[Any]], names: dict[str, str]) -> Floats:
    """The flat vector that the tensors make. Raises ValueError for an unknown name, a wrong shape,
    or a number that is not finite."""
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
            if len(set(given)) < len(given):
                raise ValueError(f"{tensor} names a number twice")
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


def learned_spec(params: Floats, about: str, card: WeightsCard | None = None) -> PolicySpec:
    """The learned policy with these params. Raises ValueError if their number is wrong."""
    if params.shape != (learned.LENGTH,):
        raise ValueError(f"expected {learned.LENGTH} params, got {params.shape}")
    return msgspec.structs.replace(
        learned.edgewise,
        params=tuple(params.tolist()),
        tuned="" if card is None else card.command,
        about=about,
    )


def shipped_spec() -> PolicySpec:
    """The policy `edgewise`: the learned policy with the weights of the package."""
    params, card = shipped()
    return learned_spec(params, learned.edgewise.about, card)


def from_file(path: str) -> PolicySpec:
    """The policy in a weights file. Raises BadInput as `load` does."""
    params, card = load(Path(path))
    return learned_spec(params, f"{card.name}, trained on {', '.join(card.families)}", card)


def release(params: Floats, low: Floats, high: Floats, oldest: float) -> Floats:
    """Params for release: deterministic, without a survey, and guarded by these limits.

    `oldest` is the option of that name (`learned.OPTIONS`), s.
    """
    out = params.copy()
    out[learned.LAYOUT["low"]], out[learned.LAYOUT["high"]] = low, high
    options = learned.named(out).options
    options.guarded, options.oldest = 1.0, oldest
    options.survey = options.temperature = 0.0
    assert math.isfinite(float(low.sum() + high.sum()))
    return out
