"""Options that only `eddecode audit` has, in groups: what is asked, what is measured, what counts, how it is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from eddecode.cli.options import Canaries, given_only, parse_systems, parse_templates


@dataclass(frozen=True)
class PromptOptions:
    """What is asked."""

    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Prompts: .jsonl, .json, .csv, .parquet, plain text with one per line, a folder of save_to_disk, or "
            "hf:ORG/NAME#SPLIT (eddecode docs prompt-sets).",
            show_default=False,
        ),
    ] = None
    prompt_column: Annotated[
        str | None, typer.Option(help="Field with the prompt. Default: found by name.", show_default=False)
    ] = None
    category_column: Annotated[
        str | None, typer.Option(help="Field with the category. Default: found by name.", show_default=False)
    ] = None
    benign_prompts: Annotated[
        Path | None,
        typer.Option(
            help="Harmless prompts, in any of these forms: refusals are counted on them, beside the harm rates.",
            show_default=False,
        ),
    ] = None
    skip_too_long: Annotated[
        bool,
        typer.Option("--skip-too-long", help="Leave out prompts that a model cannot read, and name them."),
    ] = False
    limit: Annotated[
        int | None,
        typer.Option(help="Ask only so many of the prompts, from the first; a run can grow by the others."),
    ] = None

    def given(self) -> dict[str, Any]:
        """Those that were given, as fields of `AuditConfig`."""
        return given_only({**vars(self), "skip_too_long": self.skip_too_long or None})


@dataclass(frozen=True)
class ConditionOptions:
    """What is measured beside base, aligned and ED at the sweep's α's."""

    temperatures: Annotated[
        str | None, typer.Option(help="Further temperatures to measure, separated by commas: 0.7,1.3.")
    ] = None
    further_base_template: Annotated[
        list[str] | None,
        typer.Option(help="A further base template to measure, NAME=TEMPLATE; may be repeated."),
    ] = None
    further_aligned_template: Annotated[
        list[str] | None,
        typer.Option(help="A further aligned template to measure, NAME=TEMPLATE; may be repeated."),
    ] = None
    mitigations: Annotated[
        str | None,
        typer.Option(
            help="Limits on the logits to measure, separated by commas: topk5, round2, noise0.5, first10 …"
        ),
    ] = None
    system: Annotated[
        list[str] | None,
        typer.Option(help="A system prompt to measure, NAME=TEXT or NAME=@FILE; may be repeated."),
    ] = None
    transforms: Annotated[
        Path | None,
        typer.Option(
            help="Transforms of the prompts to measure: .jsonl or .csv with name, prefix, suffix, document."
        ),
    ] = None
    attacks: Annotated[
        list[str] | None,
        typer.Option(
            help="Attacks beside ED, separated by commas: weights@-0.3, lowrank@8, prefill:5, prefill=TEXT, "
            "handover:5, decoding, ablate, steer@1, w2s@1, amplify@0.5; may be repeated (eddecode docs attacks)."
        ),
    ] = None
    direction_harmful: Annotated[
        Path | None,
        typer.Option(
            help="Prompts that the aligned model refuses, for ablate and steer: half to fit, half to choose the layer."
        ),
    ] = None
    direction_harmless: Annotated[
        Path | None,
        typer.Option(
            help="Prompts that it answers, for ablate, and for KL to the aligned model of changed models."
        ),
    ] = None
    weak_base: Annotated[
        str | None, typer.Option(help="Base of a smaller pair of the same vocabulary, for w2s.")
    ] = None
    weak_aligned: Annotated[str | None, typer.Option(help="Aligned model of that pair.")] = None
    extra_alphas: Annotated[
        str | None,
        typer.Option(
            help="α's for mitigations, systems, transforms and the ensemble. Default: those above 0."
        ),
    ] = None
    finetuned: Annotated[
        str | None, typer.Option(help="A model trained to be harmful, decoded alone as a reference.")
    ] = None
    ensemble: Annotated[
        list[str] | None,
        typer.Option(
            help="Another aligned model of the same base, for a contrast with all of them; may be repeated."
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """Those that were given, as fields of `AuditConfig`.

        Raises:
            ConfigError: a system prompt or a template is not of its form, or a file cannot be read.
        """
        fields = dict(vars(self))
        system, attacks = fields.pop("system"), fields.pop("attacks")
        base, aligned = fields.pop("further_base_template"), fields.pop("further_aligned_template")
        fields["attacks"] = ",".join(attacks) if attacks else None
        fields["systems"] = parse_systems(system) if system else None
        fields["templates"] = parse_templates(base or (), aligned or ()) if base or aligned else None
        return given_only(fields)


@dataclass(frozen=True)
class EvidenceOptions:
    """What is kept of completions, what counts, and by what it will be judged."""

    no_text: Annotated[
        bool, typer.Option("--no-text", help="Keep digests and verdicts of completions, but no text.")
    ] = False
    min_tokens: Annotated[
        int | None,
        typer.Option(help="Exclude completions with fewer tokens from harm rates. Default: 0."),
    ] = None
    utility_loss: Annotated[
        float | None,
        typer.Option(help="Largest loss of utility at the headline α, as a fraction. Default: 0.1."),
    ] = None
    canaries: Canaries = None
    policy: Annotated[
        Path | None,
        typer.Option(
            help="Policy (TOML) by which the gate will judge the run; it then refuses another.",
            show_default=False,
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """Those that were given, as fields of `AuditConfig`."""
        fields = dict(vars(self))
        fields["keep_text"] = False if fields.pop("no_text") else None
        return given_only(fields)


@dataclass(frozen=True)
class RunOptions:
    """How a run is made; no completion depends on it."""

    grow: Annotated[
        bool,
        typer.Option(
            "--grow",
            help="Add to the run what this command has more: α's, conditions, prompts, samples, judges.",
        ),
    ] = False
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete the run in the folder first, and start over.")
    ] = False
    refine: Annotated[
        bool,
        typer.Option("--refine", help="Add α's where the sweep is too coarse to see the most harm."),
    ] = False
    shard: Annotated[
        str | None,
        typer.Option(
            help="Decode only this part of the prompts: 3/16 is the third of 16. eddecode merge joins the parts.",
            show_default=False,
        ),
    ] = None
    workers: Annotated[
        str | None,
        typer.Option(
            help="Decode in several processes by Ray: local:4, or a cluster's address and a count: ray://head:10001,8.",
            show_default=False,
        ),
    ] = None
