"""What is said about the measurements: records that go into JSON, the machine they came from, and tables."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

import eddecode
from benchmarks.contenders import CONTENDERS, OURS
from benchmarks.measure import Rounds, ratios, spread
from benchmarks.pairs import BenchPair
from benchmarks.roofline import bytes_to_read
from benchmarks.tasks import Task, Work

FLOOR = "floor"
Record = dict[str, Any]


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
    """All that is known of one task on one pair; times in seconds, sizes in bytes, spreads over the rounds.

    "speedup" is how many times faster eddecode was than each alternative, "cost_over_floor" its time over that of
    the base alone; both are taken within rounds. "agreement" compares with what eddecode gave, where that makes sense.
    "commit" is the code that was measured.
    """
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
                    "bytes_to_read": bytes_to_read(pair, work, CONTENDERS[name].models),
                    "memory": memory.get(name),
                }
                for name in CONTENDERS
                if name in rounds.seconds
            },
            "agreement": {
                name: agreement(work, rounds.results[OURS], rounds.results[name])
                for name in CONTENDERS
                if CONTENDERS[name].models == 2
                and name != OURS
                and {name, OURS} <= rounds.results.keys()
                and (work.scoring or work.temperature == 0)
            },
        }
    )


def derived(entry: Record) -> Record:
    """The record with what follows from its rounds: medians and spreads, shares, ratios."""
    tokens = entry["rows"] * entry["new_tokens"]
    seconds = {name: contender["seconds"] for name, contender in entry["contenders"].items()}
    contenders = {}
    for name, contender in entry["contenders"].items():
        shares = [
            contender["bytes_to_read"] / bytes_per_s / s
            for bytes_per_s, s in zip(entry["bandwidths"], seconds[name], strict=True)
        ]
        contenders[name] = contender | {
            "tokens_per_s": spread([tokens / s for s in seconds[name]]),
            "roofline": spread(shares),
        }
    more: Record = {
        "bandwidth": spread(entry["bandwidths"]),
        "contenders": contenders,
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
    """One record of the rounds of two, the older ones first; both have the same contenders."""
    if old["contenders"].keys() != new["contenders"].keys():
        raise ValueError(f"{new['task']}: rounds of different contenders cannot be joined")
    contenders = {
        name: contender
        | {
            "seconds": old["contenders"][name]["seconds"] + contender["seconds"],
            "memory": contender["memory"] or old["contenders"][name]["memory"],
        }
        for name, contender in new["contenders"].items()
    }
    commits = dict.fromkeys(str(r["commit"]) for r in (old, new) if r["commit"])
    together = {
        "contenders": contenders,
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


def show_machine(console: Console, info: Record) -> None:
    """One line per topic."""
    console.print(
        f"eddecode {info['eddecode']} ({info['commit']}), torch {info['torch']}, transformers {info['transformers']}, "
        f"Python {info['python']}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"{info['cpu']}, {info['cores']} cores, {info['memory_gb']} GB, {info['cpu_capability']}; "
        f"{info['threads']} threads, on {info['device']}; load {info['load_at_start']:.1f}",
        highlight=False,
        soft_wrap=True,
    )


def show(console: Console, records: Sequence[Record]) -> None:
    """A table per pair; each figure is a median, with the least and the largest below."""
    known = {name for r in records for name in r["contenders"]}
    labels = [entry.label for name, entry in CONTENDERS.items() if name in known]
    console.print("; ".join(labels), highlight=False, soft_wrap=True)
    pairs = dict.fromkeys((r["size"], r["dtype"], r["pair"]) for r in records)
    for size, dtype, variant in pairs:
        mine = [r for r in records if (r["size"], r["dtype"], r["pair"]) == (size, dtype, variant)]
        gb = [r["bandwidth"]["median"] / 1e9 for r in mine]
        console.print(_speeds(f"{size} {dtype}, {variant} pair; read {min(gb):.1f}–{max(gb):.1f} GB/s", mine))
        if any(c["memory"] for r in mine for c in r["contenders"].values()):
            console.print(_memory(f"{size} {dtype}, {variant} pair; peak memory, MB", mine))
        for r in mine:
            for name, why in r["missing"].items():
                console.print(f"{r['task']} {CONTENDERS[name].label}: {why}", highlight=False)


def _speeds(title: str, records: Sequence[Record]) -> Table:
    known = [name for name in CONTENDERS if any(name in r["contenders"] for r in records)]
    speeds_in = [short(name) + "\ntok/s" for name in known]
    table = _table(title, [*speeds_in, "vs (a)", "vs (b)", "cost\nover (c)", "roof-\nline", "agrees"])
    for r in records:
        speeds = [_figure(r["contenders"].get(name, {}).get("tokens_per_s"), ".1f") for name in known]
        ours = r["contenders"].get(OURS, {})
        table.add_row(
            r["task"],
            *speeds,
            _figure(r["speedup"].get("authors"), ".2f", "×"),
            _figure(r["speedup"].get("processor"), ".2f", "×"),
            _figure(r.get("cost_over_floor"), ".2f", "×"),
            _figure(ours.get("roofline"), ".0%"),
            _agreement(r),
        )
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE)
    table.add_column("task", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def short(name: str) -> str:
    """A contender's name in the head of a column: ours, or the letter of an alternative."""
    return CONTENDERS[name].label.split()[0]


def _agreement(r: Record) -> str:
    if not r["agreement"]:
        return "–"
    if r["task"] == "T4":
        return f"to {max(r['agreement'].values()):.1g} nat"
    return f"{min(r['agreement'].values()):.0%}"


def _memory(title: str, records: Sequence[Record]) -> Table:
    known = [name for name in CONTENDERS if any(name in r["contenders"] for r in records)]
    table = _table(title, [*map(short, known), "weights + cache"])
    for r in records:
        memories = {name: c["memory"] or {} for name, c in r["contenders"].items()}
        needed = memories.get(OURS, {}).get("needed")
        table.add_row(
            r["task"],
            *(_megabytes(memories.get(name, {}).get("peak")) for name in known),
            _megabytes(needed),
        )
    return table


def _megabytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:,.0f}"


def _figure(values: dict[str, float] | None, how: str, unit: str = "") -> str:
    if values is None:
        return "–"
    middle, low, high = (format(values[key], how) for key in ("median", "min", "max"))
    return f"{middle}{unit}\n{low}–{high}"
