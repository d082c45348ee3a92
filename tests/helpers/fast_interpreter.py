"""Triton's interpreter without the work that it does again for every operation: types and shapes are made once.

An operation of a kernel takes a few microseconds in numpy and ten times as long in Triton's checks, most of which make
types, and tuples for their shapes. Both are immutable, so that one of each kind serves all operations. What kernels
compute is not touched.
"""

from __future__ import annotations

from typing import Any


class _OncePerType:
    """A function of Triton's types that is computed once for each scalar type."""

    def __init__(self, function: Any) -> None:
        self.function, self.found = function, {}

    def __call__(self, dtype: Any) -> Any:
        name = dtype.scalar.name
        if name not in self.found:
            self.found[name] = self.function(dtype)
        return self.found[name]


def speed_up() -> None:
    """Patch Triton, which must have been imported as an interpreter."""
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpreterOptions

    # Each integer operation would be done again in int64, to compare; no offset of these tests comes near 2^31.
    interpreter.interpreter_builder.options = InterpreterOptions(sanitize_overflow=False)
    interpreter._get_np_dtype = _OncePerType(interpreter._get_np_dtype)
    _make_types_once()
    _pass_over_equal_types()
    _count_by_arrays_of_one()


def _make_types_once() -> None:
    """One block type per element type and shape; it holds the shape of its tensors, too."""
    from triton.language import core

    initialize, types, shapes = core.block_type.__init__, dict[Any, Any](), dict[tuple[int, ...], Any]()
    scalar_shape, one = core.tuple([]), core.constexpr(1)

    def new(cls: Any, element: Any, shape: Any) -> Any:
        sizes = tuple(size.value if isinstance(size, core.constexpr) else size for size in shape)
        key = element, sizes
        if key not in types:
            made = object.__new__(cls)
            initialize(made, element, list(sizes))
            made.shape = shapes.setdefault(sizes, made.shape)
            made.shape_of_tensors = core.tuple([core.constexpr(size) for size in sizes])
            made.numel_of_tensors = core.constexpr(made.numel)
            types[key] = made
        return types[key]

    def initialize_tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        block = type.is_block()
        self.shape = type.shape_of_tensors if block else scalar_shape
        self.numel = type.numel_of_tensors if block else one

    unwrap = core._unwrap_if_constexpr
    plain = {int, float, bool, str, type(None), core.tensor, core.dtype, core.block_type, core.pointer_type}

    def unwrapped(value: Any) -> Any:
        kind = type(value)
        return value.value if kind is core.constexpr else value if kind in plain else unwrap(value)

    core._unwrap_if_constexpr = unwrapped
    core.pointer_type.__hash__ = lambda self: hash(self.name)  # it has an equality, which took its hash away
    core.block_type.__new__ = new
    core.block_type.__init__ = lambda self, *_: None  # called after `new`, also for a type that was there
    core.tensor.__init__ = initialize_tensor


def _pass_over_equal_types() -> None:
    """Operands of one type and shape need no conversion: nothing is compared dimension by dimension.

    To which type two operands are converted depends on their types alone, and is found once.
    """
    from triton.language import core
    from triton.language.semantic import TritonSemantic

    cast, broadcast = TritonSemantic.cast, TritonSemantic.broadcast_impl_value
    equal, convert, converted = core.dtype.__eq__, TritonSemantic.computation_type_impl, dict[Any, Any]()

    def convert_once(self: Any, a: Any, a_is_scalar: bool, b: Any, b_is_scalar: bool, division: bool) -> Any:
        key = a.name, a_is_scalar, b.name, b_is_scalar, division
        if key not in converted:
            converted[key] = convert(self, a, a_is_scalar, b, b_is_scalar, division)
        return converted[key]

    def cast_if_needed(self: Any, given: Any, to: Any, *rounding: Any) -> Any:
        return given if given.dtype is to else cast(self, given, to, *rounding)

    def broadcast_if_needed(self: Any, a: Any, b: Any) -> Any:
        if a.type.is_block() and b.type.is_block() and a.type.shape is b.type.shape:
            return a, b
        return broadcast(self, a, b)

    core.dtype.__eq__ = lambda self, other: self is other or equal(self, other)
    TritonSemantic.computation_type_impl = convert_once
    TritonSemantic.cast, TritonSemantic.broadcast_impl_value = cast_if_needed, broadcast_if_needed


def _count_by_arrays_of_one() -> None:
    """Triton before 3.7 makes a number of an array of one number, which numpy refuses from 2.4 on."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patched
