"""Eight figures of an array at a time, for functions that are written as LLVM code.

LLVM makes vectors of a loop by itself, but not of one of a few rounds, or of a number that it does
not know: what is left over of 32 it does one by one. What a step of an environment shows is 18 rows
and 23 columns.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

cg: Any = cgutils  # it publishes no types

_WORD = ir.IntType(64)
_SUFFIX = {"double": "f64", "float": "f32", "i32": "i32", "i8": "i8"}


def vector(kind: Any) -> Any:
    """The type of eight."""
    return ir.VectorType(kind, 8)


class Eights:
    """Of the arrays that an intrinsic is given.

    Parameters
    ----------
    context, builder, signature, args:
        As numba hands them to the code of an intrinsic. Arrays are contiguous, in either order.
    """

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any) -> None:
        self._context, self._builder = context, builder
        self._kinds, self._args = signature.args, args

    def place(self, n: int, at: Any, line: int = 0) -> Any:
        """Where element `at` of a line of the n-th argument stands: of the only one, of a column in
        Fortran's order, of a row in C's."""
        kind, build = self._kinds[n], self._builder
        assert kind.layout in ("C", "F"), f"not contiguous: {kind}"
        array = self._context.make_array(kind)(self._context, build, self._args[n])
        length = cg.unpack_tuple(build, array.shape)[0 if kind.layout == "F" else -1]
        return build.gep(array.data, [build.add(at, build.mul(length, _WORD(line)))])

    def same(self, value: Any) -> Any:
        """Eight times the same."""
        build, place = self._builder, ir.IntType(32)
        one = build.insert_element(vector(value.type)(ir.Undefined), value, place(0))
        return build.shuffle_vector(one, one, vector(place)([0] * 8))

    def below(self, first: Any, count: Any) -> Any:
        """Which of eight numbers from `first` are below `count`."""
        numbers = self._builder.add(self.same(first), vector(_WORD)(list(range(8))))
        return self._builder.icmp_signed("<", numbers, self.same(count))

    def count(self, which: Any) -> Any:
        """How many of eight are true."""
        build = self._builder
        return build.zext(build.ctpop(build.bitcast(which, ir.IntType(8))), _WORD)

    def load(self, place: Any, where: Any) -> Any:
        """Eight from `place`; those not `where` are not read, and 0."""
        kind = vector(place.type.pointee)
        given = [place.type, ir.IntType(32), where.type, kind]
        found = self._masked("load", kind, kind, given)
        return self._builder.call(found, [place, self._size(place), where, kind(None)])

    def store(self, value: Any, place: Any, where: Any) -> None:
        """Eight to `place`; those not `where` are left as they are."""
        given = [value.type, place.type, ir.IntType(32), where.type]
        found = self._masked("store", ir.VoidType(), value.type, given)
        self._builder.call(found, [value, place, self._size(place), where])

    def _masked(self, what: str, result: Any, kind: Any, given: list[Any]) -> Any:
        name = f"llvm.masked.{what}.v8{_SUFFIX[str(kind.element)]}.p0"
        found = ir.FunctionType(result, given)
        return cg.get_or_insert_function(self._builder.module, found, name)

    def _size(self, place: Any) -> Any:
        """An element's, which it is aligned to."""
        return ir.IntType(32)(self._context.get_abi_sizeof(place.type.pointee))


def _first_equal(typing: Any, array: Any, at: Any, value: Any) -> Any:
    """The first of eight float64 from `at` that equals `value`: 0–7; 8 if none does."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        eights = Eights(context, builder, signature, args)
        found = eights.load(eights.place(0, args[1]), vector(ir.IntType(1))([1] * 8))
        equal = builder.fcmp_ordered("==", found, eights.same(args[2]))
        bits = builder.bitcast(equal, ir.IntType(8))
        return builder.zext(builder.cttz(bits, ir.IntType(1)(0)), _WORD)

    return types.intp(array, types.intp, types.float64), code


first_equal: Any = intrinsic(_first_equal)
