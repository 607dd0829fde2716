"""How edgewise compiles its inner loops, so that every loop is built alike, and where that is kept.

numba compiles a function anew when the file it stands in has changed, not when one has that it
calls: after an update in place, old machine code would go on using old array layouts, and write
beside them. So what is compiled is kept apart by a digest of all that can be compiled, under
``~/.cache/edgewise/numba`` (`cached`). NUMBA_CACHE_DIR, if set, is used as it is: whoever sets it
sees to that.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite.binding
import numba
import numba.core.config
import numba.np.arrayobj
import numpy as np
from llvmlite import ir
from numba import types

from edgewise.cache import cache_folder

arrayobj: Any = numba.np.arrayobj  # it publishes no types

CHECKED = os.environ.get("EDGEWISE_CHECK_INDICES", "") not in ("", "0")
"""Stop at a negative index rather than read beside the array."""
KEPT = 30 * 86_400.0
"""s for which compiled code stays that nobody uses: a version that one still goes back to."""
PLAIN_PYTHON = bool(vars(numba.core.config)["DISABLE_JIT"])
"""Whether nothing is compiled (NUMBA_DISABLE_JIT=1): every trick has a twin then."""
ARRAYS = ("arrays.py", "layout.py", "build.py")
"""Files that compile nothing, but say what arrays there are and what the numbers in them mean. Both
are compiled into what reads them, and some of that takes no such array (`compile.addresses`)."""


def _keep_apart() -> None:
    config: Any = numba.core.config
    if config.CACHE_DIR:
        return
    digest = hashlib.blake2b(b"checked" if CHECKED else b"", digest_size=8)
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        source = file.read_bytes()
        if file.name in ARRAYS or b"edgewise.compile" in source or b"numba" in source:
            digest.update(source)
    # No home, or not writable: numba then looks for a place itself.
    with contextlib.suppress(OSError, RuntimeError):
        folder = cache_folder("numba") / digest.hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        config.CACHE_DIR = str(folder)
        for other in folder.parent.iterdir():
            if other.stat().st_mtime < time.time() - KEPT:
                shutil.rmtree(other, ignore_errors=True)


_keep_apart()
# LLVM unrolls a loop whose number of rounds it does not know by eight and counts what is left over
# first. Those of a decision take a few rounds or none, and are quicker without.
llvmlite.binding.set_option("", "-unroll-runtime=false")


def _index_as_it_is() -> None:
    """Let −1 not mean the last element in code of ours, unless it is written so.

    For a variable that could be negative numba adds the array's length if it is, at each access. No
    index of ours is to be negative; `EDGEWISE_CHECK_INDICES=1` compiles code that stops the process
    at one.
    """
    fixed = getattr(arrayobj, "fix_integer_index", None)
    if fixed is None or hasattr(fixed, "edgewise"):  # another numba; or done already
        return

    def fix(context: Any, builder: Any, kind: Any, index: Any, size: Any) -> Any:
        ours = context.fndesc is not None and context.fndesc.modname.startswith("edgewise.")
        if not ours or not kind.signed or isinstance(index, ir.Constant):
            return fixed(context, builder, kind, index, size)
        word = context.cast(builder, index, kind, types.intp)
        if CHECKED:
            with builder.if_then(builder.icmp_signed("<", word, word.type(0)), likely=False):
                nothing = ir.FunctionType(ir.VoidType(), ())
                builder.call(builder.module.declare_intrinsic("llvm.trap", fnty=nothing), ())
        return word

    fix.edgewise = CHECKED  # type: ignore[attr-defined]
    arrayobj.fix_integer_index = fix


_index_as_it_is()

F = TypeVar("F", bound=Callable[..., object])


def _wide(kind: Any) -> Any:
    """The type that an argument of type `kind` is compiled for."""
    kind = getattr(kind, "literal_type", kind)
    return types.int64 if kind in types.signed_domain else kind


def _njit(function: F, **options: Any) -> F:
    """`numba.njit`, compiled once for all signed integers rather than for each width and constant.

    numba takes a call with a constant, or with an index from an array of int32, for one of a type
    of its own, and would compile the simulator's `push` anew for every kind of event. What is
    inlined gets its constants all the same.
    """
    # Not said, a function would take over from who is compiled when it is first called whether it
    # is copied into all its callers, and the event loop is several times as long.
    options.setdefault("forceinline", False)
    if PLAIN_PYTHON:
        return np.errstate(all="ignore")(function)
    dispatcher: Any = numba.njit(cache=True, nogil=True, error_model="numpy", **options)(function)
    plain = dispatcher.get_call_template

    def template(args: Any, kws: Any) -> Any:
        return plain([_wide(each) for each in args], {k: _wide(each) for k, each in kws.items()})

    dispatcher.get_call_template = template
    return cast(F, dispatcher)


def jit(function: F) -> F:
    """Compile with numba at the first call, and cache the result on disk.

    The interpreter lock is released while it runs, so simulations in threads use all cores.
    Division by zero gives inf or NaN as in NumPy rather than an exception, which would need a
    check at every division. Fast-math stays off: the same seed must give the same bits.
    """
    return _njit(function)


def jit_inlined(function: F) -> F:
    """As `jit`, and copied into compiled code that calls it: for a function with one caller.

    A policy's kernel takes the candidate table, which is forty words on the stack in a call.
    """
    return _njit(function, forceinline=True)


def lean(function: F) -> F:
    """As `jit`, for a function that allocates no array: it does without reference counts.

    Each is an atomic operation, and passing a tuple of arrays takes two for every array: without
    them a simulated decision takes less than half the time. Allocating in it fails to compile.
    """
    return _njit(function, _nrt=False)


def copied(function: F) -> F:
    """As `lean`, and copied into compiled code that calls it: for a few instructions that are not
    worth a call, or what is called in one place.

    Everything else is fetched once for all its callers: what a decision runs through is as much
    machine code as the processor's first cache holds.
    """
    return _njit(function, _nrt=False, forceinline=True)


def inner(function: F) -> F:
    """As `lean`, for a function that only compiled code calls.

    Calling it from Python crashes the interpreter. What that saves is the code that unpacks its
    arguments: for a tuple of thirty arrays that is most of its compile time.
    """
    return _njit(function, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def inlined(function: F) -> F:
    """As `inner`, and copied into whoever calls it: for what is small, or called in one place.

    A call passes every array of a tuple on the stack, some hundred words; inlining the simulator's
    event handlers nearly doubled its speed.
    """
    return _njit(
        function, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True
    )
