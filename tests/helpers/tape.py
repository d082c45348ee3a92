"""A substitute for a CUDA graph on a CPU: every operation of a step is recorded, and played back.

Playing back runs no Python of the model, only the operations, on the same tensors: what the model got from the host
while it was recorded (a length, a branch, a tensor made of numbers) stays as it was then. CUDA does the same, so a step
that goes wrong on this tape would go wrong there. That one which goes right here also does there, it cannot show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from eddecode.execution.capture import check_capturable
from helpers.simulated.tensors import leaves


class Recorder(TorchDispatchMode):
    """Writes down operations as (function, arguments, results)."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Any]]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled by torch here; to tell it so for each operation takes long."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        results = _tensors(result)
        if not (func.is_view and _addresses(results) <= _addresses(_tensors((args, kwargs or {})))):
            self.operations.append((func, args, kwargs or {}, results))
        return result


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in leaves(values) if isinstance(leaf, Tensor)]


def _addresses(tensors: list[Tensor]) -> set[int]:
    return {each.untyped_storage().data_ptr() for each in tensors}


class Tape:
    """What `capture` gives in tests. Compiled layers would not be on it: see the fixture `plain_torch`.

    Attributes:
        recorded, played: in the life of this class; tests set them to 0.
    """

    recorded = played = 0
    nbytes = 1000

    def __init__(self, step: Callable[[], Tensor]) -> None:
        Tape.recorded += 1
        check_capturable(step)
        with Recorder() as recorder:
            self.logits = step()
        self.operations = recorder.operations

    def __call__(self) -> Tensor:
        Tape.played += 1
        for func, args, kwargs, results in self.operations:
            again = _tensors(func(*args, **kwargs))
            for old, new in zip(results, again, strict=True):
                if old.data_ptr() != new.data_ptr():  # else a view, or written in place
                    old.copy_(new)
        return self.logits.clone()
