"""What the commands share: options, progress, and the output of a run.

Slow imports are inside the functions that need them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from eddecode.cli.messages import errors_as_messages, print_notice, stderr_console
from eddecode.errors import ConfigError
from eddecode.prompts.presets import FAMILIES
from eddecode.utils.torchrun import launched, rank

if TYPE_CHECKING:
    from eddecode.audit.analysis.summary import Summary
    from eddecode.audit.config import AuditConfig
    from eddecode.audit.decode import LoadedSamplers, Progress

_TEMPLATES = f"chat, a file with {{prompt}}, a .jinja file, or a preset of the paper ({', '.join(FAMILIES)})."
BaseTemplate = Annotated[
    str | None, typer.Option(help=f"{_TEMPLATES} Default: a plain instruction template.")
]
AlignedTemplate = Annotated[str | None, typer.Option(help=f"{_TEMPLATES} Default: its chat template.")]
Dtype = Annotated[str, typer.Option(help="Data type of the weights: auto, float32, bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 … Default: a GPU if there is one.")]
Temperature = Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Nucleus sampling on the contrasted distribution; 1 turns it off.")]
Tokens = Annotated[int, typer.Option(help="Maximum length of a completion, in tokens.")]
Seed = Annotated[int, typer.Option(help="Random seed; the same seed gives the same completions.")]
Stop = Annotated[list[str] | None, typer.Option(help="A string that ends a completion; may be repeated.")]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        help='Where the layers go, as in transformers: auto, or a JSON object {"base": …, "aligned": …}.'
    ),
]
Quantization = Annotated[
    str | None, typer.Option(help="Round the weights as they are loaded: 8bit or 4bit (needs bitsandbytes).")
]
BatchSize = Annotated[
    int | None,
    typer.Option(help="Most completions that are decoded together; none depends on it. Default: 64.", min=1),
]
Speculation = Annotated[
    str | None,
    typer.Option(
        help="What drafts tokens: off, base, ngram, auto, or a small model; no completion depends on it."
    ),
]
TopK = Annotated[int | None, typer.Option(help="Keep the k most likely tokens; 0 turns it off. Default: 0.")]
MinP = Annotated[
    float | None,
    typer.Option(help="Keep tokens with this share of the most likely one's probability. Default: 0 (off)."),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        help="Divide logits of tokens that prompt or completion have, as in transformers. Default: 1 (off)."
    ),
]
PresencePenalty = Annotated[
    float | None,
    typer.Option(help="Subtract from the logits of tokens that the completion has. Default: 0 (off)."),
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option(help="Subtract that often as the completion has the token. Default: 0 (off)."),
]
SuppressEos = Annotated[bool, typer.Option("--suppress-eos", help="Never sample the end of a text.")]
IgnoreEos = Annotated[
    bool, typer.Option("--ignore-eos", help="Do not stop at the end of a text, but at the length limit.")
]
LongContext = Annotated[
    bool,
    typer.Option(
        "--long-context",
        help="Read texts of every length by the rotary angles for long ones, where a model has such (Phi-4-mini).",
    ),
]
TemplateVar = Annotated[
    list[str] | None,
    typer.Option(
        help="A variable of the chat template, NAME=VALUE with a JSON value or text, such as enable_thinking=false; "
        "may be repeated."
    ),
]
FoldSystem = Annotated[
    bool,
    typer.Option(
        "--fold-system", help="Where a chat template has no system role, put the text before the user's."
    ),
]
Prefill = Annotated[
    str | None, typer.Option(help="Text with which the assistant's turn begins; completions follow it.")
]
EscapeSpecials = Annotated[
    bool,
    typer.Option(
        "--escape-specials/--no-escape-specials", help="Special tokens that are spelt in a prompt stay text."
    ),
]
MaskIds = Annotated[
    str | None,
    typer.Option(help="differing: mask ids that stand for different tokens in the two tokenizers."),
]
KeepThinking = Annotated[
    bool,
    typer.Option(
        "--keep-thinking", help="Judges read reasoning (<think> … </think>) too, not the answer alone."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.", show_default=False)]


def parse_device_map(text: str | None) -> Any:
    """`auto` and the like as they are; a JSON object as a mapping.

    Raises:
        ConfigError: it begins like a JSON object and is none.
    """
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"--device-map is {text!r:.60}, which is not JSON ({error}); expected auto, or an object"
        ) from None


def decoding_options(
    device_map: str | None,
    quantization: str | None,
    batch_size: int | None,
    speculation: str | None,
    top_k: int | None,
    min_p: float | None,
    penalties: tuple[float | None, float | None, float | None],
    suppress_eos: bool,
    ignore_eos: bool,
    long_context: bool = False,
) -> dict[str, Any]:
    """The fields of `AuditConfig` for the options that every command that decodes has; None: not given."""
    return {
        **{
            "device_map": parse_device_map(device_map),
            "quantization": quantization,
            "batch_size": batch_size,
        },
        **{"speculation": speculation, "top_k": top_k, "min_p": min_p},
        **dict(zip(("repetition_penalty", "presence_penalty", "frequency_penalty"), penalties, strict=True)),
        **{"suppress_eos": suppress_eos or None, "ignore_eos": ignore_eos or None},
        "long_context": long_context or None,
    }


def rendering_options(
    template_var: Sequence[str] | None,
    fold_system: bool,
    prefill: str | None,
    escape_specials: bool,
    mask_ids: str | None = None,
    keep_thinking: bool = False,
) -> dict[str, Any]:
    """The fields of `AuditConfig` for the options about what models and judges read; None: not given."""
    return {
        **{"template_variables": parse_variables(template_var) if template_var else None},
        **{"fold_system": fold_system or None, "prefill": prefill, "mask_ids": mask_ids},
        **{"escape_specials": None if escape_specials else False, "keep_thinking": keep_thinking or None},
    }


def parse_variables(given: Sequence[str]) -> dict[str, Any]:
    """Template variables given as NAME=VALUE; a value that is no JSON is text.

    Raises:
        ConfigError: another form, or a name twice.
    """
    found: dict[str, Any] = {}
    for entry in given:
        name, sign, text = entry.partition("=")
        if not sign or not name.isidentifier() or name in found:
            raise ConfigError(
                f"--template-var is {entry!r:.60}; expected NAME=VALUE, such as enable_thinking=false, each name once"
            )
        try:
            found[name] = json.loads(text.lower() if text in ("True", "False") else text)
        except ValueError:
            found[name] = text
    return found


def parse_systems(given: Sequence[str]) -> dict[str, str]:
    """Name → text of system prompts given as NAME=TEXT or NAME=@FILE.

    Raises:
        ConfigError: another form, a name twice, or a file that cannot be read.
    """
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


def parse_templates(base: Sequence[str], aligned: Sequence[str]) -> dict[str, dict[str, str]]:
    """Further templates by name, from `NAME=TEMPLATE` for each side.

    Raises:
        ConfigError: an entry has no name, or a name is given twice for one side.
    """
    found: dict[str, dict[str, str]] = {}
    for side, listed in (("base", base), ("aligned", aligned)):
        for entry in listed:
            name, sign, text = entry.partition("=")
            if not sign or side in found.get(name, {}):
                raise ConfigError(
                    f"--further-{side}-template is {entry!r:.60}; expected NAME=TEMPLATE, each name once"
                )
            found.setdefault(name, {})[side] = text
    return found


def given_only(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def print_json(value: Any) -> None:
    """Data on standard output as JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=True))


