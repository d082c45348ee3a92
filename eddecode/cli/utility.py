"""`eddecode utility`: benchmarks of a pair at every α; it needs the extra `lm-eval`."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from eddecode.cli.common import hide_download_bars, print_json
from eddecode.cli.messages import errors_as_messages, stderr_console, stdout_console
from eddecode.cli.options import Device, Dtype, Revision
from eddecode.cli.table_style import make_table
from eddecode.errors import ConfigError
from eddecode.utils.terminal import escape_control_chars
from eddecode.utils.validation import require_unique, split_list

if TYPE_CHECKING:
    from eddecode.audit.analysis.benchmark_parts import BenchmarkFigure

_ALPHAS = "-1,0,0.3,1"


def utility(
    run: Annotated[
        Path | None,
        typer.Argument(help="Folder of a run: its pair and α's, and its report.", show_default=False),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks of lm-evaluation-harness, separated by commas.", show_default=False),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Base checkpoint, without a run.", show_default=False)
    ] = None,
    aligned: Annotated[
        str | None, typer.Option(help="Aligned checkpoint, without a run.", show_default=False)
    ] = None,
    alphas: Annotated[
        str | None,
        typer.Option(help=f"Strengths α, without a run; 0: base, -1: aligned. Default: {_ALPHAS}."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Documents per task. Default: all.", min=1)] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Examples in front of each document. Default: as the task says.", min=0)
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(help="Folder with further tasks (YAML).", show_default=False)
    ] = None,
    apply_chat_template: Annotated[
        bool,
        typer.Option("--apply-chat-template", help="Render contexts by the aligned model's chat template."),
    ] = False,
    dtype: Dtype = "auto",
    device: Device = None,
    base_revision: Revision = None,
    aligned_revision: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure what a reversal costs on benchmarks, at every α; of a run, the table becomes part of its report."""
    with errors_as_messages():
        if find_spec("lm_eval") is None:
            raise ConfigError(
                "benchmarks need lm-evaluation-harness, which is not installed; install it: "
                "pip install 'eddecode[lm-eval]'"
            )
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        settings: dict[str, Any] = {
            "limit": limit,
            "num_fewshot": num_fewshot,
            "include_path": include_path,
            "apply_chat_template": apply_chat_template,
            "on_alpha": _announce,
        }
        names = [] if tasks is None else split_list(tasks, "task")
        require_unique(names, "task")
        if run is not None:
            own = (base, aligned, alphas, device, base_revision, aligned_revision)
            figures = _of_run(run, (*own, None if dtype == "auto" else dtype), names, settings)
        else:
            options = {
                "base": base,
                "aligned": aligned,
                "dtype": dtype,
                "device": device,
                "base_revision": base_revision,
                "aligned_revision": aligned_revision,
            }
            figures = _of_pair(options, _ALPHAS if alphas is None else alphas, names, settings)
        if as_json:
            print_json([figure.model_dump(mode="json") for figure in figures])
        else:
            print_benchmarks(figures)
        if run is not None:
            stderr_console().print(Text(f"Recorded in {run}; eddecode report {run} has the table."))


def _of_run(
    run: Path, without: tuple[str | None, ...], names: list[str], settings: dict[str, Any]
) -> list[BenchmarkFigure]:
    if any(value is not None for value in without):
        raise ConfigError(
            "--base, --aligned, --alphas, --dtype, --device and revisions are for a pair without a run; leave them "
            "out, or the run"
        )
    from eddecode.integrations.lm_eval.utility import measure_run

    figures, _ = measure_run(run, names, **settings)
    return figures


def _of_pair(
    options: dict[str, Any], alphas: str, names: list[str], settings: dict[str, Any]
) -> list[BenchmarkFigure]:
    from eddecode.audit.conditions import parse_alphas
    from eddecode.integrations.lm_eval.utility import measure_utility
    from eddecode.integrations.pair_options import PairOptions

    chosen = PairOptions(**options)
    own = chosen.resolved()
    hide_download_bars(str(own.base), str(own.aligned))
    return measure_utility(chosen.load(), parse_alphas(alphas), names, **settings)


def print_benchmarks(figures: list[BenchmarkFigure]) -> None:
    """Print the table of the report."""
    from eddecode.audit.report.benchmarks_section import benchmarks_table

    table = benchmarks_table(tuple(figures))
    if table is None:
        raise ConfigError("the tasks have no metric that is a number")
    shown = make_table(*map(escape_control_chars, table.columns), title=table.caption)
    for row in table.rows:
        shown.add_row(*(Text(escape_control_chars(cell)) for cell in row.cells))
    stdout_console().print(shown)


def _announce(alpha: str) -> None:
    stderr_console().print(Text(f"Benchmarks at α = {alpha} …", style="dim"))
