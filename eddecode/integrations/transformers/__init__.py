"""transformers: the contrast inside `model.generate`, and `model.generate` on eddecode's engine.

- `ContrastLogitsProcessor`: a logits processor for the base model's `generate`, in every mode that takes one (greedy,
  sampling, beams, assisted); it runs the aligned model beside it and keeps that model's cache in step
- `contrast_generate`: a `custom_generate` function that hands the whole call to a `Sampler`
- `prompts_for_generate`: prompts as the inputs of both
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eddecode.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from eddecode.integrations.transformers.custom_generate import contrast_generate
    from eddecode.integrations.transformers.logits_processor import ContrastLogitsProcessor
    from eddecode.integrations.transformers.prompts import prompts_for_generate

_HOMES = {
    "ContrastLogitsProcessor": "eddecode.integrations.transformers.logits_processor",
    "contrast_generate": "eddecode.integrations.transformers.custom_generate",
    "prompts_for_generate": "eddecode.integrations.transformers.prompts",
}

__all__ = ["ContrastLogitsProcessor", "contrast_generate", "prompts_for_generate"]

__getattr__ = lazy_exports(__name__, _HOMES)
