"""Which GPU each model of a contrast goes to where nobody said it: one of its own, if there are several.

Then every step reads half of the weights from each memory, and only rows of logits go from one GPU to the other. A
model and an adapter merged into it stay together, since they can run as rows of one batch. GPUs of another kind than
the current one (one that drives a display, say) are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from eddecode.models.load_config import LoadConfig


def equal_gpus() -> list[torch.device]:
    """The current CUDA device, and the others of its name."""
    if not torch.cuda.is_available():
        return []
    current = torch.cuda.current_device()
    name = torch.cuda.get_device_name(current)
    others = [i for i in range(torch.cuda.device_count()) if i != current]
    alike = [i for i in others if torch.cuda.get_device_name(i) == name]
    return [torch.device("cuda", i) for i in (current, *alike)]


def on_own_gpus(
    configs: Sequence[LoadConfig], adapter_bases: Sequence[int | None]
) -> list[LoadConfig] | None:
    """The configurations with a GPU for each model, or None where that was not left open, or there are not several.

    Args:
        configs: one per model.
        adapter_bases: per model, which one it is merged into; None for full weights.
    """
    whole = [i for i, base in enumerate(adapter_bases) if base is None]
    if len(whole) < 2 or not all(config.may_spread for config in configs):
        return None
    gpus = equal_gpus()
    if len(gpus) < 2:
        return None
    place = {model: gpus[i % len(gpus)] for i, model in enumerate(whole)}
    return [
        replace(config, device=place[i if base is None else base])
        for i, (config, base) in enumerate(zip(configs, adapter_bases, strict=True))
    ]
