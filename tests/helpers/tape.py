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
from torch.utils._pytree import tree_leaves

from eddecode.execution.capture import check_capturable


class Recorder(TorchDispatchMode):
    """Writes down operations as (function, arguments, results)."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not (func.is_view and all(leaf.untyped_storage().data_ptr() in given for leaf in results)):
            self.operations.append((func, args, kwargs or {}, results))
        return result


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
            again = [leaf for leaf in tree_leaves(func(*args, **kwargs)) if isinstance(leaf, Tensor)]
            for old, new in zip(results, again, strict=True):
                if old.data_ptr() != new.data_ptr():  # else a view, or written in place
                    old.copy_(new)
        return self.logits.clone()
