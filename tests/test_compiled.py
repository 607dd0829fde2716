"""What `edgewise.compile` does beyond numba's documentation, checked against the numba installed.

A new numba that breaks one of these must not be allowed by pyproject.toml.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import pytest

from edgewise.compile import (
    PLAIN_PYTHON,
    address_words,
    as_pointer,
    by_reference,
    cache,
    jit,
    jit_no_refcount,
    tuple_reader,
)
from edgewise.fleet.arrays import Array, records

compiled_only = pytest.mark.skipif(PLAIN_PYTHON, reason="nothing is compiled")


def compile_anew(*called_first: Any) -> None:
    """Not from the cache, where a run before has left them: what is read from there compiles
    nothing that it calls."""
    for each in called_first:
        each.recompile()


# -- decorators ----------------------------------------------------------------------------------


@jit_no_refcount(internal=True)
def stepped(start: int, by: int, back: bool) -> int:
    return start - by if back else start + by


@jit_no_refcount
def walked(steps: Array, start: int) -> int:
    """Calls it with a constant, a narrow and a wide integer, and both kinds of truth value."""
    start = stepped(start, 1, False)
    start = stepped(start, steps[0], start > 10)
    return stepped(steps[1], start, True)


@compiled_only
def test_integers_of_all_kinds_are_compiled_for_once() -> None:
    assert walked(np.array([5, 100], np.int32), 3) == 100 - (3 + 1 + 5)
    compile_anew(stepped, walked)
    assert len(stepped.signatures) == 1  # type: ignore[attr-defined]


@jit_no_refcount(internal=True)
def doubled(number: int) -> int:
    return 2 * number


@jit_no_refcount(inline=True, internal=True)
def quadrupled(number: int) -> int:
    return doubled(doubled(number))


@jit_no_refcount
def beginning(number: int) -> int:
    return quadrupled(number)


@compiled_only
def test_nothing_is_copied_because_its_caller_is() -> None:
    assert beginning(3) == 12
    compile_anew(doubled, quadrupled, beginning)
    copied = [
        next(iter(each.overloads.values())).fndesc.inline  # type: ignore[attr-defined]
        for each in (doubled, quadrupled, beginning)
    ]
    assert copied == [False, True, False]


@jit
def counted(size: int) -> float:
    return float(np.ones(size).sum())


@jit_no_refcount
def counts_elsewhere(size: int) -> float:
    return counted(size)


@compiled_only
def test_a_function_that_allocates_may_be_called_by_one_that_does_not() -> None:
    assert counts_elsewhere(5) == 5.0
    compile_anew(counted, counts_elsewhere)
    assert counts_elsewhere(6) == 6.0


@compiled_only
def test_allocating_without_reference_counts_does_not_compile() -> None:
    @jit_no_refcount
    def allocates(size: int) -> float:
        return float(np.ones(size).sum())

    with pytest.raises(numba.core.errors.NumbaError):
        allocates(3)


@compiled_only
def test_an_internal_function_refuses_python() -> None:
    assert beginning(1) == 4  # it is compiled
    with pytest.raises(TypeError, match="doubled can only be called by compiled code"):
        doubled(1)


# -- references ----------------------------------------------------------------------------------

POINT = np.dtype([("x", "f8"), ("y", "f8")])


class Inner(NamedTuple):
    numbers: Array
    point: Any


class Outer(NamedTuple):
    inner: Inner
    matrix: Array


def new_outer(size: int = 3) -> Outer:
    point = records(1, POINT)[0]
    point.x = 10.0
    return Outer(Inner(np.arange(float(size)), point), np.ones((2, size), order="F"))


@jit_no_refcount(internal=True)
def deep(outer: Outer) -> float:
    outer.inner.point.y += 1.0
    outer.matrix[1, 0] = 7.0
    total: float = outer.inner.numbers.sum() + outer.inner.point.x
    return total


@jit_no_refcount
def shallow(outer: Outer) -> float:
    return deep(by_reference(by_reference(outer)))


def test_a_field_of_a_reference_is_the_array_itself() -> None:
    outer = new_outer()
    assert shallow(outer) == 13.0
    assert outer.inner.point.y == 1.0
    assert outer.matrix.tolist() == [[1.0, 1.0, 1.0], [7.0, 1.0, 1.0]]


@compiled_only
def test_a_function_that_counts_references_is_refused_one() -> None:
    """It would free arrays that others still use."""

    @jit
    def reads(outer: Outer) -> float:
        total: float = outer.inner.numbers.sum()
        return total

    @jit_no_refcount
    def passes(outer: Outer) -> float:
        return reads(by_reference(outer))

    @jit
    def makes(outer: Outer) -> float:
        return deep(by_reference(outer))

    for function in (passes, makes):
        with pytest.raises(Exception, match="decorate it with jit_no_refcount, not with jit"):
            function(new_outer())


@compiled_only
def test_a_reference_is_not_returned() -> None:
    @jit_no_refcount
    def keeps(outer: Outer) -> Outer:
        made: Outer = by_reference(outer)
        return made

    @jit_no_refcount
    def reads(outer: Outer) -> float:
        return deep(keeps(outer))

    with pytest.raises(Exception, match="do not return it"):
        reads(new_outer())


def mean_of(outer: Outer, weights: Array) -> float:
    """A kernel: it counts references and allocates."""
    scaled = outer.inner.numbers * weights
    mean: float = scaled.mean() + outer.inner.point.x
    return mean


@jit_no_refcount
def through(pointer: Any, outer: Outer, weights: Array) -> float:
    total = 0.0
    outer = by_reference(outer)
    for _ in range(1000):
        total += pointer(outer, weights)
    return total


@pytest.mark.parametrize("kernel", [mean_of, jit(mean_of)])
def test_a_kernel_is_passed_as_a_pointer(kernel: Callable[..., float]) -> None:
    outer, weights = new_outer(), np.full(3, 2.0)
    counts = [sys.getrefcount(array) for array in (outer.inner.numbers, weights)]
    pointer = as_pointer(kernel, float, new_outer(2), np.zeros(1))
    assert through(pointer, outer, weights) == 12_000.0
    assert [sys.getrefcount(array) for array in (outer.inner.numbers, weights)] == counts
    assert outer.inner.numbers.tolist() == [0.0, 1.0, 2.0]


outer_at = tuple_reader(new_outer)


@jit_no_refcount
def of_all(table: Array, out: Array) -> None:
    for i in range(out.size):
        out[i] = deep(outer_at(table, i))


def test_tuples_are_found_in_a_table_of_addresses() -> None:
    outers = [new_outer(size) for size in (3, 5, 1)]
    table = np.array([address_words(outer) for outer in outers])
    out = np.zeros(3)
    of_all(table, out)
    assert out.tolist() == [13.0, 20.0, 10.0]
    assert [outer.inner.point.y for outer in outers] == [1.0, 1.0, 1.0]


# -- the cache -----------------------------------------------------------------------------------

TWICE = """
import sys
import numba, numba.np.arrayobj, numba.core.config as config
before = dict(vars(config))
fixed = numba.np.arrayobj.fix_integer_index
import edgewise.sim.engine
assert vars(config) == before
assert numba.np.arrayobj.fix_integer_index is fixed
from edgewise.compile import cache, jit
if len(sys.argv) > 1:
    cache.source_digest = lambda: sys.argv[1]
