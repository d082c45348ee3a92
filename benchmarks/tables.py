"""Tables and progress bars in the terminal, for all benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.registry import ALTERNATIVES, OURS
from benchmarks.results import Record


def make_console(width: int = 120) -> Console:
    """A console of the terminal's width; in a file, of the given one."""
    console = Console()
    return console if console.is_terminal else Console(width=width)


def progress(console: Console) -> Progress:
    """A progress bar that disappears when it is full."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def make_table(title: str, columns: Sequence[str], text_columns: int = 1) -> Table:
    """An empty table; the first columns hold text, the others figures."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < text_columns else "right", no_wrap=True)
    return table


def format_spread(values: Mapping[str, float] | None, how: str, unit: str = "", scale: float = 1) -> str:
    """`2.00× (1.80–2.20)`: median, smallest and largest value, as `measure.spread` gives them."""
    if values is None:
        return "–"
    middle, low, high = (format(scale * values[key], how) for key in ("median", "min", "max"))
    return f"{middle}{unit} ({low}–{high})"


def show_machine(console: Console, info: Record) -> None:
    """Versions in one line, hardware in another."""
    for line in (
        f"eddecode {info['eddecode']} ({info['commit']}), torch {info['torch']}, "
        f"transformers {info['transformers']}, Python {info['python']}",
        f"{info['cpu']}, {info['cores']} cores, {info['memory_gb']} GB, {info['cpu_capability']}; "
        f"{info['threads']} threads, on {info['device']}; load {info['load_at_start']:.1f}",
    ):
        console.print(line, highlight=False, soft_wrap=True)


def show(console: Console, records: Sequence[Record]) -> None:
    """A table per pair, with a line for each alternative of each task; figures are medians with their range."""
    for pair in dict.fromkeys((r["size"], r["dtype"], r["pair"]) for r in records):
        mine = [r for r in records if (r["size"], r["dtype"], r["pair"]) == pair]
        rates = [r["bandwidth"]["median"] / 1e9 for r in mine]
        title = "{} {}, {} pair".format(*pair) + f"; read {min(rates):.1f}–{max(rates):.1f} GB/s"
        columns = (
            "task",
            "alternative",
            "tok/s",
            "time ÷ eddecode",
            "roofline",
            "agrees",
            "peak MB",
            "first, s",
        )
        lines = [
            (r["task"], *_line(r, name)) for r in mine for name in ALTERNATIVES if name in r["contenders"]
        ]
        filled = [i for i in range(len(columns)) if any(line[i] for line in lines)]
        table = make_table(title, [columns[i] for i in filled], text_columns=2)
        for line in lines:
            table.add_row(*(line[i] for i in filled))
        console.print(table)
        for r in mine:
            for name, why in r["missing"].items():
                console.print(f"{r['task']} {ALTERNATIVES[name].label}: {why}", highlight=False)


def _line(r: Record, name: str) -> list[str]:
    """One alternative: its time over eddecode's is above 1 where eddecode is faster."""
    entry = r["contenders"][name]
    memory, first = entry["memory"] or {}, entry.get("first_seconds")
    agreement = r["agreement"].get(name)
    agrees = (
        "" if agreement is None else f"to {agreement:.1g} nat" if r["task"] == "T4" else f"{agreement:.0%}"
    )
    return [
        ALTERNATIVES[name].label,
        format_spread(entry["tokens_per_s"], ".1f"),
        "" if name == OURS else format_spread(r["speedup"].get(name), ".2f", "×"),
        f"{entry['roofline']['median']:.0%}",
        agrees,
        f"{memory['peak'] / 1e6:,.0f}" if "peak" in memory else "",
        "" if first is None else f"{first:.1f}",
    ]
