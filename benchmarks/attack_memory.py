"""Peak memory of building an attack's models, against the size of the pair.

A random pair is saved, and a process of its own builds the models of an attack from the two folders, as an audit does.
The figure is resident memory on top of what the process held before; pages of mapped files count while they are
mapped. The pair in memory is the base and the changed model, so that 1.0 is the least that decoding takes.

    python -m benchmarks attack_memory                       # 134M parameters in bfloat16, weights@-0.3 and lowrank@8
    python -m benchmarks attack_memory --size 10M --attacks weights@0.5 --goal 1.1
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.choices import option
from eddecode.audit.attacks import attack_names

GOAL = 1.0  # of the pair's weights


def main(arguments: list[str]) -> int:
    """Print a line for each attack; exit code 1 where a goal is asked for and missed."""
    if arguments[:1] == ["--save"]:
        save(Path(arguments[1]), *arguments[2:])
        return 0
    if arguments[:1] == ["--probe"]:
        print(json.dumps(probe(Path(arguments[1]), arguments[2])))
        return 0
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks attack_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", default="130M", help="10M, 130M or 7B")
    parser.add_argument("--dtype", default="bf16", help="bf16 or float32")
    parser.add_argument("--attacks", type=option(attack_names), default=("weights@-0.3", "lowrank@8"))
    parser.add_argument("--goal", type=float, help="exit code 1 where a peak is above so many times the pair")
    options = parser.parse_args(arguments)
    missed = False
    with tempfile.TemporaryDirectory() as scratch:
        part = [sys.executable, "-m", "benchmarks", "attack_memory"]
        subprocess.run([*part, "--save", scratch, options.size, options.dtype], check=True)
        print("| attack | pair, MB | peak, MB | of the pair | seconds |\n|---|---:|---:|---:|---:|")
        for attack in options.attacks:
            done = subprocess.run(
                [*part, "--probe", scratch, attack], stdout=subprocess.PIPE, text=True, check=True
            )
            found = json.loads(done.stdout.splitlines()[-1])
            ratio = found["peak"] / found["pair"]
            missed |= options.goal is not None and ratio > options.goal
            print(
                f"| {attack} | {found['pair'] / 1e6:,.0f} | {found['peak'] / 1e6:,.0f} | {ratio:.2f} "
                f"| {found['seconds']:.1f} |",
                flush=True,
            )
    return int(missed)


def save(folder: Path, size: Any, dtype: str) -> None:
    """Save a random pair, with the tokenizer of the bundled one, in the folders `base` and `aligned`."""
    from benchmarks.pairs import build
    from eddecode.testbed.bundled import bundled_pair

    pair = build(size, dtype)
    for name in ("base", "aligned"):
        getattr(pair, name).save_pretrained(folder / name)
        for file in bundled_pair().base.glob("tokenizer*"):
            shutil.copy(file, folder / name)


def probe(folder: Path, attack: str) -> dict[str, Any]:
    """Build an attack's models in this process, which must be a fresh one.

    Returns:
        {"pair": bytes of the two models' weights in memory, "peak": bytes on top of what was there, "seconds"}
    """
    from benchmarks.memory import peak_bytes, start_counting
    from benchmarks.pairs import Shape
    from eddecode.audit import AuditConfig
    from eddecode.audit.samplers import load_sampler
    from eddecode.models.sizes import weights_bytes

    def load(place: Path) -> Any:
        config = AuditConfig(
            base=str(place / "base"),
            aligned=str(place / "aligned"),
            prompts=["hello"],
            base_template="{prompt}",
            aligned_template="{prompt}",
            out="unused",
            judges=("lexicon",),
            attacks=(attack,),
        )
        return load_sampler(config, config.parsed_attacks()[0].name)

    with tempfile.TemporaryDirectory() as scratch:  # what libraries load and make on first use
        save(Path(scratch), Shape(64, 96, 2, 4, 2000), "bf16")
        load(Path(scratch))
    before, begun = start_counting("cpu"), time.perf_counter()
    sampler = load(folder)
    seconds, peak = time.perf_counter() - begun, peak_bytes("cpu") - before
    return {"pair": sum(map(weights_bytes, sampler.pair.models)), "peak": peak, "seconds": seconds}
