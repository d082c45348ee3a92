"""Benchmarks of eddecode: `python -m benchmarks NAME`, with `--help` after the name for its options.

{names}

Every figure is a ratio between alternatives that were measured interleaved in one run, with its range.
"""

from __future__ import annotations

import sys
from importlib import import_module

# Options of `gpu`, before those of the command line.
GPU = (
    "--device cuda --no-memory --sizes 7B --dtypes bf16 --tasks T1,T2,T3 "
    "--alternatives eddecode,launched,processor,static-pair,floor,static-floor"
)
# Name → what it measures. The module has the name of the benchmark, except for `gpu`, which is a `compare`.
BENCHMARKS = {
    "against": "speed of this checkout against another checkout of eddecode",
    "cluster": "`eddecode plan --cluster` against a simulation of a million completions, and against an audit here",
    "compare": "speed and memory of the tasks T1 to T4 against alternatives that use `generate`",
    "table": "all of the table in docs/performance.md, in pieces that can be interrupted",
    "growth": "how a decode step grows with batch, α's, prompt, vocabulary and model size",
    "gpu": "`compare` on a GPU, with captured and with compiled decode steps",
    "kernel": "contrast-and-sample alone, against eager torch",
    "memory": "peak memory of a sweep against the minimum that it must hold",
    "numerics": "rounding errors of the contrast by α, float32 head against bf16 logits",
    "ray_workers": "workers of Ray against one process, with the same threads each; docs/scale.md",
    "reliability": "how a run survives kills, damage, full disks, moved folders, other machines; docs/reliability.md",
    "scale": "a run of a million completions from a stub: writer, summary, report, gate, export, merge; docs/scale.md",
    "scoring": "scoring at 16 α's against one, shared prompts against distinct ones",
    "speculation": "speculative decoding against plain decoding",
    "attack_memory": "peak memory of building the models of weights@l and lowrank@k; docs/attacks.md",
    "audit": "writes the prompts of docs/audit-of-the-bundled-pair.md",
    "families": "every model family: a cached batch against passes without a cache; docs/families.md",
    "findings": "trains and measures all findings, and writes docs/findings.md",
}
PACKAGES = ("audit", "findings", "reliability")  # those that are not one module


def main(arguments: list[str]) -> int:
    """Run the benchmark that the first argument names; the exit code is the benchmark's."""
    name, options = (arguments or ["--help"])[0], arguments[1:]
    if name in ("-h", "--help"):
        names = "\n".join(f"    {name:<14}{text}" for name, text in BENCHMARKS.items())
        print((__doc__ or "").replace("{names}", names), end="")
        return 0
    if name not in BENCHMARKS:
        print(
            f"error: there is no benchmark {name!r}; expected one of {', '.join(BENCHMARKS)}", file=sys.stderr
        )
        return 2
    if name == "gpu":
        name, options = "compare", [*GPU.split(), *options]
    module = f"benchmarks.{name}.__main__" if name in PACKAGES else f"benchmarks.{name}"
    return import_module(module).main(options) or 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
