"""The run of all seeds, and its record."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from math import prod
from pathlib import Path

import torch

from eddecode.errors import ConfigError
from eddecode.experiments.findings.experiment import ReplicatedResult
from eddecode.experiments.findings.record import package_versions
from eddecode.experiments.real.alignment import Report
from eddecode.experiments.real.protocol import RealProtocol
from eddecode.experiments.real.record import REAL, RealRecord
from eddecode.experiments.real.run import SeedRun


def run_real(
    base: Path, out: Path, protocol: RealProtocol, seeds: int, command: str, report: Report
) -> RealRecord:
    """Run every seed that is not finished yet, and write real.json after each.

    Args:
        base: folder of a causal language model in safetensors.
        out: folder of the run, one sub-folder per seed.
        protocol: sizes.
        seeds: number of seeds, from 0.
        command: for the record.
        report: told about progress.

    Raises:
        ConfigError: `base` is no folder with a config.json.
    """
    if not (base / "config.json").is_file():
        raise ConfigError(f"{base}: found no config.json; expected the folder of a causal language model")
    results, seconds = [], []
    for seed in range(seeds):
        run = SeedRun(base, out / f"seed-{seed}", protocol, seed, report)
        results.append(run.run())
        seconds.append(run.seconds())
        record = RealRecord(
            command,
            _model_facts(base),
            asdict(protocol),
            seconds,
            package_versions(),
            _machine(),
            ReplicatedResult(REAL, list(results)),
        )
        record.write(out / "real.json")
    return record


def _model_facts(base: Path) -> dict[str, object]:
    from eddecode.models.safetensors_header import read_header

    config = json.loads((base / "config.json").read_text("utf-8"))
    files = sorted(base.glob("*.safetensors"))
    parameters = sum(prod(entry["shape"]) for file in files for entry in read_header(file)[0].values())
    return {
        "name": config.get("_name_or_path") or base.name,
        "type": config.get("model_type"),
        "parameters": parameters,
        "vocabulary": config.get("vocab_size"),
    }


def _machine() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"{platform.processor() or platform.machine()} ({capability}), {len(os.sched_getaffinity(0))} cores"
    )
