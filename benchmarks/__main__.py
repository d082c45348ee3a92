"""Benchmarks of eddecode: `python -m benchmarks NAME`, with `--help` after the name for its options.

{names}

Every figure is a ratio between alternatives that were measured interleaved in one run, with its range.
"""

from __future__ import annotations

import sys
from importlib import import_module

# name → (module, what it measures)
BENCHMARKS = {
    "against": ("benchmarks.against", "speed of this checkout against another checkout of eddecode"),
    "compare": (
        "benchmarks.compare",
        "speed and memory of tasks T1 to T4 against `generate`-based alternatives",
    ),
    "table": (
        "benchmarks.table",
        "all of the table in docs/performance.md, in pieces that can be interrupted",
    ),
    "growth": (
        "benchmarks.growth",
        "how a decode step grows with batch, α's, prompt, vocabulary and model size",
    ),
    "gpu": ("benchmarks.gpu", "captured decode steps on a GPU against launched and compiled ones"),
    "kernel": ("benchmarks.kernel", "contrast-and-sample alone, against eager torch"),
    "memory": ("benchmarks.memory", "peak memory of a sweep against what it must hold"),
    "numerics": (
        "benchmarks.numerics",
        "rounding errors of the contrast by α, float32 head against bf16 logits",
    ),
    "scoring": ("benchmarks.scoring", "scoring at 16 α's against one, shared prompts against different ones"),
    "speculation": ("benchmarks.speculation", "speculative decoding against plain decoding"),
    "audit": ("benchmarks.audit.__main__", "writes the prompts of docs/audit-of-the-bundled-pair.md"),
    "findings": (
        "benchmarks.findings.__main__",
        "trains and measures all findings, and writes docs/findings.md",
    ),
}


def main(arguments: list[str]) -> int:
    """Run the benchmark that the first argument names; the exit code is the benchmark's."""
    name, rest = (arguments or ["--help"])[0], arguments[1:]
    if name in ("-h", "--help"):
        names = "\n".join(f"    {name:<13}{text}" for name, (_, text) in BENCHMARKS.items())
        print((__doc__ or "").replace("{names}", names), end="")
        return 0
    if name not in BENCHMARKS:
        print(
            f"error: there is no benchmark {name!r}; expected one of {', '.join(BENCHMARKS)}", file=sys.stderr
        )
        return 2
    return import_module(BENCHMARKS[name][0]).main(rest) or 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
