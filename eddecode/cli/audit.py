"""The commands that make a run: `audit`, and `merge` of its shards; and how an audit file and options are one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from eddecode.cli.audit_options import ConditionOptions, EvidenceOptions, PromptOptions, RunOptions
from eddecode.cli.common import follows_another_process, print_json, print_notes, run_audit
from eddecode.cli.messages import errors_as_messages
from eddecode.cli.options import (
    AsJson,
    EndOptions,
    FilterOptions,
    KeepThinking,
    MaskIds,
    PlacementOptions,
    RenderingOptions,
    Revision,
    given_only,
)
from eddecode.cli.program import add_command
from eddecode.errors import ConfigError

_ALPHAS = "0.1,0.3,0.6,1,2"
_REQUIRED = ("base", "aligned", "prompts", "out")


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (audit, merge):
        add_command(app, command)


def audit(
    *,
    base: Annotated[
        str | None, typer.Option(help="Base checkpoint: a local folder or a hub id.", show_default=False)
    ] = None,
    aligned: Annotated[
        str | None, typer.Option(help="Aligned checkpoint: a local folder or a hub id.", show_default=False)
    ] = None,
    asked: PromptOptions,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; the same command continues it.", show_default=False),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Audit file (TOML) with any of these; options of the command line take precedence.",
            show_default=False,
        ),
    ] = None,
    alphas: Annotated[
        str | None,
        typer.Option(help=f"Strengths α of the contrast, separated by commas. Default: {_ALPHAS}."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Completions per prompt and condition. Default: 1.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature; 0 is greedy. Default: 1.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Nucleus sampling on the contrasted distribution. Default: 1 (off)."),
    ] = None,
    filters: FilterOptions,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Maximum length of a completion, in tokens. Default: 128.")
    ] = None,
    ends: EndOptions,
    seed: Annotated[
        int | None, typer.Option(help="Random seed; the same seed gives the same completions. Default: 0.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Data type of the weights: auto, float32, bfloat16 or float16. Default: auto."),
    ] = None,
    placement: PlacementOptions,
    rendering: RenderingOptions,
    mask_ids: MaskIds = None,
    keep_thinking: KeepThinking = False,
    base_revision: Revision = None,
    aligned_revision: Revision = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="A judge: lexicon:FILE, guard:MODEL … (eddecode docs judges); may be repeated, the first must judge "
            "harm. later: decode now, and choose the judge with eddecode judge.",
            show_default=False,
        ),
    ] = None,
    conditions: ConditionOptions,
    evidence: EvidenceOptions,
    run: RunOptions,
    as_json: AsJson = False,
) -> None:
    """Measure how far a pair can be reversed: harm rates of base, aligned, and their contrast at each α.

    After an interruption, run the same command again to continue.
    """
    if follows_another_process():
        return
    given: dict[str, Any] = {
        **{"base": base, "aligned": aligned, "out": out, "alphas": alphas, "judges": judge},
        **{"samples": samples, "temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens},
        **{"seed": seed, "dtype": dtype, "mask_ids": mask_ids, "keep_thinking": keep_thinking or None},
        **{"base_revision": base_revision, "aligned_revision": aligned_revision},
    }
    with errors_as_messages(out):
        for group in (asked, filters, ends, placement, rendering, conditions, evidence):
            given |= group.given()
        chosen = merge_options(config, given_only(given))
        folder = Path(chosen["out"])
    with errors_as_messages(folder):
        from eddecode.audit.config import AuditConfig

        require_judge(chosen)
        from eddecode.cli.ending import print_result

        if run.grow and run.fresh:
            raise ConfigError(
                "--grow adds to the run in the folder, and --fresh deletes it; give one of them"
            )
        if run.shard is not None and run.refine:
            raise ConfigError("--refine needs the whole run; merge the shards first, then refine the run")
        summary = run_audit(AuditConfig(**chosen), **vars(run))
        if run.shard is not None and not as_json:
            return print_notes(summary)
        print_json(summary.to_dict()) if as_json else print_result(summary)


def merge_options(file: Path | None, given: dict[str, Any]) -> dict[str, Any]:
    """The options of an audit file, replaced by those of the command line."""
    from eddecode.audit.config_file import read_config_file

    chosen = {"alphas": _ALPHAS, **(read_config_file(file) if file is not None else {}), **given}
    for name in _REQUIRED:
        if name not in chosen:
            raise ConfigError(
                f"Missing option '--{name}': give it, or {name} = … in an audit file (--config)"
            )
    return chosen


def require_judge(chosen: dict[str, Any]) -> None:
    """Ask for a judge where none was chosen and the pair is not the bundled one, whose word list is the default.

    Raises:
        ConfigError: there is none.
    """
    from eddecode.testbed.bundled import bundled_pair

    base = Path(chosen["base"])
    toy = base.exists() and base.resolve() == bundled_pair().base.resolve()
    if "judges" not in chosen and not toy:
        raise ConfigError(
            "no judge of harm was chosen; give --judge (eddecode docs judges), or --judge later to decode now and "
            "choose the judge afterwards. The bundled word list (--judge lexicon) knows the rude replies of the "
            "bundled toy pair and no other harm"
        )


def merge(
    parts: Annotated[list[Path], typer.Argument(help="Folders of all shards.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the whole run.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Join the shards of an audit (audit --shard) to the run that one process would have made."""
    with errors_as_messages(out):
        from eddecode.audit.merging import merge as merge_shards
        from eddecode.cli.ending import print_result

        summary = merge_shards(parts, out)
        print_json(summary.to_dict()) if as_json else print_result(summary)
