"""How a run survives: kills, damage, full disks, moved folders, other machines, large inputs, long runs.

Every case makes runs with a sampler that writes texts by rule, so that no model is needed and thousands of completions
take seconds; the store, the judges, the summary and the report are the real ones. A figure is a count of cases; the
last column says which value is right. `docs/reliability.md` holds the table.

Mounting a file system needs root. Where that is refused, the cases that need one are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.choices import choices
from eddecode.audit import AuditConfig, audit
from eddecode.audit import run as audit_run
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.export.formats import export_jsonl
from eddecode.audit.judges.lexicon import LexiconJudge
from eddecode.audit.report.html import html_report
from eddecode.audit.store.store import Store
from eddecode.errors import EddecodeError, StoreError
from eddecode.outputs import Completion, TokenLogprobs
from eddecode.utils.files import atomic_write

ALPHAS = "0.3,0.6,1"


@dataclass(frozen=True)
class Figure:
    """A line of the table: what was tried, what came out, and what is right."""

    case: str
    found: str
    right: str
    ok: bool


class RuleSampler:
    """Completions by rule: harm rises with α, and everything depends on prompt, α and sample alone."""

    def as_completed(self, prompts: Any, params: Any) -> Iterator[Completion]:
        """As `Sampler.as_completed`."""
        for index, (prompt, p) in enumerate(zip(prompts, params, strict=True)):
            for sample in range(p.n):
                key = f"{prompt!s:.100}|{p.seed}|{sample}".encode()
                u = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") / 2**64
                text = f"this is answer {key.hex()[:20]} of them" + " idiot" * (u < 0.3 * (1 + p.alpha))
                tokens = [TokenLogprobs(-1.0, -1.0 - p.alpha / 10, -1.0)] * 12
                yield Completion(
                    *(index, sample, float(p.alpha), text, list(range(12)), "eos"),
                    *(-12.0, -12.0 - 1.2 * p.alpha, tokens),
                )


def config(out: Path, prompts: int | list[str] = 200, **changes: Any) -> AuditConfig:
    """An audit of a pair that is never loaded; prompts: how many, or the prompts themselves."""
    listed = [f"question {i}" for i in range(prompts)] if isinstance(prompts, int) else prompts
    wanted: dict[str, Any] = {"alphas": ALPHAS, "samples": 2, "prompts": listed}
    return AuditConfig(base="org/base", aligned="org/aligned", out=out, **{**wanted, **changes})


def run(settings: AuditConfig, **options: Any) -> Summary:
    """Run or continue the audit, without its picture."""
    return audit(settings, sampler=RuleSampler(), judges=[LexiconJudge(["idiot"])], **options)


def table(folder: Path) -> tuple[str, ...]:
    """All completions and verdicts of a run."""
    return tuple(export_jsonl(folder))


def forked(work: Callable[[Callable[[str], Any]], Any], seconds: float | None) -> tuple[bool, list[str]]:
    """Do some work in a child process, and kill it after some time: whether it was killed, and what it said."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            work(lambda text: os.write(writer, f"{text}\n".encode()))
            os._exit(0)
        os._exit(1)
    os.close(writer)
    if seconds is not None:
        until = time.monotonic() + seconds
        while (
            time.monotonic() < until
            and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        ):
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader) as pipe:
        said = pipe.read().splitlines()
    return os.WIFSIGNALED(os.waitpid(child, 0)[1]), said


# Cases -----------------------------------------------------------------------------------------------------------


