"""What is compiled, and how often."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from edgewise.compile import CHECKED, inlined, inner, lean
from edgewise.fleet.arrays import Array


def compile_anew(*called_first: Any) -> None:
    """Not from the cache, where a run before has left them: what is read from there compiles
    nothing that it calls."""
    for each in called_first:
        each.recompile()


@inner
def stepped(start: int, by: int, back: bool) -> int:
    return start - by if back else start + by


@lean
def walked(steps: Array, start: int) -> int:
    """Calls it with a constant, a narrow and a wide integer, and both kinds of truth value."""
    start = stepped(start, 1, False)
    start = stepped(start, steps[0], start > 10)
    return stepped(steps[1], start, True)


def test_integers_of_all_kinds_are_compiled_for_once() -> None:
    assert walked(np.array([5, 100], np.int32), 3) == 100 - (3 + 1 + 5)
    compile_anew(stepped, walked)
    assert len(stepped.signatures) == 1  # type: ignore[attr-defined]


@inner
def doubled(number: int) -> int:
    return 2 * number


@inlined
def quadrupled(number: int) -> int:
    return doubled(doubled(number))


@lean
def beginning(number: int) -> int:
    return quadrupled(number)


def test_nothing_is_copied_because_its_caller_is() -> None:
    assert beginning(3) == 12
    compile_anew(doubled, quadrupled, beginning)
    copied = [
        next(iter(each.overloads.values())).fndesc.inline  # type: ignore[attr-defined]
        for each in (doubled, quadrupled, beginning)
    ]
    assert copied == [False, True, False]


def llvm(module: str) -> str:
    """What an index that might be negative becomes in a function of `module`."""

    def picked(array: Array, i: int) -> float:
        found: float = array[i] + array[-1]
        return found

    picked.__module__ = module
    function: Callable[..., float] = numba.njit(picked)
    assert function(np.arange(4.0), 1) == 1.0 + 3.0, "what is written as −1 is the last"
    (code,) = function.inspect_llvm().values()  # type: ignore[attr-defined]
    return str(code)


def test_indices_are_taken_as_they_are_in_code_of_ours_alone() -> None:
    assert "icmp slt" in llvm("elsewhere")
    assert ("icmp slt" in llvm("edgewise.here")) is CHECKED
