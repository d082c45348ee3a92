"""Contrast and sample in Triton, for CUDA; tests run it on a CPU in Triton's slow interpreter (TRITON_INTERPRET=1).

One launch per model adds its logits to the contrast and stores partial softmax sums; one program per row then filters
and samples; one launch per model computes the log-probability of the sampled token. Nothing here waits for the device,
and the launches depend on shapes alone, so that `launch` can be captured in a CUDA graph. The caller checks `status`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eddecode_kernels.types import Forbidden, RawSample, SampleInputs, UnavailableError

BLOCK = 2048
CUTS = 16


def contrast_and_sample(inputs: SampleInputs) -> RawSample:
    """Sample one token per row; see `eddecode.sampling.dispatch.contrast_and_sample`.

    Raises:
        UnavailableError: triton is not installed, or the logits are not on a CUDA device.
    """
    try:
        from eddecode_kernels import triton_kernels as kernels
    except ImportError as error:
        raise UnavailableError(f"triton cannot be imported ({error}); pip install triton") from error
    device = inputs.logits[0].device
    if device.type != "cuda" and not kernels.INTERPRETED:
        raise UnavailableError(f"the logits are on {device}, and Triton runs on CUDA devices")
    return launch(inputs)


def launch(inputs: SampleInputs) -> RawSample:
    """Enqueue the kernels and return at once; `status` is not checked."""
    from eddecode_kernels import triton_kernels as kernels

    logits = [z if z.stride(1) == 1 or z.shape[1] == 1 else z.contiguous() for z in inputs.logits]
    device, terms, batch, width = logits[0].device, len(logits), logits[0].shape[0], inputs.width
    widest = max(-(-z.shape[1] // BLOCK) for z in logits)
    contrasted = torch.empty(batch, width, dtype=torch.float32, device=device)
    tops = torch.empty(terms, batch, widest, dtype=torch.float32, device=device)
    sums = torch.empty(terms, batch, widest, dtype=torch.float64, device=device)
    tokens = torch.empty(batch, dtype=torch.int64, device=device)
    logprobs = torch.empty(terms + 1, batch, dtype=torch.float32, device=device)
    status = torch.empty(batch, dtype=torch.int32, device=device)

    weights = inputs.weights.to(device, torch.float32).contiguous()
    vocabulary = None if inputs.vocabulary is None else inputs.vocabulary.to(device).view(torch.uint8)
    for i, z in enumerate(logits):  # no fused multiply-adds: bit for bit the contrast of the reference
        kernels.add_term[(batch, -(-z.shape[1] // BLOCK))](
            z, z.stride(0), z.shape[1], weights[i], contrasted, width, vocabulary, tops[i], sums[i], widest,
            FIRST=i == 0, MASKED=vocabulary is not None, BLOCK=BLOCK, enable_fp_fusion=False,
        )  # fmt: skip
    if inputs.forbidden:
        _forbid(contrasted, inputs.forbidden)
    rows = inputs.rows
    parameters = [x.to(device, torch.float32) for x in (rows.temperature, rows.top_p, rows.min_p)]
    kernels.sample[(batch,)](
        contrasted, width, logits[0], logits[0].stride(0), *parameters, rows.top_k.to(device, torch.int64),
        rows.plausibility.to(device, torch.float32).log(), inputs.uniforms.to(device), tokens, logprobs[terms], status,
        BLOCK=BLOCK, CUTS=CUTS, num_warps=16,
    )  # fmt: skip
    for i, z in reversed(list(enumerate(logits))):
        kernels.token_logprob[(batch,)](
            z, z.stride(0), -(-z.shape[1] // BLOCK), weights[i], tops[i], sums[i], widest, tokens, logprobs[i], status,
            TERM=i, PARTS=max(16, 1 << (widest - 1).bit_length()),
        )  # fmt: skip
    return RawSample(tokens, logprobs, status)


def _forbid(contrasted: Tensor, forbidden: Forbidden) -> None:
    pairs = [(row, int(i)) for row, ids in forbidden for i in ids if 0 <= i < contrasted.shape[1]]
    if pairs:
        index = torch.tensor(pairs, device=contrasted.device).T
        contrasted[index[0], index[1]] = -torch.inf