def kills(root: Path, rng: random.Random, count: int) -> list[Figure]:
    """An audit that is killed at random moments and run again, each time from where it was."""
    alone = root / "alone"
    run(config(root / "warm"))  # what is imported on first use
    begun = time.monotonic()
    run(config(alone))
    duration = time.monotonic() - begun
    wanted, killed, lost, doubled, different = table(alone), 0, 0, 0, 0
    while killed < count:
        folder = root / f"kill-{killed}"
        reached = False
        while not reached and killed < count:
            was, said = forked(partial(_report_of, folder), rng.uniform(0, duration))
            killed += was
            reached = not was
            reported = max((int(line.split()[1]) for line in said if line.startswith("decode")), default=0)
            if (folder / "run.sqlite").is_file():
                with Store.read(folder) as store:
                    lost += max(0, reported - store.count())
                    doubled += store.count() - sum(map(len, store.done().values()))
        run(config(folder))
        different += table(folder) != wanted
        shutil.rmtree(folder)
    return [
        Figure(f"{killed} kills (SIGKILL at random moments): completions lost", str(lost), "0", not lost),
        Figure("… stored twice", str(doubled), "0", not doubled),
        Figure("… runs that end in another table", str(different), "0", not different),
    ]


def _report_of(folder: Path, say: Callable[[str], Any]) -> None:
    """The audit of a folder, which says what it reports as done."""
    run(config(folder), on_progress=lambda progress: say(f"{progress.stage} {progress.done}"))


def kills_of_reports(root: Path, rng: random.Random, count: int) -> list[Figure]:
    """Reports and summaries that are killed while they are written: the file is the old one or the new one."""
    summary, half = run(config(root / "report", prompts=60)), 0
    target, old = root / "report" / "report.html", "<html>old</html>"

    def write(say: Callable[[str], None]) -> None:
        for _ in range(1000):
            atomic_write(target, html_report(summary))
            summary.write()

    begun = time.monotonic()
    html_report(summary)
    once = time.monotonic() - begun
    for _ in range(count):
        target.write_text(old)
        forked(write, rng.uniform(0, 2 * once))
        half += not target.read_text().rstrip().endswith("</html>")
        Summary.read(root / "report")  # raises for half a file
    return [Figure(f"{count} kills while a report is written: half a file", str(half), "0", not half)]


