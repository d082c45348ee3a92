"""The figures of `compare`: records of rounds and what follows from them, and the JSON files that hold them.

A file is added to by later runs, and several files are read together. Its keys are part of the format: `contenders` are
the alternatives.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

import eddecode
from benchmarks.measure import ratios, spread
from benchmarks.pairs import BenchPair
from benchmarks.registry import ALTERNATIVES, FLOOR, OURS
from benchmarks.roofline import bytes_to_read
from benchmarks.tasks import Task, Work
from eddecode.errors import ConfigError
from eddecode.utils.files import atomic_write

SAME = ("quick", "threads", "device")  # settings without which figures are not of the same kind
Record = dict[str, Any]
Key = tuple[str, str, str, str]


@dataclass
class Rounds:
    """What interleaved runs gave; entry i of every list is of round i.

    Attributes:
        seconds: per alternative.
        bandwidth: bytes per second.
        results: per alternative, the result of its last run (token ids, or scores).
        first_seconds: per alternative, seconds of the first run, where it was the whole work.
        missing: alternative → why it did not run.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    bandwidth: list[float] = field(default_factory=list)
    results: dict[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    first_seconds: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def machine(device: str, threads: int) -> Record:
    """Versions and hardware, and how busy the machine is."""
    cuda = torch.device(device).type == "cuda"
    return {
        "eddecode": eddecode.__version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "load_at_start": os.getloadavg()[0],
    }


def _commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def record(
    pair: BenchPair,
    task: Task,
    work: Work,
    rounds: Rounds,
    memory: dict[str, Record],
    commit: str | None = None,
) -> Record:
    """All figures of one task on one pair; times in seconds, sizes in bytes, spreads over the rounds.

    "speedup" is how many times faster eddecode was than each alternative, "cost_over_floor" its time over that of
    the base model alone; both are taken within rounds. "agreement" compares with eddecode's result, where both must be
    equal. "commit" is the code that was measured.
    """
    comparable = work.scoring or work.temperature == 0
    others = [name for name, entry in ALTERNATIVES.items() if entry.models == 2 and name != OURS]
    return derived(
        {
            "size": pair.size,
            "dtype": pair.dtype,
            "pair": pair.variant,
            "task": task.name,
            "title": task.title,
            "rows": work.rows,
            "new_tokens": work.new_tokens,
            "commit": commit,
            "bandwidths": list(rounds.bandwidth),
            "missing": rounds.missing,
            "contenders": {
                name: {
                    "seconds": list(rounds.seconds[name]),
                    "bytes_to_read": bytes_to_read(pair, work, entry.models),
                    "memory": memory.get(name),
                    "first_seconds": rounds.first_seconds.get(name),
                }
                for name, entry in ALTERNATIVES.items()
                if name in rounds.seconds
            },
            "agreement": {
                name: agreement(work, rounds.results[OURS], rounds.results[name])
                for name in others
                if comparable and {name, OURS} <= rounds.results.keys()
            },
        }
    )


def derived(entry: Record) -> Record:
    """The record with what follows from its rounds: medians and spreads, shares of the bandwidth, ratios."""
    tokens = entry["rows"] * entry["new_tokens"]
    seconds = {name: alternative["seconds"] for name, alternative in entry["contenders"].items()}
    alternatives = {}
    for name, alternative in entry["contenders"].items():
        shares = [
            alternative["bytes_to_read"] / bytes_per_s / s
            for bytes_per_s, s in zip(entry["bandwidths"], seconds[name], strict=True)
        ]
        alternatives[name] = alternative | {
            "tokens_per_s": spread([tokens / s for s in seconds[name]]),
            "roofline": spread(shares),
        }
    more: Record = {
        "bandwidth": spread(entry["bandwidths"]),
        "contenders": alternatives,
        "speedup": {
            name: spread(ratios(seconds[name], seconds[OURS]))
            for name in seconds
            if name != OURS and OURS in seconds
        },
    }
    if {OURS, FLOOR} <= seconds.keys():
        more["cost_over_floor"] = spread(ratios(seconds[OURS], seconds[FLOOR]))
    return entry | more


def joined(old: Record, new: Record) -> Record:
    """One record of the rounds of two, the older ones first; both have the same alternatives."""
    if old["contenders"].keys() != new["contenders"].keys():
        raise ValueError(f"{new['task']}: rounds of different alternatives cannot be joined")
    alternatives = {}
    for name, later in new["contenders"].items():
        before = old["contenders"][name]
        kept = {key: later[key] or before.get(key) for key in ("memory", "first_seconds")}
        alternatives[name] = later | kept | {"seconds": before["seconds"] + later["seconds"]}
    commits = dict.fromkeys(str(r["commit"]) for r in (old, new) if r["commit"])
    together = {
        "contenders": alternatives,
        "bandwidths": old["bandwidths"] + new["bandwidths"],
        "commit": ", ".join(commits) or None,
    }
    return derived(new | together)


def agreement(work: Work, ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """Share of tokens before the first difference of each row; for scores, the largest difference in nats."""
    if work.scoring:
        return max(abs(x - y) for a, b in zip(ours, theirs, strict=True) for x, y in zip(a, b, strict=True))
    same = 0
    for a, b in zip(ours, theirs, strict=True):
        differences = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
        same += differences[0] if differences else len(a)
    return same / work.tokens


# Files --------------------------------------------------------------------------------------------------------------


def key(record: Record) -> Key:
    """What a record is of: (size, dtype, kind of pair, task)."""
    return record["size"], record["dtype"], record["pair"], record["task"]


def write(path: Path, saved: Record) -> None:
    """Write JSON, whole or not at all."""
    atomic_write(path, json.dumps(saved, indent=1, ensure_ascii=False) + "\n")


def read(paths: Sequence[Path]) -> Record:
    """Several files as one; of a record that is in several of them, the last one counts.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    first: Record = {}
    results: dict[Key, Record] = {}
    for path in paths:
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            results.update((key(record), record) for record in saved["results"])
            first = first or saved
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} does not hold figures that --out has written ({type(error).__name__}: {error})"
            ) from error
    return first | {"results": list(results.values())}


def resumed(path: Path, settings: Record) -> dict[Key, Record]:
    """The records of a file that was measured with the same settings; none if there is no file.

    Raises:
        ConfigError: it was measured with other settings, or in a format that no rounds can be added to.
    """
    if not path.exists():
        return {}
    saved = read([path])
    before = {name: saved["options"][name] for name in SAME}
    if before != {name: settings[name] for name in SAME}:
        raise ConfigError(f"{path} was measured with {before}; give the same options, or another --out")
    if any("bandwidths" not in record for record in saved["results"]):
        raise ConfigError(f"{path} has an older format, to which no rounds can be added; give another --out")
    return {key(record): record for record in saved["results"]}


def rounds_of(record: Record | None) -> int:
    """How many rounds a record has."""
    return 0 if record is None else len(record["bandwidths"])
