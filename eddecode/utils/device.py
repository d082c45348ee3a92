"""Copies of small tensors from the host to a device.

A copy from ordinary memory makes the host wait until the device has finished all work that was queued before. A copy
from pinned memory is queued like any other work, and the host goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def to_device(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers, or rows of numbers, as a tensor on a device, without waiting for the device."""
    return copy_to_device(torch.tensor(values, dtype=dtype), device)


def copy_to_device(values: Tensor, device: torch.device) -> Tensor:
    """A small tensor on a device; a copy from the CPU to a CUDA device does not wait for the device."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
