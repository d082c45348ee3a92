"""A first call, in a process of its own: prints as JSON what it took, of which how much Triton compiled.

Two layers of the large pair's widths: as many kernels are compiled as for all of its layers.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

STARTED = time.perf_counter()


def main(size: str) -> None:
    """Build, make the runners, and decode."""
    import torch

    from benchmarks.gpu_check.compiling import CompileTimes
    from benchmarks.gpu_check.first_stage import CALL
    from benchmarks.pairs import SIZES, build, random_prompts
    from eddecode import Sampler, SamplingParams

    device = torch.device("cuda", 0)
    torch.zeros(1, device=device)
    compiled = CompileTimes()
    found = {"import, s": time.perf_counter() - STARTED}
    shape = replace(SIZES[size], layers=2)
    pair = build(shape, "bf16", "full", str(device))
    params = SamplingParams(alpha=0.5, temperature=1.0, top_p=0.9, max_new_tokens=8, ignore_eos=True)
    torch.cuda.synchronize()
    start = time.perf_counter()
    sampler = Sampler(pair.model_pair())
    _ = sampler.runner
    found["make the sampler, s"] = time.perf_counter() - start
    completions = sampler.generate(list(random_prompts(2, shape.vocabulary)), params)
    found[CALL] = time.perf_counter() - start
    found["compiling, s, by several threads"] = sum(compiled.seconds)
    found["kernels compiled"] = len(compiled.seconds)
    print(json.dumps({"found": found, "tokens": [c.token_ids for c in completions]}))


if __name__ == "__main__":
    main(sys.argv[1])
