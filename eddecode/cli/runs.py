"""The command `runs`: the runs in a folder, with the state of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from eddecode.cli.common import print_json
from eddecode.cli.messages import errors_as_messages, stdout_console
from eddecode.cli.options import AsJson
from eddecode.cli.table_style import make_table
from eddecode.errors import ConfigError, StoreError
from eddecode.utils.terminal import escape_control_chars

_DEPTH = 3  # levels of folders that are looked into


def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look, three levels deep.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder: finished, unfinished, not judged, or damaged."""
    with errors_as_messages():
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {folder}; expected one with runs in it")
        found = [describe_run(run) for run in run_folders(folder)]
        if as_json:
            return print_json(found)
        if not found:
            typer.echo(f"There is no run in {escape_control_chars(str(folder))}.")
            return
        table = make_table("run", "state", "base → aligned", "prompts", "reversal")
        for column in table.columns:
            column.justify, column.overflow = "left", "fold"
        for run in found:
            pair = "" if run["base"] is None else f"{run['base']} → {run['aligned']}"
            place = Path(run["run"])
            name = str(place.relative_to(folder)) if place != folder else str(place)
            cells = (name, run["state"], pair, _number(run["prompts"]), run["reversal"] or "")
            table.add_row(*(Text(escape_control_chars(str(cell))) for cell in cells))
        stdout_console(highlight=False).print(table)


def run_folders(folder: Path) -> Iterator[Path]:
    """The folders with a run, in the order of their paths."""
    from eddecode.audit.store.schema import FILE

    patterns = [FILE, *("/".join(["*"] * depth + [FILE]) for depth in range(1, _DEPTH + 1))]
    yield from sorted({path.parent for pattern in patterns for path in folder.glob(pattern)})


def describe_run(folder: Path) -> dict[str, Any]:
    """A run as data: `run`, `state`, its pair, and how far it is.

    The state is `finished`, `decoding` (in use), `unfinished`, `not judged`, `no summary`, `not begun` or `unreadable`
    (with the reason in `error`).
    """
    from eddecode.audit.store.store import Store

    found: dict[str, Any] = dict.fromkeys(
        ("base", "aligned", "prompts", "conditions", "completions", "expected", "harm_judge", "started")
    )
    found = {"run": str(folder), "state": "", **found, "reversal": None, "error": None}
    try:
        with Store.read(folder) as store:
            identity = store.note("identity")
            if identity is None:
                return {**found, "state": "not begun"}
            sessions = store.sessions()
            found |= {
                **{side: str(identity[side]).partition(", digest ")[0] for side in ("base", "aligned")},
                **{"prompts": len(store.prompts()), "conditions": len(store.conditions())},
                **{"completions": store.count(), "expected": store.expected()},
                "started": sessions[0]["started"] if sessions else None,
            }
            judged = [judge.name for judge in store.judges() if judge.role == "harm"]
    except StoreError as error:
        return {**found, "state": "unreadable", "error": str(error)}
    return found | _state(folder, found, judged)


def _state(folder: Path, found: Mapping[str, Any], judged: list[str]) -> dict[str, Any]:
    from eddecode.audit.analysis.summary import Summary
    from eddecode.audit.analysis.wording import format_points
    from eddecode.audit.store.lock import is_locked

    if is_locked(folder):
        return {"state": f"in use: {found['completions']} of {found['expected']}"}
    if found["completions"] < found["expected"]:
        return {"state": f"unfinished: {found['completions']} of {found['expected']}"}
    if not judged:
        return {"state": "not judged"}
    try:
        summary = Summary.read(folder)
    except StoreError as error:
        return {"state": "no summary", "harm_judge": judged[0], "error": str(error)}
    reversal = summary.headline.reversal
    return {
        "state": "finished",
        "harm_judge": summary.harm_judge,
        "reversal": None if reversal is None else format_points(reversal),
    }


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
