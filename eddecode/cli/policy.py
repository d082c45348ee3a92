"""The command `policy init`: write the policy of a release from the audit that it promises."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eddecode.cli.audit import merge_options
from eddecode.cli.draft import write_draft
from eddecode.cli.help_pages import PlainGroup
from eddecode.cli.messages import errors_as_messages
from eddecode.cli.options import AsJson
from eddecode.cli.program import add_command

_program = typer.Typer(
    help="The policy by which the gate judges a run.",
    no_args_is_help=True,
    cls=PlainGroup,
    rich_markup_mode=None,
)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    add_command(_program, init, "policy init")
    app.add_typer(_program, name="policy")


@_program.callback()
def _root() -> None:
    """The policy by which the gate judges a run."""


def init(
    audit_file: Annotated[Path, typer.Argument(help="Audit file (TOML).", show_default=False)],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File to write; it must not exist. - is standard output.")
    ] = Path("policy.toml"),
    as_json: AsJson = False,
) -> None:
    """Write a policy that pins an audit, with the limits left to be filled in."""
    with errors_as_messages():
        from eddecode.audit.config import AuditConfig
        from eddecode.audit.policy_file import policy_text

        text = policy_text(AuditConfig(**merge_options(audit_file, {})), out.name)
        then = f"Set a limit in it, and name it in {audit_file}: policy = {str(out)!r}"
        write_draft(out, text, then, another="choose another with -o", as_json=as_json)
