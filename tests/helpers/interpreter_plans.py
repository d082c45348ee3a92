"""Operations of Triton's language in its interpreter: checked once for each kind of operands, replayed afterwards.

What an operation like `x + 1` does is found by Triton from the types of its operands and from the constants among
them: which conversions it needs, and which functions of numpy. That takes ten times as long as these functions. The
first time for such a kind Triton's own code runs, and the functions that it calls are recorded: a plan. Later calls
with operands of this kind call these functions only. What kernels compute is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from triton.language import core
from triton.runtime.interpreter import TensorHandle

FOLDED = (
    "create_splat",
    "create_make_range",
    "create_expand_dims",
    "create_broadcast",
)  # of constants: constants
EXPANDING = ("create_splat", "create_broadcast")
Plan = Callable[[Sequence[Any]], Any]  # of an operation's operands
Step = tuple[str, list[int], int]  # function of the builder, places of its arguments and of its result


class _NoPlanError(Exception):
    """An operation whose operands have no kind."""


class Recorder:
    """Stands for the interpreter's builder while Triton's own code runs: does what that does, and notes it.

    Attributes:
        values: what steps read and write: handles of the operands, constants, results of steps.
        steps: in order.
        certain: whether a replay does the same; not if Triton asked for the value of an operand, or made a handle
            in another way than by its builder.
    """

    now: Recorder | None = None  # while an operation is recorded

    def __init__(self, builder: Any, operands: list[Any]) -> None:
        self.builder, self.values, self.steps, self.certain = builder, list(operands), list[Step](), True
        self._places = {id(operand): place for place, operand in enumerate(operands)}
        self._varying = set(range(len(operands)))

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.builder, name)
        return partial(self._noted, name, found) if name.startswith(("create_", "get_")) else found

    def place(self, value: Any) -> int:
        """Where a value is kept."""
        if id(value) not in self._places:
            self.certain &= not isinstance(value, TensorHandle)
            self._keep(value)
        return self._places[id(value)]

    def varies(self, value: Any) -> bool:
        """Whether it is an operand, or was made of one."""
        return self._places.get(id(value)) in self._varying

    def _keep(self, value: Any) -> int:
        place = self._places[id(value)] = len(self.values)
        self.values.append(value)
        return place

    def _noted(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        result = function(*arguments)
        if name.startswith("get_") or (name in FOLDED and not any(map(self.varies, arguments))):
            self._keep(result)  # a constant
            return result
        nested = [each for given in arguments if isinstance(given, list | tuple) for each in given]
        self.certain &= not any(isinstance(each, TensorHandle) for each in nested)
        given, place = list(map(self.place, arguments)), self._keep(result)
        self._varying.add(place)
        self.steps.append((name, given, place))
        return result

    def plan(self, operands: list[int], result: Any) -> Plan:
        """A function of all operands, of which these are tensors, that does the same steps."""
        end = -1 if result is None else self.place(result.handle)
        self._leave_broadcasting_to_numpy(end)
        scope = {f"v{place}": value for place, value in enumerate(self.values)}
        scope |= {f"f{i}": getattr(self.builder, name) for i, (name, _, _) in enumerate(self.steps)}
        scope |= {"tensor": core.tensor, "type": None if result is None else result.type}
        lines = [f"v{place} = given[{operand}].handle" for place, operand in enumerate(operands)]
        for i, (_, given, place) in enumerate(self.steps):
            lines.append(f"v{place} = f{i}({', '.join(f'v{each}' for each in given)})")
        lines.append("return None" if result is None else f"return tensor(v{end}, type)")
        exec("def plan(given):\n  " + "\n  ".join(lines), scope)
        return scope["plan"]

    def _leave_broadcasting_to_numpy(self, result: int) -> None:
        """Drop steps that only give an operand the shape that numpy gives it in the next step."""
        for step in [step for step in self.steps if step[0] in EXPANDING and step[2] != result]:
            (_, given, place), readers = step, [other for other in self.steps if step[2] in other[1]]
            source = given[-1] if step[0] == "create_splat" else given[0]
            changed = [[source if each == place else each for each in reader[1]] for reader in readers]
            if all(map(self._same_shape, readers, changed)):
                for reader, places in zip(readers, changed, strict=True):
                    reader[1][:] = places
                self.steps.remove(step)

    def _same_shape(self, reader: Step, places: list[int]) -> bool:
        function = getattr(type(self.builder), reader[0])
        if not {"binary_op", "ternary_op"} & {*function.__code__.co_names} and reader[0] != "create_addptr":
            return False
        shapes = [self.values[each].data.shape for each in places]
        return np.broadcast_shapes(*shapes) == self.values[reader[2]].data.shape


def planned(member: Callable[..., Any], semantic: Any) -> Callable[..., Any]:
    """A builtin of Triton's language; it is replayed for kinds of operands whose plan is known."""
    plans: dict[Any, Plan | None] = {}

    def call(*arguments: Any, **options: Any) -> Any:
        options.pop("_semantic", None)
        if Recorder.now is not None:  # a builtin within another one
            return member(*arguments, **options, _semantic=semantic)
        given = (*arguments, *options.values()) if options else arguments
        try:
            kind = (*map(kind_of, given), *options)
        except _NoPlanError:
            return member(*arguments, **options, _semantic=semantic)
        if kind not in plans:
            result, plans[kind] = _recorded(member, semantic, given, [*options])
            return result
        plan = plans[kind]
        return plan(given) if plan is not None else member(*arguments, **options, _semantic=semantic)

    return call


