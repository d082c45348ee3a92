"""The commands that make a run: `audit`, and `merge` of its shards; and how an audit file and options are one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from eddecode.cli.common import follows_another_process, print_json, print_notes, run_audit
from eddecode.cli.messages import errors_as_messages
from eddecode.cli.options import (
    AsJson,
    Canaries,
    EndOptions,
    FilterOptions,
    KeepThinking,
    MaskIds,
    PlacementOptions,
    RenderingOptions,
    Revision,
    given_only,
    parse_systems,
    parse_templates,
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
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Prompts: .jsonl, .json, .csv, .parquet, plain text with one per line, a folder of save_to_disk, or "
            "hf:ORG/NAME#SPLIT (eddecode docs prompt-sets).",
            show_default=False,
        ),
    ] = None,
    prompt_column: Annotated[
        str | None, typer.Option(help="Field with the prompt. Default: found by name.", show_default=False)
    ] = None,
    category_column: Annotated[
        str | None, typer.Option(help="Field with the category. Default: found by name.", show_default=False)
    ] = None,
    benign_prompts: Annotated[
        Path | None,
        typer.Option(
            help="Harmless prompts, in any of these forms: refusals are counted on them, beside the harm rates.",
            show_default=False,
        ),
    ] = None,
    skip_too_long: Annotated[
        bool,
        typer.Option("--skip-too-long", help="Leave out prompts that a model cannot read, and name them."),
    ] = False,
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
    limit: Annotated[
        int | None,
        typer.Option(help="Ask only so many of the prompts, from the first; a run can grow by the others."),
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
    temperatures: Annotated[
        str | None, typer.Option(help="Further temperatures to measure, separated by commas: 0.7,1.3.")
    ] = None,
    further_base_template: Annotated[
        list[str] | None,
        typer.Option(help="A further base template to measure, NAME=TEMPLATE; may be repeated."),
    ] = None,
    further_aligned_template: Annotated[
        list[str] | None,
        typer.Option(help="A further aligned template to measure, NAME=TEMPLATE; may be repeated."),
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
    mitigations: Annotated[
        str | None,
        typer.Option(
            help="Limits on the logits to measure, separated by commas: topk5, round2, noise0.5, first10 …"
        ),
    ] = None,
    system: Annotated[
        list[str] | None,
        typer.Option(help="A system prompt to measure, NAME=TEXT or NAME=@FILE; may be repeated."),
    ] = None,
    transforms: Annotated[
        Path | None,
        typer.Option(
            help="Transforms of the prompts to measure: .jsonl or .csv with name, prefix, suffix, document."
        ),
    ] = None,
    attacks: Annotated[
        list[str] | None,
        typer.Option(
            help="Attacks beside ED, separated by commas: weights@-0.3, lowrank@8, prefill:5, prefill=TEXT, "
            "handover:5, decoding, ablate, steer@1, w2s@1, amplify@0.5; may be repeated (eddecode docs attacks)."
        ),
    ] = None,
    direction_harmful: Annotated[
        Path | None,
        typer.Option(
            help="Prompts that the aligned model refuses, for ablate and steer: half to fit, half to choose the layer."
        ),
    ] = None,
    direction_harmless: Annotated[
        Path | None,
        typer.Option(
            help="Prompts that it answers, for ablate, and for KL to the aligned model of changed models."
        ),
    ] = None,
    weak_base: Annotated[
        str | None, typer.Option(help="Base of a smaller pair of the same vocabulary, for w2s.")
    ] = None,
    weak_aligned: Annotated[str | None, typer.Option(help="Aligned model of that pair.")] = None,
    extra_alphas: Annotated[
        str | None,
        typer.Option(
            help="α's for mitigations, systems, transforms and the ensemble. Default: those above 0."
        ),
    ] = None,
    finetuned: Annotated[
        str | None, typer.Option(help="A model trained to be harmful, decoded alone as a reference.")
    ] = None,
    ensemble: Annotated[
        list[str] | None,
        typer.Option(
            help="Another aligned model of the same base, for a contrast with all of them; may be repeated."
        ),
    ] = None,
    no_text: Annotated[
        bool, typer.Option("--no-text", help="Keep digests and verdicts of completions, but no text.")
    ] = False,
    min_tokens: Annotated[
        int | None,
        typer.Option(help="Exclude completions with fewer tokens from harm rates. Default: 0."),
    ] = None,
    utility_loss: Annotated[
        float | None,
        typer.Option(help="Largest loss of utility at the headline α, as a fraction. Default: 0.1."),
    ] = None,
    canaries: Canaries = None,
    grow: Annotated[
        bool,
        typer.Option(
            "--grow",
            help="Add to the run what this command has more: α's, conditions, prompts, samples, judges.",
        ),
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete the run in the folder first, and start over.")
    ] = False,
    refine: Annotated[
        bool,
        typer.Option("--refine", help="Add α's where the sweep is too coarse to see the most harm."),
    ] = False,
    policy: Annotated[
        Path | None,
        typer.Option(
            help="Policy (TOML) by which the gate will judge the run; it then refuses another.",
            show_default=False,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Decode only this part of the prompts: 3/16 is the third of 16. eddecode merge joins the parts.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            help="Decode in several processes by Ray: local:4, or a cluster's address and a count: ray://head:10001,8.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how far a pair can be reversed: harm rates of base, aligned, and their contrast at each α.

    After an interruption, run the same command again to continue.
    """
    if follows_another_process():
        return
    given: dict[str, Any] = {
        **{
            "base": base,
            "aligned": aligned,
            "prompts": prompts,
            "out": out,
            "alphas": alphas,
            "limit": limit,
        },
        **{"prompt_column": prompt_column, "category_column": category_column},
        **{"benign_prompts": benign_prompts, "skip_too_long": skip_too_long or None},
        **{"samples": samples, "temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens},
        **{"seed": seed, "dtype": dtype, "judges": judge},
        **{"mask_ids": mask_ids, "keep_thinking": keep_thinking or None},
        **{"base_revision": base_revision, "aligned_revision": aligned_revision},
        **{"mitigations": mitigations, "transforms": transforms, "extra_alphas": extra_alphas},
        **{"attacks": ",".join(attacks) if attacks else None},
        **{"direction_harmful": direction_harmful, "direction_harmless": direction_harmless},
        **{"weak_base": weak_base, "weak_aligned": weak_aligned},
        **{"finetuned": finetuned, "ensemble": ensemble, "min_tokens": min_tokens},
        **{"canaries": canaries, "policy": policy, "temperatures": temperatures},
        **{"utility_loss": utility_loss, "keep_text": False if no_text else None},
    }
    with errors_as_messages(out):
        for group in (filters, ends, placement, rendering):
            given |= group.given()
        if system:
            given["systems"] = parse_systems(system)
        if further_base_template or further_aligned_template:
            given["templates"] = parse_templates(further_base_template or (), further_aligned_template or ())
        chosen = merge_options(config, given_only(given))
        folder = Path(chosen["out"])
    with errors_as_messages(folder):
        from eddecode.audit.config import AuditConfig

        require_judge(chosen)
        from eddecode.cli.ending import print_result

        if grow and fresh:
            raise ConfigError(
                "--grow adds to the run in the folder, and --fresh deletes it; give one of them"
            )
        if shard is not None and refine:
            raise ConfigError("--refine needs the whole run; merge the shards first, then refine the run")
        summary = run_audit(
            AuditConfig(**chosen), grow=grow, fresh=fresh, refined=refine, shard=shard, workers=workers
        )
        if shard is not None and not as_json:
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