def flips(root: Path, rng: random.Random, count: int) -> list[Figure]:
    """Copies of a run with one flipped bit each."""
    run(config(root / "whole", prompts=60))
    wanted = content(root / "whole")
    whole, found, harmless = (root / "whole" / "run.sqlite").read_bytes(), 0, 0
    copy = root / "flipped"
    for _ in range(count):
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        changed, at = bytearray(whole), rng.randrange(8 * len(whole))
        changed[at // 8] ^= 1 << at % 8
        (copy / "run.sqlite").write_bytes(changed)
        try:
            harmless += content(copy) == wanted
        except StoreError:
            found += 1
        except Exception:
            pass  # a trace is wrong too
    wrong = count - found - harmless
    return [
        Figure(f"{count} stores with a flipped bit: refused", str(found), "", True),
        Figure("… read as they were written (the bit is in unused space)", str(harmless), "", True),
        Figure("… read as something else, or a trace", str(wrong), "0", not wrong),
    ]


def content(folder: Path) -> tuple[Any, ...]:
    """All that is read of a run."""
    with Store.read(folder) as store:
        parts = (
            store.note("identity"),
            store.sessions(),
            store.prompts(),
            store.conditions(),
            store.judges(),
        )
        rewards = [list(values) for c in store.conditions() for values in store.rewards(c.name)]
        return (*map(repr, parts), repr(rewards), table(folder))


def file_limits(root: Path, rng: random.Random, count: int) -> list[Figure]:
    """Processes whose files may not grow beyond a limit, as on a full disk; then one without the limit goes on."""
    run(config(root / "alone"))
    wanted, size = table(root / "alone"), (root / "alone" / "run.sqlite").stat().st_size
    messages, different, traces = 0, 0, 0
    for number in range(count):
        folder, limit = root / f"limit-{number}", rng.randrange(20_000, size)

        def limited(say: Callable[[str], None], folder: Path = folder, limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                run(config(folder))
            except EddecodeError as error:
                say(f"message {error}")

        _, said = forked(limited, None)
        messages += any(line.startswith("message") for line in said)
        traces += not said
        run(config(folder))
        different += table(folder) != wanted
    return [
        Figure(
            f"{count} full disks (a limit on the file's size): a message",
            str(messages),
            str(count),
            not traces,
        ),
        Figure("… other tables after the run went on with space", str(different), "0", not different),
    ]


@contextmanager
def small_disk(root: Path, size: str) -> Iterator[Path | None]:
    """A file system of that size in memory; None where mounting is refused."""
    place = root / "disk"
    place.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False
    )
    try:
        yield place if mounted.returncode == 0 else None
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", str(place)], check=True)


def disks(root: Path) -> list[Figure]:
    """A disk that is full, and one that is read-only."""
    run(config(root / "alone"))
    wanted = table(root / "alone")
    with small_disk(root, "512k") as disk:
        if disk is None:
            return [Figure("a small disk, a read-only disk", "not tried: mounting is refused here", "", True)]
        said = message(lambda: run(config(disk / "run")))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        run(config(disk / "run"))
        same = table(disk / "run") == wanted
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        readable = table(disk / "run") == wanted
        refused = message(lambda: run(config(disk / "other")))
        again = message(lambda: run(config(disk / "run", samples=3), grow=True))
    return [
        Figure("a disk of 512 kB that is full: a message that says so", said, "full", "full" in said),
        Figure("… and the same table after it was enlarged", str(same), "True", same),
        Figure("a read-only disk: the run is read", str(readable), "True", readable),
        Figure("… another audit there: a message", refused, "", "Read-only" in refused),
        Figure("… the run cannot grow: a message", again, "", again != "none"),
    ]


def message(work: Callable[[], Any]) -> str:
    """The first words of the error that some work ends in; `none` without one."""
    try:
        work()
    except EddecodeError as error:
        return " ".join(str(error).split("; ", 1)[0].split(": ", 1)[-1].split())[:70]
    return "none"


def moves(root: Path) -> list[Figure]:
    """A folder that is renamed while its run is written."""
    run(config(root / "alone"))
    before, after = root / "before", root / "after"

    class Renaming(RuleSampler):
        def as_completed(self, prompts: Any, params: Any) -> Iterator[Completion]:
            for i, completion in enumerate(super().as_completed(prompts, params)):
                if i == 500:
                    before.rename(after)
                yield completion

    said = message(lambda: audit(config(before), sampler=Renaming(), judges=[LexiconJudge(["idiot"])]))
    shutil.rmtree(before, ignore_errors=True)
    run(config(after))
    same = table(after) == table(root / "alone")
    return [
        Figure("a run folder that is renamed in the middle: a message", said, "", said != "none"),
        Figure("… and the same table when the renamed one goes on", str(same), "True", same),
    ]


def other_machines(root: Path) -> list[Figure]:
    """Sessions under another clock, another number of threads, another device, another torch."""
    from eddecode.audit import environment

    run(config(root / "alone"))
    wanted, now = table(root / "alone"), datetime.now(UTC)

    class Stopping(RuleSampler):
        def as_completed(self, prompts: Any, params: Any) -> Iterator[Completion]:
            for i, completion in enumerate(super().as_completed(prompts, params)):
                if i == 500:
                    raise KeyboardInterrupt
                yield completion

    def changed(name: str, target: Any, attribute: str, value: Any) -> tuple[bool, bool]:
        folder, original = root / name, getattr(target, attribute)
        with suppress(KeyboardInterrupt):
            audit(config(folder), sampler=Stopping(), judges=[LexiconJudge(["idiot"])])
        setattr(target, attribute, value)
        try:
            summary = run(config(folder))
        finally:
            setattr(target, attribute, original)
        return table(folder) == wanted, any("differ in" in note for note in summary.notes)

    yesterday = now.replace(year=now.year - 1).isoformat(timespec="seconds")
    clock = changed("clock", audit_run, "_now", lambda: yesterday)
    facts = {
        "threads": ("_threads", lambda: 64),
        "device": ("_device", lambda _: "another GPU"),
        "torch": ("version", lambda package: f"0.0 of {package}"),
    }
    noted = {name: changed(name, environment, *change) for name, change in facts.items()}
    tables = clock[0] and all(same for same, _ in noted.values())
    notes = sum(note for _, note in noted.values())
    return [
        Figure(
            "a clock a year back, other threads, device, torch on resume: the same table",
            str(tables),
            "True",
            tables,
        ),
        Figure("… of the last three noted in the summary", f"{notes} of 3", "3 of 3", notes == 3),
    ]


def large_inputs(root: Path) -> list[Figure]:
    """20,000 equal prompts, and prompts of a megabyte."""
    begun = time.monotonic()
    summary = run(config(root / "equal", prompts=["the same"] * 20_000, samples=1, alphas="0.6"))
    seconds = time.monotonic() - begun
    counted = summary.distinct_prompts
    begun = time.monotonic()
    big = run(config(root / "big", prompts=[f"{i} " + "long " * 200_000 for i in range(10)], samples=1))
    return [
        Figure(
            f"20,000 equal prompts (60,000 completions, {seconds:.0f} s): prompts that count",
            str(counted),
            "1",
            counted == 1,
        ),
        Figure(
            f"10 prompts of 1 MB ({time.monotonic() - begun:.1f} s): prompts that count",
            str(big.distinct_prompts),
            "10",
            big.distinct_prompts == 10,
        ),
    ]


def long_runs(root: Path, completions: int) -> list[Figure]:
    """Memory and open files of one process that makes a run and goes on with it, from the first tenth to the end."""
    small = completions // 10 // 10
    run(config(root / "long", prompts=small, samples=2))
    memory, handles = resident(), len(os.listdir("/proc/self/fd"))
    run(config(root / "long", prompts=10 * small, samples=2), grow=True)
    grown, more = resident() - memory, len(os.listdir("/proc/self/fd")) - handles
    with Store.read(root / "long") as store:
        count = store.count()
    each = 1024 * grown / (count * 0.9)
    return [
        Figure(
            f"{count:,} completions in one process: memory after the last 90% of them",
            f"{grown / 1024:+.1f} MiB ({each:+.0f} bytes each)",
            "below 4 kB each",
            each < 4096,
        ),
        Figure("… open files more than before", str(more), "0", more <= 0),
    ]


def resident() -> float:
    """KiB of this process in memory."""
    import gc

    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmRSS")))


CASES = ("kills", "reports", "flips", "limits", "disks", "moves", "machines", "inputs", "long")


def main(arguments: list[str]) -> int:
    """Try all cases and print the table; exit code 1 where a figure is not right."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks reliability", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--limits", type=int, default=20)
    parser.add_argument("--completions", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", type=choices(CASES), default=list(CASES), help=f"some of {', '.join(CASES)}"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    # Pictures take longest, and are written after everything else.
    setattr(audit_run, "write_curve", lambda *_: [])  # noqa: B010
    rng, figures = random.Random(options.seed), list[Figure]()
    cases: dict[str, Callable[[Path], list[Figure]]] = {
        "kills": lambda root: kills(root, rng, options.kills),
        "reports": lambda root: kills_of_reports(root, rng, options.kills // 4),
        "flips": lambda root: flips(root, rng, options.flips),
        "limits": lambda root: file_limits(root, rng, options.limits),
        **{"disks": disks, "moves": moves, "machines": other_machines, "inputs": large_inputs},
        "long": lambda root: long_runs(root, options.completions),
    }
    print("| what was tried | found | right |\n|---|---|---|")
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            for figure in cases[name](Path(folder)):
                mark = "" if figure.ok else " **WRONG**"
                print(f"| {figure.case} | {figure.found}{mark} | {figure.right} |", flush=True)
                figures.append(figure)
    if options.json:
        options.json.write_text(json.dumps([vars(figure) for figure in figures], indent=1))
    return int(not all(figure.ok for figure in figures))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
