"""Options that several commands have: each by itself, groups of those that come together, and how they are read.

A group is a parameter of a command; `eddecode.cli.option_groups` makes an option of each of its fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from eddecode.errors import ConfigError
from eddecode.prompts.presets import FAMILIES

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
RunFolder = Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)]
Canaries = Annotated[
    Path | None,
    typer.Option(
        help="Completions whose harm is known (.jsonl), by which the harm judge is shown to see harm.",
        show_default=False,
    ),
]
ConditionNames = Annotated[
    list[str] | None,
    typer.Option(help="Name of a condition, such as ed@0.3; may be repeated. Default: all."),
]


@dataclass(frozen=True)
class FilterOptions:
    """Which tokens can be sampled, beside top-p; and penalties."""

    top_k: TopK = None
    min_p: MinP = None
    repetition_penalty: RepetitionPenalty = None
    presence_penalty: PresencePenalty = None
    frequency_penalty: FrequencyPenalty = None

    def given(self) -> dict[str, Any]:
        """Those that were given, as fields of `AuditConfig`."""
        return given_only(vars(self))


@dataclass(frozen=True)
class EndOptions:
    """Where a completion ends, beside its greatest length."""

    suppress_eos: SuppressEos = False
    ignore_eos: IgnoreEos = False
    long_context: LongContext = False
    stop: Stop = None

    def given(self) -> dict[str, Any]:
        """Those that were given, as fields of `AuditConfig`."""
        return {name: value for name, value in vars(self).items() if value}


@dataclass(frozen=True)
class PlacementOptions:
    """Where and how models are run; no completion depends on it, but for quantization."""

    device: Device = None
    device_map: DeviceMap = None
    quantization: Quantization = None
    batch_size: BatchSize = None
    speculation: Speculation = None

    def given(self) -> dict[str, Any]:
        """Those that were given, as fields of `AuditConfig`.

        Raises:
            ConfigError: the device map is not JSON.
        """
        return given_only({**vars(self), "device_map": parse_device_map(self.device_map)})


@dataclass(frozen=True)
class RenderingOptions:
    """How prompts become what the models read."""

    base_template: BaseTemplate = None
    aligned_template: AlignedTemplate = None
    template_var: TemplateVar = None
    fold_system: FoldSystem = False
    prefill: Prefill = None
    escape_specials: EscapeSpecials = True

    def given(self) -> dict[str, Any]:
        """Those that were given, as fields of `AuditConfig`.

        Raises:
            ConfigError: a template variable is not NAME=VALUE.
        """
        fields: dict[str, Any] = {
            "base_template": self.base_template,
            "aligned_template": self.aligned_template,
            "template_variables": parse_variables(self.template_var) if self.template_var else None,
            "fold_system": self.fold_system or None,
            "prefill": self.prefill,
            "escape_specials": None if self.escape_specials else False,
        }
        return given_only(fields)


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
