"""The command `preview`: what each model reads, under every condition, before anything is decoded.

Only the tokenizers are loaded. A prompt format that the aligned model was not trained on shows here, and not after
hours of decoding.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from eddecode.cli.audit import merge_options
from eddecode.cli.common import hide_download_bars, print_json
from eddecode.cli.messages import errors_as_messages, stdout_console
from eddecode.cli.options import AsJson, RenderingOptions, Revision, given_only, parse_systems
from eddecode.utils.terminal import escape_control_chars

if TYPE_CHECKING:
    from eddecode.audit.conditions import Condition
    from eddecode.audit.config import AuditConfig


def preview(
    *,
    config: Annotated[Path | None, typer.Option(help="Audit file (TOML).", show_default=False)] = None,
    base: Annotated[str | None, typer.Option(help="Base checkpoint.", show_default=False)] = None,
    aligned: Annotated[str | None, typer.Option(help="Aligned checkpoint.", show_default=False)] = None,
    prompts: Annotated[Path | None, typer.Option(help="Prompts of the audit.", show_default=False)] = None,
    system: Annotated[
        list[str] | None, typer.Option(help="A system prompt, NAME=TEXT or NAME=@FILE; may be repeated.")
    ] = None,
    transforms: Annotated[Path | None, typer.Option(help="Transforms of the prompts.")] = None,
    rendering: RenderingOptions,
    base_revision: Revision = None,
    aligned_revision: Revision = None,
    limit: Annotated[int, typer.Option(help="How many prompts to show, from the first.", min=1)] = 1,
    as_json: AsJson = False,
) -> None:
    """Show what each model reads under every condition of an audit; nothing is decoded."""
    with errors_as_messages():
        given = {
            **{"base": base, "aligned": aligned, "prompts": prompts, "out": "unused"},
            **{"transforms": transforms, "systems": parse_systems(system) if system else None},
            **{"base_revision": base_revision, "aligned_revision": aligned_revision},
            **rendering.given(),
        }
        from eddecode.audit.config import AuditConfig

        found = rendered_prompts(AuditConfig(**merge_options(config, given_only(given))), limit)
        print_json(found) if as_json else _print(found)


def rendered_prompts(config: AuditConfig, limit: int) -> list[dict[str, Any]]:
    """What the models read: `prompt` (its number), `conditions`, and per model the text and the number of tokens.

    Conditions that read the same are one entry. The text is that of the token ids, special tokens included.

    Raises:
        EddecodeError: a file, a tokenizer or a template cannot be used.
    """
    from eddecode.audit.judges.lexicon import LexiconJudge
    from eddecode.audit.plan import resolve
    from eddecode.models.checkpoint import open_checkpoint
    from eddecode.models.tokenizer_files import load_tokenizer
    from eddecode.prompts.templates import Renderer, TemplateOptions, make_template

    hide_download_bars(config.base, config.aligned)
    plan = resolve(config, [LexiconJudge(["unused"])])
    loaded = [
        load_tokenizer(open_checkpoint(path, side, revision))
        for path, side, revision in (
            (config.base, "base", config.base_revision),
            (config.aligned, "aligned", config.aligned_revision),
        )
    ]
    tokenizers = loaded[0] or loaded[1], loaded[1] or loaded[0]
    options = TemplateOptions(
        config.template_variables, config.fold_system, config.prefill, config.escape_specials
    )
    render: dict[str, Renderer] = {}
    for name in ("", *config.templates):
        specs = config.templates_of(name)
        render[name] = Renderer(
            make_template(specs["base_template"], tokenizers[0], "base", options=options),
            make_template(specs["aligned_template"], tokenizers[1], "aligned", options=options),
        ).checked(config.template_variables)
    groups: dict[tuple[str, ...], list[str]] = {}
    first: dict[tuple[str, ...], Condition] = {}
    for condition in plan.conditions:
        read = (condition.system, condition.transform, condition.template)
        groups.setdefault(read, []).append(condition.name)
        first.setdefault(read, condition)
    found = []
    for record in plan.prompts[:limit]:
        for key, names in groups.items():
            prompt = render[first[key].template](plan.prompt_under(first[key], record))
            found.append(
                {
                    "prompt": record.index,
                    "conditions": names,
                    **{
                        side: {"text": tokenizer.decode(ids, skip_special_tokens=False), "tokens": len(ids)}
                        for side, tokenizer, ids in zip(
                            ("base", "aligned"), tokenizers, prompt.ids, strict=True
                        )
                    },
                }
            )
    return found


def _print(found: list[dict[str, Any]]) -> None:
    console = stdout_console(highlight=False)
    for entry in found:
        console.print(Text(f"Prompt {entry['prompt']}: {', '.join(entry['conditions'])}", style="bold"))
        for side in ("base", "aligned"):
            console.print(Text(f"  {side} reads {entry[side]['tokens']} tokens:"))
            for line in entry[side]["text"].split("\n"):
                console.print(Text(f"    │{escape_control_chars(line)}"), soft_wrap=True)
        console.print()
