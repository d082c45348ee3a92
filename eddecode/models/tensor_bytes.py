"""The bytes of tensors in memory: compared and hashed in chunks, so that no copy of a model's size is made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from eddecode.errors import PairError
from eddecode.models.fingerprint import combine, tensor_digest
from eddecode.models.sizes import named_tensors

CHUNK_ELEMENTS = 1 << 22  # 32 MB as float64


def chunks(tensor: Tensor) -> Iterator[Tensor]:
    """The elements of a tensor in order, as flat views of at most CHUNK_ELEMENTS each."""
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), CHUNK_ELEMENTS):
        yield flat[start : start + CHUNK_ELEMENTS]


def byte_view(tensor: Tensor) -> Tensor:
    """The bytes of a tensor of any dtype, as uint8."""
    return tensor.contiguous().view(torch.uint8)


def equal_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one dtype and shape hold the same bits; reading stops at the first difference."""
    return all(
        torch.equal(byte_view(x), byte_view(y.to(x.device)))
        for x, y in zip(chunks(a), chunks(b), strict=True)
    )


def model_digest(model: Any, eos_ids: frozenset[int]) -> bytes:
    """16 bytes over configuration, EOS ids and every tensor in memory, for models that were not loaded from files.

    Raises:
        PairError: a part of the model is not in memory (offloaded by accelerate).
    """
    tensors = named_tensors(model)
    if any(tensor.is_meta for tensor in tensors.values()):
        raise PairError(
            "a model given in memory has weights that are offloaded, so its content cannot be fingerprinted; load "
            "it from its files with ModelPair.load(…, device_map=…), or pass it before it is offloaded"
        )
    config = {
        key: value
        for key, value in model.config.to_dict().items()
        if key not in ("transformers_version", "_name_or_path")
    }
    head = repr((sorted(config.items(), key=lambda item: item[0]), sorted(eos_ids))).encode()
    digests = sorted(
        tensor_digest(
            name,
            str(tensor.dtype),
            tensor.shape,
            (byte_view(chunk.cpu()).numpy().data for chunk in chunks(tensor)),
        )
        for name, tensor in tensors.items()
    )
    return combine(head, *digests)
