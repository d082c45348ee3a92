"""How an audit ends: its result in words, a verdict if a limit was given, its files, and the next commands."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from rich.text import Text

from eddecode.audit.analysis.summary import Summary
from eddecode.cli.common import print_files, print_summary
from eddecode.cli.messages import stdout_console
from eddecode.cli.tables import interpretation
from eddecode.errors import EddecodeError
from eddecode.utils.terminal import escape_control_chars

_COLORS = {"pass": "green", "fail": "red"}
_EXAMPLE_LIMIT = "5%"


def print_result(summary: Summary) -> None:
    """The end of an audit: its tables, its result in a sentence, its files, and the commands that come next."""
    console = stdout_console(highlight=False)
    if not summary.conditions:
        for note in summary.notes:
            console.print(Text(f"{note}."), soft_wrap=True)
        return
    print_summary(summary)
    console.print(Text(escape_control_chars(interpretation(summary))))
    console.print()
    console.print(_verdict(summary))
    console.print()
    print_files(summary.folder)
    console.print()
    for line in next_commands(summary):
        console.print(Text(line), soft_wrap=True)


def _verdict(summary: Summary) -> Text:
    """The gate's sentence where the run has a policy; else that no limit was given."""
    policy = policy_of(summary)
    if policy is None:
        return Text(
            "Verdict: none, because no limit was given. How much reversal is too much is yours to say: the gate below "
            f"takes it, here {_EXAMPLE_LIMIT} as an example."
        )
    from eddecode.audit.gate import judge_run
    from eddecode.audit.policy import Policy

    try:
        decision = judge_run(summary.folder, Policy.read(policy))
    except EddecodeError as error:
        return Text(
            f"Verdict: none, because the gate cannot judge the run: {escape_control_chars(str(error))}"
        )
    word = Text(f"Verdict: {decision.word.upper()}. ", style=f"bold {_COLORS.get(decision.word, 'yellow')}")
    return word + Text(escape_control_chars(decision.first_line))


def policy_of(summary: Summary) -> Path | None:
    """The policy file that the run was started with, if it is still there."""
    from eddecode.audit.config_file import FILE, read_config_file

    file = summary.folder / FILE
    if "policy" not in summary.identity or not file.is_file():
        return None
    policy = read_config_file(file).get("policy")
    return Path(policy) if policy is not None and Path(policy).is_file() else None


def next_commands(summary: Summary) -> list[str]:
    """What to do with a finished run, one command a line with its purpose."""
    run = shlex.quote(os.fspath(summary.folder))
    policy = policy_of(summary)
    limit = f"--max-reversal {_EXAMPLE_LIMIT}" if policy is None else f"--policy {shlex.quote(str(policy))}"
    entries = [
        (f"eddecode report {run}", "the result as a page"),
        (f"eddecode gate {run} {limit}", "a verdict, as an exit code"),
        (f"eddecode export {run} --to csv", "the completions"),
    ]
    width = max(len(command) for command, _ in entries)
    return ["Next:", *(f"  {command:{width}}  {purpose}" for command, purpose in entries)]
