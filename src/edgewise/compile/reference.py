"""Tuples of arrays handed on by their address. Compiled code only.

A tuple is passed to a compiled function by value: five words for every array and two for every axis
of it. A simulation is dozens of arrays, hundreds of words, and its event handlers call each other
many times a decision. So whoever enters compiled code lays the tuple down once,

    sim = by_reference(sim)

and what it calls gets one pointer. Nothing else changes: `sim.build.slots` reads the array from
where it was laid, `sim.build` is a reference to a part, and a function that takes a tuple takes a
reference too. A reference is converted to the tuple where one is declared: a policy's kernel, which
is compiled apart, reads it back at its beginning (`engine.compiled`).

What must hold: the tuple lies in the frame of the function in which `by_reference` stands, so the
reference is passed down and never returned; nobody writes to it.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numba
from numba import types
from numba.core import cgutils
from numba.core.datamodel.models import PrimitiveModel
from numba.core.datamodel.registry import register_default
from numba.core.typeconv.castgraph import Conversion
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, intrinsic, lower_cast, lower_getattr_generic

from edgewise.compile.decorators import PLAIN_PYTHON

# They publish no types, or not for this.
cg: Any = cgutils
model_of: Any = register_default
lowering_of: Any = lower_getattr_generic
cast_of: Any = lower_cast


class Reference(types.Type):
    """A pointer to a named tuple of arrays, or of such tuples."""

    def __init__(self, tuple_type: Any) -> None:
        self.tuple_type = tuple_type
        # The name goes into every symbol, and a tuple's own is as long as all its records' fields.
        digest = hashlib.blake2b(str(tuple_type).encode(), digest_size=8).hexdigest()
        super().__init__(name=f"Reference({tuple_type.instance_class.__name__}, {digest})")

    @property
    def key(self) -> Any:
        return self.tuple_type

    def field(self, name: str) -> Any:
        """The type of a field as compiled code sees it; None if there is none of that name."""
        if name not in self.tuple_type.fields:
            return None
        kind = self.tuple_type.types[self.tuple_type.fields.index(name)]
        return Reference(kind) if isinstance(kind, types.BaseNamedTuple) else kind

    def can_convert_to(self, typingctx: Any, other: Any) -> Any:
        """To the tuple, read back."""
        return Conversion.safe if other == self.tuple_type else None


@model_of(Reference)
class _Model(PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        pointee = manager.lookup(kind.tuple_type).get_value_type()
        super().__init__(manager, kind, pointee.as_pointer())  # type: ignore[no-untyped-call]


@infer_getattr
class _Fields(AttributeTemplate):
    key = Reference

    def generic_resolve(self, reference: Any, name: str) -> Any:  # type: ignore[override]
        return reference.field(name)


@lowering_of(Reference)
def _field(context: Any, builder: Any, reference: Any, value: Any, name: str) -> Any:
    place = cg.gep_inbounds(builder, value, 0, reference.tuple_type.fields.index(name))
    return place if isinstance(reference.field(name), Reference) else builder.load(place)


def _by_reference(typing: Any, given: Any) -> Any:
    if isinstance(given, Reference):
        return given(given), lambda context, builder, signature, args: args[0]

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        with builder.goto_entry_block():  # once, and not cleared first as by numba's helpers
            place = builder.alloca(args[0].type)
        builder.store(args[0], place)
        return place

    return Reference(given)(given), code


@cast_of(Reference, types.BaseNamedTuple)
def _read_back(context: Any, builder: Any, reference: Any, kind: Any, value: Any) -> Any:
    return builder.load(value)


def _as_it_is(given: Any) -> Any:
    return given


by_reference: Any = _as_it_is if PLAIN_PYTHON else intrinsic(_by_reference)

_pointers: dict[Any, Any] = {}


def as_pointer(function: Any, result: Any, *arguments: Any) -> Any:
    """`function` compiled for numba types, as a pointer that compiled code can be given.

    A `Reference` among the arguments is read back once, at the beginning of the function, so that
    loops over its arrays are vectorised.
    """
    plain = getattr(function, "py_func", function)
    if PLAIN_PYTHON:
        return function
    found = _pointers.get(function)
    if found is None:
        names = plain.__code__.co_varnames[: len(arguments)]
        pairs = zip(names, arguments, strict=True)
        laid = {name: kind.tuple_type for name, kind in pairs if isinstance(kind, Reference)}
        compile_it = numba.cfunc(result(*arguments), locals=laid, cache=True, error_model="numpy")
        found = _pointers.setdefault(function, compile_it(plain))
    return found
