"""A model's own forward pass in float32, whatever the dtype of its weights, without a second copy of them.

Rounding hides a fault: in bfloat16 logits are off by up to 2⁻⁸ of their size, and a low-rank term that is left out may
be no larger. In float32 a fault stands alone. Each operation of the pass gets its low-precision arguments in float32,
one weight at a time, so that what is needed beyond the model is one weight and the hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from eddecode.models.sizes import input_device

LOW_PRECISION = (torch.bfloat16, torch.float16)
_get_dtype = Tensor.dtype.__get__  # type: ignore[attr-defined]  # how a mode sees `tensor.dtype`
_CONVERTS_NOTHING = frozenset(
    (
        *(
            "__get__",
            "size",
            "stride",
            "dim",
            "numel",
            "nelement",
            "element_size",
            "storage_offset",
            "data_ptr",
        ),
        *("is_floating_point", "is_complex", "is_contiguous", "get_device", "detach"),
        *(
            "__getitem__",
            "narrow",
            "select",
            "split",
            "chunk",
            "unbind",
            "view",
            "expand",
            "transpose",
            "permute",
            "t",
        ),
        *("unsqueeze", "squeeze"),
    )
)
"""Names of functions that tell of a tensor or give a view of it; an operation on the view converts the view alone. A
head that is used block by block would otherwise be converted as a whole for every block, and for every question."""


class Float32Pass(TorchFunctionMode):
    """Within the block, operations on bfloat16 and float16 tensors are done in float32, and so are their results.

    An operation that writes into a low-precision tensor writes into a converted copy: a pass must have no such state.
    """

    def __torch_function__(
        self,
        function: Any,
        types: Sequence[Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """See `TorchFunctionMode`."""
        if function == _get_dtype:
            return _wide_dtype(function(*args))
        if getattr(function, "__name__", "") in _CONVERTS_NOTHING:
            return function(*args, **(kwargs or {}))
        if function is torch.nn.functional.embedding:  # exact in any dtype: the table is not converted
            return _wide(function(*args, **(kwargs or {})))
        return function(*tree_map(_wide, args), **tree_map(_wide, kwargs or {}))


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in LOW_PRECISION else value
    return _wide_dtype(value)


def _wide_dtype(value: Any) -> Any:
    return torch.float32 if isinstance(value, torch.dtype) and value in LOW_PRECISION else value


@torch.inference_mode()
def float32_logits(model: Any, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """The logits (T, V) float32 after every token of each text, by plain passes of one text, without a cache."""
    device = input_device(model)
    result = []
    with Float32Pass():
        for text in texts:
            ids = torch.tensor([list(text)], device=device)
            attended = torch.ones_like(ids)
            result.append(model(input_ids=ids, attention_mask=attended, use_cache=False).logits[0].float())
    return result
