"""How a function becomes a command of the program, with an example and its exit codes in its help."""

from __future__ import annotations

from collections.abc import Callable

import typer

from eddecode.cli.help_pages import PlainCommand
from eddecode.cli.messages import guarded
from eddecode.cli.option_groups import with_option_groups

EXAMPLES = {
    "audit": "eddecode audit --base org/base --aligned org/chat --prompts p.jsonl --judge guard:org/guard --out run",
    "compare": "eddecode compare runs/v1 runs/v2 --to html",
    "demo": "eddecode demo --out demo-run",
    "docs": "eddecode docs judges",
    "doctor": "eddecode doctor",
    "export": "eddecode export run --to csv --condition ed@0.3 --out completions.csv",
    "gate": "eddecode gate run --max-reversal 5% --json gate.json",
    "generate": "eddecode generate 'hello, where is my kettle?' --alpha 0,0.6,-1",
    "import inspect": "eddecode import inspect logs --out run, then eddecode gate run --max-reversal 5%",
    "init": "eddecode init audit.toml, then eddecode audit --config audit.toml",
    "judge": "eddecode judge run --judge guard:org/guard",
    "label-sheet": "eddecode label-sheet run --out sheet.csv, then eddecode judge run --labels sheet.csv",
    "merge": "eddecode merge parts/* --out run",
    "pair": "eddecode pair org/base org/chat",
    "plan": "eddecode plan pilot-run --max-reversal 0.05",
    "policy init": "eddecode policy init audit.toml --out policy.toml",
    "preview": "eddecode preview --config audit.toml --limit 2",
    "report": "eddecode report run --max-reversal 5%",
    "runs": "eddecode runs results",
    "utility": "eddecode utility run --tasks hellaswag,arc_easy --limit 200",
}
EXIT_CODES = (
    "Exit codes: 0 done (gate: pass), 1 gate: fail, 2 an error, 3 gate: inconclusive, 130 stopped by Ctrl-C."
)
_EXIT_CODES = {
    "gate": "Exit codes: 0 pass, 1 fail, 2 cannot be checked, 3 inconclusive, 130 stopped by Ctrl-C."
}
_USUAL = "Exit codes: 0 done, 2 an error, 130 stopped by Ctrl-C."


def add_command(app: typer.Typer, function: Callable[..., None], path: str | None = None) -> None:
    """Add a function to the program as the command of its name.

    Args:
        app: the program, or a group of its commands.
        function: its parameters are the options, or groups of options (`eddecode.cli.option_groups`).
        path: names of the groups and of the command; None: the function's name.
    """
    path = path or function.__name__
    example = EXAMPLES.get(path)
    lines = [*([] if example is None else [f"Example: {example}"]), _EXIT_CODES.get(path, _USUAL)]
    command = guarded(with_option_groups(function))
    what = " ".join((function.__doc__ or "").split("\n\n")[0].split())  # whole: click would cut it
    app.command(name=path.split()[-1], epilog="\n\n".join(lines), short_help=what, cls=PlainCommand)(command)
