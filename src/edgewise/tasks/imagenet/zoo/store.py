"""The cache of converted models.

A cached file is named ``STEM.vVERSION.SHA256.onnx`` after the sha256 of its own bytes, so one
atomic rename is the whole transaction. A file with a final name is complete, and damage done by the
disk is found by hashing it. No second file can disagree with it, and processes that convert at the
same time write the same name.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from edgewise.cache import cache_folder
from edgewise.errors import MissingExtra, ModelError
from edgewise.tasks.imagenet.zoo.catalogue import Weights, ZooModel, find_model, models
from edgewise.tasks.imagenet.zoo.convert import VERSION, convert
from edgewise.tasks.imagenet.zoo.pickled_weights import read_weights
from edgewise.tasks.task import Progress


def default_cache() -> Path:
    """The folder of converted models, by default."""
    return cache_folder("models")


def _cached(weights: Weights, cache: Path) -> list[Path]:
    return sorted(cache.glob(f"{weights.stem}.v{VERSION}.*.onnx"))


def _intact(file: Path) -> bool:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == file.name.split(".")[-2]


def converted_file(name: str, cache: Path | None = None) -> Path | None:
    """The converted file of a model in the cache; None if it was not prepared.

    Raises ModelError for an unknown name, and for a file that does not have its sha256.
    """
    files = _cached(find_model(name).weights, cache or default_cache())
    for file in files:
        if _intact(file):
            return file
    if files:
        raise ModelError(
            f"{name}: the cached file {files[0]} is corrupt: it does not have the sha256 in its "
            f"name; make it again with: edgewise models prepare {name}"
        )
    return None


def _write(data: bytes, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)  # mkstemp makes it private, but a cache may be shared
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _prepare(wanted: ZooModel, cache: Path, say: Callable[[str], None]) -> Path:
    weights = wanted.weights
    say("checking the cache")
    for file in _cached(weights, cache):
        if _intact(file):
            return file
        say(f"the cached {file.name} is corrupt: making it again")
        file.unlink(missing_ok=True)
    say(f"reading {weights.distribution}=={weights.version}")
    data = read_weights(weights)
    say("converting to ONNX")
    model = convert(weights, data)
    digest = hashlib.sha256(model).hexdigest()
    target = cache / f"{weights.stem}.v{VERSION}.{digest}.onnx"
    _write(model, target)
    return target


def prepare(
    names: Iterable[str] | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> dict[str, Path]:
    """Convert the weights of models (all by default) into the cache, unless they are there.

    Returns the ONNX file of each model; models of the same network share a file. A model whose
    weights are not installed is reported to `progress` and left out, unless it was asked for by
    name or no model is left. An interruption leaves no partial file under a final name.

    Raises ModelError for an unknown name and for corrupt weights, MissingExtra for weights (or
    onnx) that are not installed.
    """
    wanted = (
        list(models()) if names is None else [find_model(name) for name in dict.fromkeys(names)]
    )
    directory = cache or default_cache()
    ready: dict[str, Path] = {}
    by_weights: dict[Weights, Path] = {}
    missing: MissingExtra | None = None
    for position, each in enumerate(wanted):

        def say(what: str, name: str = each.name, done: float = position / len(wanted)) -> None:
            if progress is not None:
                progress(name, what, done)

        try:
            if each.weights not in by_weights:
                by_weights[each.weights] = _prepare(each, directory, say)
        except MissingExtra as error:
            if names is not None:
                raise
            missing = error
            say(f"left out: {error}")
            continue
        except OSError as error:
            raise ModelError(
                f"{each.name}: the cache {directory} cannot be used: {error}"
            ) from None
        ready[each.name] = by_weights[each.weights]
        if progress is not None:
            progress(each.name, "ready", (position + 1) / len(wanted))
    if missing is not None and not ready:
        raise missing
    return ready
