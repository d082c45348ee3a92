"""Triton's interpreter without the work that it does again for every operation: types and shapes are made once.

An operation of a kernel takes a few microseconds in numpy and ten times as long in Triton's checks, most of which make
types, and tuples for their shapes. Both are immutable, so that one of each kind serves all operations. What kernels
compute is not touched.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

FRAME_WORDS = (1 << 15) + 1  # a little more than a power of two: Python doubles a piece until the frame fits


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
    _compute_without_checks()
    _look_at_arguments_once()
    _replay_operations()
    _make_room_for_frames()


def _make_room_for_frames() -> None:
    """Python gets memory for frames 16 kB at a time, and gives it back when the first frame in it returns.

    Where the end of such a piece falls between a kernel and the functions that it calls, each call gets one and gives
    it back. A frame that says to be large gets a large piece, with room for all frames above it.
    """
    from triton.runtime.interpreter import GridExecutor

    def launch(*arguments: Any, **options: Any) -> Any:
        return run(*arguments, **options)

    run = GridExecutor.__call__
    launch.__code__ = launch.__code__.replace(co_stacksize=FRAME_WORDS)
    GridExecutor.__call__ = launch


def _compute_without_checks() -> None:
    """What Triton's builder makes has the size of its type, but for a result of numpy that is larger than operands."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    checked = InterpreterBuilder.binary_op

    def initialize(self: Any, data: Any, dtype: Any, attr: Any = None) -> None:
        self.data, self.dtype, self.attr = data, dtype, {} if attr is None else attr

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        output = op(lhs.data, rhs.data)
        if output.itemsize > lhs.data.itemsize:
            return checked(self, lhs, rhs, op)
        return TensorHandle(output, lhs.dtype.scalar)

    def expand_dims(self: Any, arg: Any, axis: int) -> Any:
        return TensorHandle(arg.data[(slice(None),) * axis + (None,)], arg.dtype.scalar)

    TensorHandle.__init__ = initialize
    InterpreterBuilder.binary_op, InterpreterBuilder.create_expand_dims = binary_op, expand_dims


def _look_at_arguments_once() -> None:
    """The names of a kernel's arguments, and the types that their values stand for."""
    from triton import language

    inspect.getfullargspec = cache(inspect.getfullargspec)
    language.str_to_ty = cache(language.str_to_ty)


def _replay_operations() -> None:
    """See `interpreter_plans`."""
    from triton.runtime import interpreter

    from helpers.interpreter_plans import planned

    members: dict[Any, Any] = {}

    def patch(obj: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        if member not in members:
            members[member] = planned(member, interpreter.interpreter_semantic)
        scope.set_attr(obj, name, members[member])

    interpreter._patch_attr = patch


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

    def new_pointer(cls: Any, element_ty: Any, address_space: int = 1, const: bool = False) -> Any:
        key = element_ty, address_space, const
        if key not in types:
            types[key] = object.__new__(cls)  # initialized after this, each time the same
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
    core.pointer_type.__new__ = new_pointer
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

    from helpers.interpreter_plans import note_value

    patch = interpreter._patch_lang_tensor

    def index(tensor: Any) -> int:
        note_value(tensor)
        return int(tensor.handle.data.squeeze())

    def boolean(tensor: Any) -> bool:
        data = tensor.handle.data
        if data.size == 1:
            note_value(tensor)
        return bool(data) if data.size == 1 else True

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", index)
        scope.set_attr(tensor, "__bool__", boolean)

    interpreter._patch_lang_tensor = patched
