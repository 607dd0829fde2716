"""How edgewise compiles its inner loops: one decorator, so that every loop is built alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])

_njit: Callable[..., Any] = numba.njit
"""numba's own types do not know all of its options."""


def jit(function: F) -> F:
    """Compile with numba at the first call, and cache the result on disk.

    The interpreter lock is released while it runs, so simulations in threads use all cores.
    Division by zero gives inf or NaN as in NumPy rather than an exception, which would need a
    check at every division. Fast-math stays off: the same seed must give the same bits.
    """
    return cast(F, _njit(cache=True, nogil=True, error_model="numpy")(function))


def lean(function: F) -> F:
    """As `jit`, for a function that allocates no array: it does without reference counts.

    Each is an atomic operation, and passing a tuple of arrays takes two for every array: without
    them a simulated decision takes less than half the time. Allocating in it fails to compile.
    """
    return cast(F, _njit(cache=True, nogil=True, error_model="numpy", _nrt=False)(function))


def inner(function: F) -> F:
    """As `lean`, for a function that only compiled code calls.

    Calling it from Python crashes the interpreter. What that saves is the code that unpacks its
    arguments: for a tuple of thirty arrays that is most of its compile time.
    """
    options = {"_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast(F, _njit(cache=True, nogil=True, error_model="numpy", **options)(function))


def inlined(function: F) -> F:
    """As `inner`, and copied into whoever calls it: for what is small, or called in one place.

    A call passes every array of a tuple on the stack, some hundred words; inlining the simulator's
    event handlers nearly doubled its speed.
    """
    options = {
        "_nrt": False,
        "no_cpython_wrapper": True,
        "no_cfunc_wrapper": True,
        "forceinline": True,
    }
    return cast(F, _njit(cache=True, nogil=True, error_model="numpy", **options)(function))
