"""`jit` and `jit_no_refcount`: how edgewise compiles its functions with numba.

Both release the interpreter lock, so simulations in threads use all cores; both divide by zero as
NumPy does, since Python's exception would need a check at every division; and neither uses fast
math, for the same seed must give the same bits. Compiled code is kept on disk (`compile.cache`).

With NUMBA_DISABLE_JIT=1 nothing is compiled: a decorated function runs as plain Python, without the
warnings about overflow and division that compiled code does not give either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast, overload

import numba
import numba.core.config
import numpy as np
from numba import types

from edgewise.compile.cache import function_cache

PLAIN_PYTHON = bool(vars(numba.core.config)["DISABLE_JIT"])
"""Whether nothing is compiled (NUMBA_DISABLE_JIT=1)."""

F = TypeVar("F", bound=Callable[..., object])


@overload
def jit(function: F) -> F: ...
@overload
def jit(*, inline: bool = False) -> Callable[[F], F]: ...
def jit(function: F | None = None, *, inline: bool = False) -> F | Callable[[F], F]:
    """Compile a function at its first call. It may allocate arrays.

    With `inline` it is copied into compiled code that calls it: for a function with one caller, or
    one that is shorter than a call.
    """

    def decorate(function: F) -> F:
        return _compile(function, inline=inline, refcount=True, internal=False)

    return decorate if function is None else decorate(function)


@overload
def jit_no_refcount(function: F) -> F: ...
@overload
def jit_no_refcount(*, inline: bool = False, internal: bool = False) -> Callable[[F], F]: ...
def jit_no_refcount(
    function: F | None = None, *, inline: bool = False, internal: bool = False
) -> F | Callable[[F], F]:
    """As `jit`, for a function that allocates no array: numba then counts no references.

    A count is an atomic operation, and passing a tuple of arrays takes two for each array. Without
    them a simulated decision takes about a quarter of the time. Allocating an array in such a
    function fails to compile. References (`compile.reference`) are for these functions only.

    `internal` is for a function that only compiled code calls, and saves most of the compile time
    of one that takes a large tuple: numba leaves out the code that unpacks Python's arguments.
    Calling it from Python raises TypeError.
    """

    def decorate(function: F) -> F:
        return _compile(function, inline=inline, refcount=False, internal=internal)

    return decorate if function is None else decorate(function)


def _compile(function: F, *, inline: bool, refcount: bool, internal: bool) -> F:
    if PLAIN_PYTHON:
        return np.errstate(all="ignore")(function)
    # Every option is given: numba compiles a function with those of its first caller otherwise, and
    # inlining would spread through the event loop and make it several times as long.
    njit: Any = numba.njit  # the last three options are numba's own, and have no types
    dispatcher = njit(
        nogil=True,
        error_model="numpy",
        forceinline=inline,
        _nrt=refcount,
        no_cpython_wrapper=internal,
        no_cfunc_wrapper=internal,
    )(function)
    dispatcher._cache = function_cache(function)
    _widen_integers(dispatcher)
    if internal:
        _refuse_python(dispatcher)
    return cast(F, dispatcher)


def _widen_integers(dispatcher: Any) -> None:
    """Compile a function once for all signed integers, not for each width and each constant.

    To numba a constant, and an index from an array of int32, are types of their own: the
    simulator's `push` would be compiled once for each kind of event.
    """
    template_for = dispatcher.get_call_template

    def widened(arguments: Any, keywords: Any) -> Any:
        return template_for(
            [_wide(each) for each in arguments],
            {name: _wide(each) for name, each in keywords.items()},
        )

    dispatcher.get_call_template = widened


def _wide(kind: Any) -> Any:
    kind = getattr(kind, "literal_type", kind)
    return types.int64 if kind in types.signed_domain else kind


def _refuse_python(dispatcher: Any) -> None:
    """Let a call from Python raise TypeError. There is no code that unpacks its arguments, so numba
    would jump to nowhere."""

    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise TypeError(f"{dispatcher.__name__} can only be called by compiled code")

    def add_overload(result: Any) -> None:  # numba's own, without telling Python's call of it
        dispatcher.overloads[tuple(result.signature.args)] = result

    dispatcher._compile_for_args = refuse
    dispatcher.add_overload = add_overload


def uncompiled(function: F) -> F:
    """The Python function that was compiled; itself if nothing was."""
    return getattr(function, "py_func", function)