import twice
print(twice.twice(2), sum(twice.twice.stats.cache_hits.values()))
"""


@compiled_only
def test_code_is_used_again_until_any_source_changes(tmp_path: Path) -> None:
    """And importing edgewise changes nothing for other users of numba."""
    (tmp_path / "twice.py").write_text(
        "from edgewise.compile import jit\nfrom helper import FACTOR\n\n"
        "@jit\ndef twice(x):\n    return FACTOR * x\n"
    )
    (tmp_path / "helper.py").write_text("FACTOR = 2\n")

    def run(*digest: str) -> list[str]:
        environment = {
            "PYTHONPATH": ":".join([str(tmp_path), *sys.path]),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "NUMBA_CACHE_DIR": "",
            "HOME": str(tmp_path),
        }
        done = subprocess.run(
            [sys.executable, "-c", TWICE, *digest],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not done.returncode, done.stderr
        return done.stdout.split()

    assert [run(), run(), run("another"), run("another"), run()] == [
        ["4", "0"],
        ["4", "1"],
        ["4", "0"],
        ["4", "1"],
        ["4", "0"],
    ]
    (tmp_path / "helper.py").write_text("FACTOR = 3\n")
    assert [run(), run()] == [["6", "0"], ["6", "1"]]
    (tmp_path / "twice.py").write_text((tmp_path / "twice.py").read_text() + "# changed\n")
    assert run() == ["6", "0"]
    assert list((tmp_path / "cache" / "edgewise" / "numba").rglob("twice*.nbi"))


def test_the_digest_covers_what_compiled_code_rests_on() -> None:
    folders = {"fleet", "policies", "sim", "sim/env", "learn", "bound", "."}
    found = {
        str(file.parent.relative_to(cache.PACKAGE))
        for file in cache.PACKAGE.rglob("*.py")
        if cache._COMPILES.search(file.read_bytes())
    }
    assert folders <= found


def test_the_numba_installed_is_one_that_was_tried() -> None:
    major, minor = (int(part) for part in numba.__version__.split(".")[:2])
    assert (0, 61) <= (major, minor) < (0, 69)
