"""The commands around a run: `audit` makes one, `judge` judges it again, `export` hands its completions on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from eddecode.cli.common import (
    AlignedTemplate,
    BaseTemplate,
    Device,
    Revision,
    Stop,
    errors_shown,
    progress_on_stderr,
    run_audit,
    show,
    show_files,
)
from eddecode.errors import ConfigError

_ALPHAS = "0.1,0.3,0.6,1,2"
_REQUIRED = ("base", "aligned", "prompts", "out")
_RunFolder = Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (audit, judge, export):
        app.command()(command)


def audit(
    base: Annotated[
        str | None, typer.Option(help="Base checkpoint: a local folder or a hub id.", show_default=False)
    ] = None,
    aligned: Annotated[
        str | None, typer.Option(help="Aligned checkpoint: a local folder or a hub id.", show_default=False)
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Prompts: .jsonl, .csv, or plain text, one a line.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; the same command goes on with it.", show_default=False),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Audit file (TOML) with any of these; what is given here wins.", show_default=False
        ),
    ] = None,
    alphas: Annotated[
        str | None,
        typer.Option(help=f"Strengths of the contrast, separated by commas. Default: {_ALPHAS}."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Completions per prompt and condition. Default: 1.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy. Default: 1.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Nucleus sampling on the contrasted distribution. Default: 1, which is off."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Length limit of a completion, in tokens. Default: 128.")
    ] = None,
    stop: Stop = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same completions. Default: 0.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of the weights: auto, float32, bfloat16 or float16. Default: auto."),
    ] = None,
    device: Device = None,
    base_template: BaseTemplate = None,
    aligned_template: AlignedTemplate = None,
    base_revision: Revision = None,
    aligned_revision: Revision = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="lexicon, lexicon:FILE, guard:MODEL … (docs/judges.md); may be repeated, the first judges harm. "
            "Default: lexicon.",
            show_default=False,
        ),
    ] = None,
    mitigations: Annotated[
        str | None,
        typer.Option(help="Limits to measure, separated by commas: topk5, round2, noise0.5, first10 …"),
    ] = None,
    system: Annotated[
        list[str] | None,
        typer.Option(help="NAME=TEXT or NAME=@FILE: a system prompt to try; may be repeated."),
    ] = None,
    transforms: Annotated[
        Path | None,
        typer.Option(
            help="Transforms of the prompts to try: .jsonl or .csv with name, prefix, suffix, document."
        ),
    ] = None,
    extra_alphas: Annotated[
        str | None,
        typer.Option(help="α's of those three and of the ensemble. Default: all of --alphas above 0."),
    ] = None,
    finetuned: Annotated[
        str | None, typer.Option(help="A model that was trained to be harmful, run alone as a reference.")
    ] = None,
    ensemble: Annotated[
        list[str] | None,
        typer.Option(help="Another aligned model of the same base, contrasted together; may be repeated."),
    ] = None,
    no_text: Annotated[
        bool, typer.Option("--no-text", help="Keep digests and verdicts of completions, and no text.")
    ] = False,
    min_tokens: Annotated[
        int | None,
        typer.Option(help="Leave completions with fewer tokens out of the figures. Default: 0."),
    ] = None,
    utility_loss: Annotated[
        float | None, typer.Option(help="Share of utility that the headline α may cost. Default: 0.1.")
    ] = None,
) -> None:
    """Measure how far a pair can be reversed: harm rate of base, aligned, and their contrast at each α.

    Stop it with Ctrl-C and run the same command again: it goes on where it was.
    """
    given: dict[str, Any] = {
        **{"base": base, "aligned": aligned, "prompts": prompts, "out": out, "alphas": alphas},
        **{"samples": samples, "temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens},
        **{"stop": stop, "seed": seed, "dtype": dtype, "device": device, "judges": judge},
        **{"base_template": base_template, "aligned_template": aligned_template},
        **{"base_revision": base_revision, "aligned_revision": aligned_revision},
        **{"mitigations": mitigations, "transforms": transforms, "extra_alphas": extra_alphas},
        **{"finetuned": finetuned, "ensemble": ensemble, "min_tokens": min_tokens},
        **{"utility_loss": utility_loss, "keep_text": False if no_text else None},
    }
    with errors_shown(out):
        if system:
            given["systems"] = _systems(system)
        chosen = _merged(config, {name: value for name, value in given.items() if value is not None})
        folder = Path(chosen["out"])
    with errors_shown(folder):
        from eddecode.audit.config import AuditConfig

        show(run_audit(AuditConfig(**chosen)))
        show_files(folder)


def _merged(file: Path | None, given: dict[str, Any]) -> dict[str, Any]:
    """What a file says and, over it, what the command line says."""
    from eddecode.audit.config_file import read_config_file

    chosen = {"alphas": _ALPHAS, **(read_config_file(file) if file is not None else {}), **given}
    for name in _REQUIRED:
        if name not in chosen:
            raise ConfigError(
                f"Missing option '--{name}' (or {name} = … in an audit file given with --config)"
            )
    return chosen


def _systems(given: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in given:
        name, sign, text = entry.partition("=")
        if not sign or name in found:
            raise ConfigError(f"--system is {entry!r:.60}; expected NAME=TEXT or NAME=@FILE, each name once")
        try:
            found[name] = Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--system {name}: {text[1:]} cannot be read ({error})") from error
    return found


def judge(
    run: _RunFolder,
    judge: Annotated[
        list[str] | None,
        typer.Option(help="A judge (docs/judges.md); may be repeated.", show_default=False),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV with human labels, by which judges are measured.", show_default=False),
    ] = None,
) -> None:
    """Judge a finished run again, or import human labels, without decoding anything."""
    with errors_shown(run):
        from eddecode.audit.run import rejudge

        if not judge and labels is None:
            raise ConfigError("nothing to judge by; expected --judge, --labels or both")
        with progress_on_stderr(run) as on_progress:
            summary = rejudge(run, judge or (), labels=labels, on_progress=on_progress)
        show(summary)
        show_files(run)


def export(
    run: _RunFolder,
    to: Annotated[str, typer.Option(help="Format: jsonl, csv, parquet, inspect.")] = "jsonl",
    out: Annotated[
        Path | None,
        typer.Option(help="File to write. Default: standard output; parquet needs one.", show_default=False),
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(help="Name of a condition, such as ed@0.3; may be repeated. Default: all."),
    ] = None,
) -> None:
    """Write a run's completions, with their verdicts, to standard output or a file."""
    with errors_shown():
        from eddecode.audit.export.formats import export_to

        for line in export_to(run, to, out, condition or ()):
            typer.echo(line)
