"""What a shared trunk gains: `python -m benchmarks.trunk [CASES [ROUNDS]]`, cases such as T1-same,T1-different,T2-same.

The pair of the ladder's size 130M in bf16, of which the embeddings and the first half of the layers are the base's, on
the tasks of the benchmark: run on one trunk, and as two models, in turn in one process. Either both models see the same
prompts (the longer ones), or each its own. The tokens must be the same.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from benchmarks.pairs import BenchPair, build
from benchmarks.tasks import TASKS
from eddecode import RenderedPrompt, Sampler, SamplingParams
from eddecode.runner import PairRunner
from eddecode.trunk import TrunkRunner

CASES = "T1-same,T1-different,T2-same,T2-different"


def frozen_pair() -> BenchPair:
    """A pair whose aligned model was trained from the middle on."""
    pair = build("130M", "bf16")
    base, aligned = pair.base.model, pair.aligned.model
    aligned.embed_tokens.load_state_dict(base.embed_tokens.state_dict())
    for i in range(len(base.layers) // 2):
        aligned.layers[i].load_state_dict(base.layers[i].state_dict())
    return pair


def measure(pair: BenchPair, samplers: dict[str, Sampler], case: str, rounds: int) -> None:
    """Print the seconds per step of both ways, and the gain."""
    name, prompts = case.split("-")
    work = TASKS[name].work(pair)
    texts = [RenderedPrompt(p.aligned_ids, p.aligned_ids) if prompts == "same" else p for p in work.prompts]
    params = [
        SamplingParams(alpha=a, temperature=work.temperature, max_new_tokens=work.new_tokens, ignore_eos=True)
        for a in work.alphas
        for _ in texts
    ]
    seconds: dict[str, list[float]] = {way: [] for way in samplers}
    for i in range(rounds + 1):  # the first one warms up
        tokens = []
        for way, sampler in samplers.items():
            start = time.perf_counter()
            done = sampler.generate(texts * len(work.alphas), params)
            if i:
                seconds[way].append(time.perf_counter() - start)
            tokens.append([completion.token_ids for completion in done])
        if tokens[0] != tokens[1]:
            raise SystemExit(f"{case}: the trunk changed the tokens")
    gains = [two / one for one, two in zip(*seconds.values(), strict=True)]
    steps = [f"{way} {1e3 * statistics.median(t) / work.new_tokens:.1f} ms" for way, t in seconds.items()]
    print(
        f"{case}: {', '.join(steps)} per token of a row; gain {statistics.median(gains):.2f} "
        f"({min(gains):.2f}–{max(gains):.2f})",
        flush=True,
    )


def main() -> None:
    torch.set_num_threads(2)
    pair = frozen_pair()
    models = pair.model_pair()
    samplers = {"trunk": Sampler(models), "two models": Sampler(models)}
    if not isinstance(samplers["trunk"].runner, TrunkRunner):
        raise SystemExit("the pair was given no trunk")
    samplers["two models"]._runner = PairRunner(models)
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    for case in (sys.argv[1] if len(sys.argv) > 1 else CASES).split(","):
        measure(pair, samplers, case, rounds)


if __name__ == "__main__":
    main()
