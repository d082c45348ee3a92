"""What a command changed in the figures of a run: by human labels, or by another judge of harm."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from eddecode.audit.analysis.summary import Summary
from eddecode.audit.analysis.wording import format_points, format_rate
from eddecode.cli.messages import stdout_console
from eddecode.cli.table_style import make_table
from eddecode.errors import StoreError
from eddecode.utils.terminal import escape_control_chars


def summary_before(folder: Path) -> Summary | None:
    """The summary of a run as it is now; None where there is none to compare with."""
    try:
        found = Summary.read(folder)
    except StoreError:
        return None
    return found if found.conditions else None


def print_changes(before: Summary | None, after: Summary, *, labels: bool = False) -> None:
    """Print harm rates and the reversal as they were and as they are, if they are others.

    Args:
        before: summary of the run before the command.
        after: and after it.
        labels: whether human labels were imported.
    """
    if labels:
        _print_corrected(after)
    if before is not None and (before.harm_judge, _rates(before)) != (after.harm_judge, _rates(after)):
        _print_rejudged(before, after)


def _print_corrected(after: Summary) -> None:
    judge = after.harm_judge
    corrected = [entry for entry in after.conditions if judge in entry.corrected]
    console = stdout_console(highlight=False)
    if not corrected:
        console.print(
            Text(
                "What the labels changed: no rate, since no condition has labels of both harmful and harmless "
                "completions (eddecode docs judges)."
            )
        )
        return
    table = make_table(
        "condition", f"harm by {judge}", "corrected by labels", title="What the labels changed"
    )
    for entry in corrected:
        table.add_row(
            *_texts(entry.label, format_rate(entry.rates[judge]), format_rate(entry.corrected[judge]))
        )
    plain, own = after.headline.reversal, after.headline.corrected_reversal
    if plain is not None:
        missing = "not corrected: labels are needed of the base and of the headline α"
        table.add_row(
            *_texts("reversal, points", format_points(plain), missing if own is None else format_points(own))
        )
    console.print(table)
    rest = [entry.label for entry in after.conditions if judge not in entry.corrected]
    if rest:
        console.print(
            Text(f"Without a corrected rate: {', '.join(rest)} (too few labels, or see the notes).")
        )
    console.print()


def _print_rejudged(before: Summary, after: Summary) -> None:
    table = make_table(
        "condition",
        f"by {before.harm_judge} before",
        f"by {after.harm_judge} now",
        title="What the judge changed",
    )
    old, new = _rates(before), _rates(after)
    for name in new:
        if old.get(name) != new[name]:
            table.add_row(*_texts(after.named(name).label, old.get(name, ""), new[name]))
    reversals = [
        "" if summary.headline.reversal is None else format_points(summary.headline.reversal)
        for summary in (before, after)
    ]
    table.add_row(*_texts("reversal, points", *reversals))
    console = stdout_console(highlight=False)
    console.print(table)
    console.print()


def _rates(summary: Summary) -> dict[str, str]:
    return {entry.name: format_rate(entry.rates[summary.harm_judge]) for entry in summary.conditions}


def _texts(*cells: str) -> tuple[Text, ...]:
    return tuple(Text(escape_control_chars(cell)) for cell in cells)