def hide_download_bars(*checkpoints: str | Path) -> None:
    """Turn off the progress bars of huggingface_hub, unless a checkpoint is going to be downloaded."""
    if all(Path(checkpoint).is_dir() for checkpoint in checkpoints):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when transformers is imported


def run_audit(
    config: AuditConfig,
    title: str | None = None,
    *,
    grow: bool = False,
    fresh: bool = False,
    refined: bool = False,
    shard: str | None = None,
    workers: str | None = None,
) -> Summary:
    """Run an audit with its progress and its notices on standard error, and a line if it continues an earlier run."""
    from eddecode.audit.refine import refine
    from eddecode.audit.run import audit

    hide_download_bars(config.base, config.aligned)
    with progress_on_stderr(Path(config.out)) as on_progress:
        options: dict[str, Any] = {"title": title, "on_progress": on_progress, "on_notice": print_notice}
        if workers is not None:
            options["sampler"] = _ray_samplers(workers)
        with _over_processes(options):
            if refined:
                return refine(config, fresh=fresh, **options)
            return audit(config, grow=grow, fresh=fresh, shard=shard, **options)


def follows_another_process() -> bool:
    """Where torchrun started this process beside a first one: do what that one does with the models, and say True."""
    if rank() == 0:
        return False
    from eddecode.integrations.tensor_parallel import follow

    with errors_as_messages():
        follow()
    return True


@contextmanager
def _over_processes(options: dict[str, Any]) -> Iterator[None]:
    """Within the block models are split over the processes of torchrun, if it started this one."""
    if not launched():
        yield
        return
    if "sampler" in options:
        raise ConfigError(
            "--workers starts processes itself; start eddecode without torchrun, or drop --workers"
        )
    from eddecode.integrations.tensor_parallel import dismiss, lead

    options["sampler"] = lead()
    yield
    dismiss()


def _ray_samplers(workers: str) -> LoadedSamplers:
    """Samplers whose work is done by Ray's actors."""
    from eddecode.audit.decode import LoadedSamplers
    from eddecode.integrations.ray_workers import RaySampler, Workers

    asked = Workers.parse(workers)
    return LoadedSamplers(lambda config, model: RaySampler(config, model, asked))


@contextmanager
def progress_on_stderr(folder: Path) -> Iterator[Callable[[Progress], None]]:
    """A function that shows the progress of a run on standard error.

    Args:
        folder: of the run; named in a line if the run continues an earlier one.
    """
    from eddecode.cli.progress import progress_display

    console, begun = stderr_console(), False
    with progress_display(console) as display:

        def on_progress(progress: Progress) -> None:
            nonlocal begun
            if not begun and progress.done and progress.stage != "judge":
                left = progress.total - progress.done
                what = f"{left} completions are left to decode" if left else "nothing is left to decode"
                console.print(Text(f"Continuing the run in {folder}: {what}."), soft_wrap=True)
            begun = True
            display(progress)

        yield on_progress


def print_summary(summary: Summary) -> None:
    """Print the tables of a run, their caption and the run's notes."""
    from eddecode.cli.tables import benign_table, caption, comparison_tables, rates_table

    console = Console()
    console.print(rates_table(summary))
    for table in comparison_tables(summary):
        console.print(table)
    if summary.benign is not None:
        console.print(benign_table(summary))
    console.print(Text(caption(summary), style="dim"))
    for note in summary.notes:
        console.print(Text(f"Note: {note}."))
    console.print()


def print_notes(summary: Summary) -> None:
    """Print the notes of a run that has no figures yet."""
    for note in summary.notes:
        Console(soft_wrap=True).print(Text(f"{note[:1].upper()}{note[1:]}."))


def print_files(out: Path) -> None:
    """Print the paths of a run's files."""
    console = Console(soft_wrap=True)
    for what, name in (("run", ""), ("summary", "summary.json"), ("picture", "curve.svg"), ("", "curve.png")):
        console.print(Text(f"{what:8} {out / name}"))
