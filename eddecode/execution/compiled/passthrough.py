"""Whether a causal LM is its body and its head and nothing else, so that a pass may run the two by themselves.

What the library puts around them (arguments looked up in configurations, outputs packed and unpacked) costs a pass of
one token as much as a tenth of a small model's weights. It may be left out only where the model adds nothing of its own
between body and head or after the head, such as a scale or a cap of the logits. That is seen by running the model with
stand-ins for the two: what went in must come out, the very same memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast


def is_body_and_head(model: Any) -> bool:
    """Whether a causal LM gives what its head makes of its body's hidden states, and nothing hangs on any of them."""
    modules = model, model.base_model, model.get_output_embeddings()
    return not any(map(is_changed, modules)) and _adds_nothing(*modules)


def is_changed(module: Any) -> bool:
    """Whether something hangs on a module, or stands in for its forward pass."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


@torch.inference_mode()
def _adds_nothing(model: Any, body: Any, head: Any) -> bool:
    """Whether ids and positions reach the body as they are, its states the head, and the head's logits the caller."""
    ids, positions = torch.tensor([[1, 0, 1]]), torch.tensor([[0, 1, 2]])
    got: dict[str, Any] = {}

    def run_body(**inputs: Any) -> BaseModelOutputWithPast:
        got["inputs"] = inputs.get("input_ids"), inputs.get("position_ids")
        return BaseModelOutputWithPast(last_hidden_state=hidden)

    def run_head(states: Tensor) -> Tensor:
        got["states"] = states
        return logits

    try:
        vocabulary, width = head.weight.shape
        hidden = torch.linspace(-100, 100, 3 * width).to(head.weight.dtype).view(1, 3, width)
        # In float32, as `Float32LMHead` gives them:
        logits = torch.linspace(-100, 100, 3 * vocabulary).view(1, 3, vocabulary)
        given = hidden.clone(), logits.clone()
        vars(body)["forward"], vars(head)["forward"] = run_body, run_head
        out = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        unchanged = torch.equal(hidden, given[0]) and torch.equal(logits, given[1])
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError):
        return False
    finally:
        for module in (body, head):
            vars(module).pop("forward", None)
    ids_in, positions_in = got.get("inputs", (None, None))
    handed_on = ids_in is ids and positions_in is positions
    return unchanged and handed_on and _is_same(got.get("states"), hidden) and _is_same(out, logits)


def _is_same(found: Any, given: Tensor) -> bool:
    """Whether something is a tensor, or a view of all of it."""
    return (
        isinstance(found, Tensor)
        and found.data_ptr() == given.data_ptr()
        and found.dtype == given.dtype
        and found.shape == given.shape
        and found.stride() == given.stride()
    )
