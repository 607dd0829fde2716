"""Tuples of arrays passed by reference between compiled functions.

numba passes a named tuple by value: five words for each array in it and two for each of its axes. A
simulation holds dozens of arrays, so that is hundreds of words, copied at every call of an event
handler. A function that is called from Python therefore stores the tuple once,

    sim = by_reference(sim)

and passes on one pointer. Nothing else changes: ``sim.world.slots`` reads the array from where it
was stored, ``sim.world`` is itself a reference, and a function that takes a tuple takes a reference
too. Where a tuple is declared (a policy's kernel, see `as_pointer`) it is read back.

Measured gain: a simulated decision takes .56 of the time (`earliest_completion`, one core). As
plain Python `by_reference` returns the tuple itself.

What must hold, and what happens otherwise:

- The tuple lives in the frame of the function that calls `by_reference`. A function that returns a
  reference does not compile.
- Nobody writes to the tuple (its arrays may be written to). There is no way to.
- The functions count no references. One that does would count down arrays that it never counted
  up, and free them while in use: a `jit` function that reads from a reference does not compile.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numba
from numba import types
from numba.core import cgutils, sigutils
from numba.core.ccallback import CFunc
from numba.core.datamodel.models import PrimitiveModel
from numba.core.datamodel.registry import register_default
from numba.core.typeconv.castgraph import Conversion
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, intrinsic, lower_cast, lower_getattr_generic

from edgewise.compile.cache import function_cache
from edgewise.compile.decorators import PLAIN_PYTHON

# They publish no types, or not for this.
cg: Any = cgutils
model_of: Any = register_default
lowering_of: Any = lower_getattr_generic
cast_of: Any = lower_cast


class Reference(types.Type):
    """numba's type of a pointer to a named tuple of arrays, records, or such tuples."""

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
    """How a reference is stored: as an LLVM pointer to numba's structure of the tuple."""

    def __init__(self, manager: Any, kind: Any) -> None:
        pointee = manager.lookup(kind.tuple_type).get_value_type()
        super().__init__(manager, kind, pointee.as_pointer())  # type: ignore[no-untyped-call]

    def as_return(self, builder: Any, value: Any) -> Any:
        raise TypeError(f"{self.fe_type} ends with the function that made it: do not return it")


@infer_getattr
class _Fields(AttributeTemplate):
    """Typing of ``reference.field``."""

    key = Reference

    def generic_resolve(self, reference: Any, name: str) -> Any:  # type: ignore[override]
        return reference.field(name)


@lowering_of(Reference)
def _field(context: Any, builder: Any, reference: Any, value: Any, name: str) -> Any:
    """Code of ``reference.field``."""
    _refuse_counting(context)
    place = cg.gep_inbounds(builder, value, 0, reference.tuple_type.fields.index(name))
    return place if isinstance(reference.field(name), Reference) else builder.load(place)


def _by_reference(typing: Any, given: Any) -> Any:
    """Typing and code of `by_reference`; a reference is returned as it is."""
    if isinstance(given, Reference):
        return given(given), lambda context, builder, signature, args: args[0]

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _refuse_counting(context)
        with builder.goto_entry_block():  # once, and not cleared first as by numba's helpers
            place = builder.alloca(args[0].type)
        builder.store(args[0], place)
        return place

    return Reference(given)(given), code


def _refuse_counting(context: Any) -> None:
    if context.enable_nrt:
        name = context.fndesc.qualname
        raise TypeError(f"{name} uses a reference: decorate it with jit_no_refcount, not with jit")


@cast_of(Reference, types.BaseNamedTuple)
def _read_back(context: Any, builder: Any, reference: Any, kind: Any, value: Any) -> Any:
    """Code that makes a tuple of a reference. numba counts its arrays up where that matters."""
    return builder.load(value)


def _unchanged(given: Any) -> Any:
    return given


by_reference: Any = _unchanged if PLAIN_PYTHON else intrinsic(_by_reference)

_pointers: dict[Any, Any] = {}


class _CachedCFunc(CFunc):
    def enable_caching(self) -> None:
        self._cache = function_cache(self.__wrapped__)


def type_of(value: Any) -> Any:
    """numba's type of a value; as plain Python, its class."""
    return type(value) if PLAIN_PYTHON else numba.typeof(value)  # type: ignore[no-untyped-call]


def as_pointer(function: Any, result: type[float] | None, *examples: Any) -> Any:
    """`function` as a pointer that compiled code can be given; as plain Python, `function` itself.

    So the event loop is compiled once for all policies. `examples` are arguments of the types that
    it is compiled for. In place of a tuple, whoever calls the pointer passes a reference. It is
    read back where the function begins, so this may be any function that takes tuples, and its
    loops over their arrays are vectorised.
    """
    if PLAIN_PYTHON:
        return function
    found = _pointers.get(function)
    if found is None:
        plain = getattr(function, "py_func", function)
        kinds = [type_of(each) for each in examples]
        names = plain.__code__.co_varnames[: len(kinds)]
        pairs = zip(names, kinds, strict=True)
        tuples = {name: kind for name, kind in pairs if isinstance(kind, types.BaseNamedTuple)}
        passed = [Reference(each) if each in tuples.values() else each for each in kinds]
        returned = types.void if result is None else types.float64
        normalise: Any = sigutils.normalize_signature
        signature = normalise(returned(*passed))
        found = _CachedCFunc(plain, signature, tuples, {"error_model": "numpy"})
        found.enable_caching()
        found.compile()
        _pointers[function] = found
    return found