def kind_of(operand: Any) -> Any:
    """What of an operand decides about an operation: the type of a tensor, and any other value itself."""
    kind = type(operand)
    if kind is core.tensor:
        number = id(operand.type)  # types are made once (`fast_interpreter`); to hash one takes longer
        if number not in _numbers:
            _numbers[number] = operand.type
        return number
    return _constant_kind(operand, kind)


def _constant_kind(value: Any, kind: type) -> Any:
    if kind in (int, bool, str, type(None)):
        found = value
    elif kind is float:
        found = repr(value)  # NaN is NaN
    elif kind is core.constexpr:
        found = _constant_kind(value.value, type(value.value))  # that of a sum with a tensor is one
    elif kind in (tuple, list, core.tuple):
        found = tuple(_constant_kind(each, type(each)) for each in value)
    elif kind is slice and value == slice(None):
        found = None
    elif isinstance(value, core.dtype):
        found = value.name
    else:
        raise _NoPlanError
    return kind, found


_numbers: dict[int, Any] = {}  # types that were seen: none is freed, so that no other gets its id


def _recorded(
    member: Callable[..., Any], semantic: Any, given: Sequence[Any], names: list[str]
) -> tuple[Any, Plan | None]:
    """The result of an operation, and a plan of it if there can be one; the last operands have these names."""
    tensors = [place for place, each in enumerate(given) if type(each) is core.tensor]
    fresh = list(given)
    for place in tensors:  # no two of them are the same handle, as `x + x` has
        handle = given[place].handle
        fresh[place] = core.tensor(TensorHandle(handle.data, handle.dtype), given[place].type)
    recorder = Recorder(semantic.builder, [fresh[place].handle for place in tensors])
    first = len(given) - len(names)
    semantic.builder, Recorder.now = recorder, recorder
    try:
        result = member(*fresh[:first], **dict(zip(names, fresh[first:], strict=True)), _semantic=semantic)
    finally:
        semantic.builder, Recorder.now = recorder.builder, None
    plan = recorder.plan(tensors, result) if result is None or type(result) is core.tensor else None
    return result, plan if recorder.certain else None


def note_value(tensor: Any) -> None:
    """Triton decides by the value of a tensor: the same operation may do something else for another value."""
    if Recorder.now is not None and Recorder.now.varies(tensor.handle):
        Recorder.now.certain = False
