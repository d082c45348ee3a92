"""findings.json: a whole run as data. The page is written from this record, in the run or at any later time."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import eddecode
from eddecode.audit.environment import processor_name
from eddecode.errors import ConfigError
from eddecode.experiments.findings.experiment import Experiment, ReplicatedResult
from eddecode.utils.files import atomic_write

PACKAGES = ("torch", "transformers", "tokenizers", "peft")


@dataclass(frozen=True)
class RunRecord:
    """What was run, and what came out.

    Attributes:
        command: the command that made the run.
        seeds: seeds of the headline experiments.
        size: the `ExperimentSize` of the run as JSON data.
        models: number of models that were trained.
        core_seconds: seconds of one core that training them took.
        packages: package → version.
        results: one per experiment.
        missing: names of the experiments without results.
    """

    command: str
    seeds: int
    size: Mapping[str, Any]
    models: int
    core_seconds: float
    packages: Mapping[str, str]
    results: list[ReplicatedResult]
    missing: Sequence[str] = ()

    def write(self, path: Path) -> None:
        """Write findings.json."""
        run = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "results"}
        data = {"run": run, "findings": [result.to_dict() for result in self.results]}
        atomic_write(path, json.dumps(data, indent=1) + "\n")

    @classmethod
    def read(
        cls, path: Path, experiments: Iterable[Experiment], outdated: list[str] | None = None
    ) -> RunRecord:
        """Read findings.json.

        Args:
            path: the file.
            experiments: those that are known.
            outdated: if given, results that were judged by another criterion than now are left out, and their names
                are added to this list; otherwise they are an error.

        Raises:
            ConfigError: the file holds no run, an experiment that is not known, or one with another criterion.
        """
        known = {experiment.name: experiment for experiment in experiments}
        try:
            data = json.loads(path.read_text("utf-8"))
            entries = data["findings"]
            if outdated is not None:
                outdated += [e["name"] for e in entries if e["criterion"] != known[e["name"]].criterion]
                entries = [e for e in entries if e["name"] not in outdated]
            results = [ReplicatedResult.from_dict(known[entry["name"]], entry) for entry in entries]
            return cls(**data["run"], results=results)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{path} does not hold the findings of a run ({type(error).__name__}: {error}); expected the "
                "findings.json that `python -m eddecode.experiments findings` writes"
            ) from error


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide figures, of those that are installed."""
    return {name: version(name) for name in PACKAGES if find_spec(name)}


def provenance() -> dict[str, str]:
    """With what code and on what processor something is measured now: commit, processor.

    Timings depend on the processor, and so does the last bit of a sum; the commit is that of the checkout that this
    package runs from, or the version where it is installed.
    """
    here = Path(__file__).parent
    found = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )  # fmt: skip
    commit = found.stdout.strip() or f"version {eddecode.__version__}"
    return {"commit": commit, "processor": f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}"}
