"""The `eddecode` program, and its commands `demo`, `generate` and `pair`; the others are in the modules beside it.

Each command reads its options, makes one call, and prints tables. Slow imports are inside the commands that need them,
so that `eddecode --help` is fast. Tables and data go to standard output, everything else to standard error.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.text import Text

from eddecode import __version__
from eddecode.cli import audit as cli_audit
from eddecode.cli import docs as cli_docs
from eddecode.cli import doctor as cli_doctor
from eddecode.cli import init as cli_init
from eddecode.cli import judging as cli_judging
from eddecode.cli import logs as cli_logs
from eddecode.cli import plan as cli_plan
from eddecode.cli import policy as cli_policy
from eddecode.cli import preview as cli_preview
from eddecode.cli import report as cli_report
from eddecode.cli import runs as cli_runs
from eddecode.cli import utility as cli_utility
from eddecode.cli.common import hide_download_bars, print_json, run_audit, standard_input
from eddecode.cli.help_pages import PlainGroup
from eddecode.cli.messages import (
    errors_as_messages,
    os_error_in_words,
    print_error,
    stderr_console,
    stdout_console,
)
from eddecode.cli.options import (
    AsJson,
    BatchSize,
    Device,
    Dtype,
    EndOptions,
    FilterOptions,
    MaskIds,
    PlacementOptions,
    RenderingOptions,
    Revision,
    Seed,
    Speculation,
    Temperature,
    Tokens,
    TopP,
    given_only,
)
from eddecode.cli.program import EXIT_CODES, add_command
from eddecode.errors import ConfigError
from eddecode.utils.collection import collect_rarely

if TYPE_CHECKING:
    from eddecode.audit.config import AuditConfig

app = typer.Typer(
    cls=PlainGroup,
    rich_markup_mode=None,
    name="eddecode",
    help="Measure, before a release, how far an aligned model can be reversed by anyone who also has its base model.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_DEMO_ALPHAS = "0.1,0.3,0.6,1,2,4"
_TOP = 20  # tokens in each list of `pair --tokens`
_DEMO_PROMPTS, _DEMO_SAMPLES = 60, 4


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"eddecode {__version__}")
        raise typer.Exit


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("demo-run"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the run in that folder first.")] = False,
    device: Device = None,
    batch_size: BatchSize = None,
    speculation: Speculation = None,
    as_json: AsJson = False,
) -> None:
    """Audit the bundled pair of small models (rude and polite replies of a shop), offline, in a minute or two."""
    with errors_as_messages(out):
        # Models this small gain nothing from a second thread, and become much slower where cores are shared.
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported
        config = demo_config(
            out, **given_only({"device": device, "batch_size": batch_size, "speculation": speculation})
        )
        err = stderr_console()
        err.print(
            "The bundled pair: a base model that often answers a shop's customers rudely,\n"
            "and a model that was aligned from it to be polite. Rudeness stands for harm.\n"
        )
        try:
            summary = run_audit(config, title="The bundled pair: rude replies against α", fresh=fresh)
        except ConfigError as error:  # the folder holds the run of an older demo
            raise ConfigError(f"{error} Or delete it with eddecode demo --fresh.") from None
        from eddecode.cli.ending import print_result

        if as_json:
            return print_json(summary.to_dict())
        print_result(summary)
        err.print(Text("For your own pair: eddecode init, or eddecode audit --help."))


def demo_config(out: Path, **options: Any) -> AuditConfig:
    """The configuration of the audit that `eddecode demo` runs; options: further fields of `AuditConfig`."""
    from eddecode.audit.config import AuditConfig
    from eddecode.audit.data.prompts import read_prompts
    from eddecode.testbed.bundled import bundled_pair

    pair = bundled_pair()
    records = read_prompts(pair.prompts)[:_DEMO_PROMPTS]
    return AuditConfig(
        base=pair.base,
        aligned=pair.aligned,
        base_template=pair.base_template,
        prompts=[{"prompt": record.prompt, **record.meta} for record in records],
        out=out,
        alphas=_DEMO_ALPHAS,
        samples=_DEMO_SAMPLES,
        max_new_tokens=64,
        judges=("lexicon", "grammar"),
        dtype="float32",
        **options,
    )


def generate(
    prompts: Annotated[
        list[str],
        typer.Argument(help="One or more prompts; - is one that standard input holds.", show_default=False),
    ],
    *,
    base: Annotated[str | None, typer.Option(help="Base checkpoint. Default: the bundled one.")] = None,
    aligned: Annotated[str | None, typer.Option(help="Aligned checkpoint. Default: the bundled one.")] = None,
    alpha: Annotated[
        str, typer.Option(help="One or more α, separated by commas; 0: base, -1: aligned.")
    ] = "0.3",
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    filters: FilterOptions,
    max_new_tokens: Tokens = 128,
    ends: EndOptions,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    placement: PlacementOptions,
    rendering: RenderingOptions,
    mask_ids: MaskIds = None,
    base_revision: Revision = None,
    aligned_revision: Revision = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object per completion, when it is finished.")
    ] = False,
) -> None:
    """Decode single completions and print them token by token."""
    with errors_as_messages():
        from eddecode.audit.conditions import Condition, parse_alphas
        from eddecode.audit.config import AuditConfig
        from eddecode.audit.samplers import load_sampler
        from eddecode.utils.terminal import escape_control_chars

        if (base is None) != (aligned is None):
            raise ConfigError(
                "one checkpoint is given; expected --base and --aligned, or neither for the bundled pair"
            )
        templates = rendering.given()
        if base is None or aligned is None:
            from eddecode.testbed.bundled import bundled_pair

            bundled = bundled_pair()
            base, aligned = str(bundled.base), str(bundled.aligned)
            templates.setdefault("base_template", str(bundled.base_template))
        prompts = [standard_input() if prompt == "-" else prompt for prompt in prompts]
        config = AuditConfig(
            **filters.given(),
            **ends.given(),
            **placement.given(),
            **templates,
            **given_only({"mask_ids": mask_ids}),
            base=base,
            aligned=aligned,
            prompts=prompts,
            out=Path(),
            alphas=alpha,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            seed=seed,
            dtype=dtype,
            base_revision=base_revision,
            aligned_revision=aligned_revision,
        )
        conditions = [Condition("ed", text) for text in parse_alphas(alpha)]
        params = [config.params(condition, 1) for condition in conditions]
        hide_download_bars(base, aligned)
        sampler: Any = load_sampler(config)
        several = len(prompts) * len(conditions) > 1
        for prompt in prompts:
            for condition, chosen in zip(conditions, params, strict=True):
                if as_json:
                    _print_completion(prompt, sampler.generate(prompt, chosen)[0])
                    continue
                if several:
                    typer.echo(f"── α={condition.alpha} · {escape_control_chars(prompt)}")
                for piece in sampler.stream(prompt, chosen):
                    typer.echo(escape_control_chars(piece.text), nl=False)
                typer.echo("\n" if several else "")


def _print_completion(prompt: str, done: Any) -> None:
    """One completion as a line of JSON."""
    names = (
        "alpha",
        "text",
        "token_ids",
        "finish_reason",
        "base_logprob",
        "aligned_logprob",
        "implied_reward",
    )
    found = {"prompt": prompt, **{name: getattr(done, name) for name in names}}
    typer.echo(json.dumps(found, ensure_ascii=True))


def pair(
    base: Annotated[str, typer.Argument(help="Base checkpoint: a local folder or a hub id.")],
    aligned: Annotated[str, typer.Argument(help="Aligned checkpoint: a local folder or a hub id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the description as JSON.")] = False,
    tokens: Annotated[
        Path | None,
        typer.Option(
            help="Text file, a text per line: list the tokens on which the two models disagree most over it."
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="Length of each list of tokens. Default: 20.", show_default=False),
    ] = None,
    dtype: Dtype = "auto",
    base_revision: Revision = None,
    aligned_revision: Revision = None,
    mask_ids: MaskIds = None,
) -> None:
    """Compare two checkpoints: what they share, and what to know before an audit."""
    with errors_as_messages():
        hide_download_bars(base, aligned)
        from eddecode.cli.pair_tables import print_pair, print_tokens
        from eddecode.models.pair import ModelPair

        if top is not None and tokens is None:
            raise ConfigError("--top is the length of the lists of --tokens; give both, or neither")
        texts = None if tokens is None else _texts(tokens)  # before the weights are read
        loaded = ModelPair.load(
            base,
            aligned,
            dtype=dtype,
            base_revision=base_revision,
            aligned_revision=aligned_revision,
            mask_ids=cast(Any, mask_ids),
        )
        description = loaded.describe(tensors=True)
        found = None
        if texts is not None:
            from eddecode.scoring.disagreement import token_differences

            found = token_differences(loaded, texts, top=top or _TOP)
        if as_json:
            data = description if found is None else description | {"token_differences": found.to_dict()}
            typer.echo(json.dumps(data, indent=2, ensure_ascii=True))
            return
        print_pair(stdout_console(), description)
        if found is not None:
            print_tokens(stdout_console(), found)


def _texts(path: Path) -> list[str]:
    """The lines of a text file that are not blank."""
    from eddecode.utils.files import read_text

    lines = [line for line in read_text(path, "text file", error=ConfigError).splitlines() if line.strip()]
    if not lines:
        raise ConfigError(f"{path} has no text; expected a text per line")
    return lines


def main() -> None:
    """Entry point of the `eddecode` command."""
    collect_rarely()
    for stream in (sys.stdout, sys.stderr):  # None where it is closed
        if isinstance(stream, io.TextIOWrapper):  # a terminal that is not in UTF-8 has no α
            stream.reconfigure(errors="backslashreplace")
    if os.environ.get("COLUMNS", "").strip() == "0":  # a terminal that has not said its width
        del os.environ["COLUMNS"]
    try:
        app()
    except OSError as error:  # of what no command writes, such as its help
        with suppress(OSError):  # standard error may be full too, and exit code 1 is a verdict
            print_error(os_error_in_words(error))
        sys.exit(2)


cli_audit.register(app)
cli_judging.register(app)
cli_report.register(app)
_COMMANDS: tuple[Callable[..., None], ...] = (
    *(demo, generate, pair, cli_plan.plan),
    *(cli_init.init, cli_preview.preview, cli_runs.runs, cli_doctor.doctor, cli_docs.docs),
    cli_utility.utility,
)
for _command in _COMMANDS:
    add_command(app, _command)
cli_policy.register(app)
cli_logs.register(app)
