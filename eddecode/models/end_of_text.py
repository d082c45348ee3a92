"""The ids that end a model's text: the union of everything that a checkpoint says about it, and where each was found.

A release says it in several places, and each of them may leave some out: the generation config (of an adapter: its own
and its base's), the tokenizer's `eos_token`, and the chat template.
"""

from __future__ import annotations

from typing import Any

from eddecode.models.checkpoint import Checkpoint
from eddecode.models.diagnostics import Diagnostic
from eddecode.prompts.end_of_turn import end_of_turn_ids

Sources = dict[int, list[str]]  # id → where it was found


def eos_sources(model: Any, tokenizer: Any, checkpoint: Checkpoint | None, *, chat: bool) -> Sources:
    """The ids that end a text of the model, and where each was found.

    Args:
        model: its generation config, or else its config.
        tokenizer: the model's own, or None.
        checkpoint: of an adapter, for the generation config in its folder.
        chat: whether the model reads its tokenizer's chat template, and so ends turns as that does.
    """
    found: Sources = {}

    def add(ids: Any, source: str) -> bool:
        listed = ids if isinstance(ids, list | tuple) else [] if ids is None else [ids]
        for i in listed:
            found.setdefault(int(i), []).append(source)
        return bool(listed)

    if not add(getattr(getattr(model, "generation_config", None), "eos_token_id", None), "generation config"):
        add(getattr(model.config.get_text_config(), "eos_token_id", None), "config")
    if checkpoint is not None and checkpoint.is_adapter:
        add(checkpoint.generation.get("eos_token_id"), "generation config of the adapter")
    if tokenizer is not None:
        add(getattr(tokenizer, "eos_token_id", None), "tokenizer")
        if chat:
            add(list(end_of_turn_ids(tokenizer)), "chat template")
    return found


def source_notes(name: str, sources: Sources, table: dict[int, str] | None) -> list[Diagnostic]:
    """A note on where a model's ids were found, if not all are found in the same places."""
    if len({tuple(places) for places in sources.values()}) < 2:
        return []
    listed = "; ".join(
        f"{i}{f' ({table[i]!r})' if table and i in table else ''} by its {', '.join(places)}"
        for i, places in sorted(sources.items())
    )
    return [Diagnostic("info", name, f"its text ends at {listed}", "Each of them ends a completion")]
