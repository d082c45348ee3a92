"""What loading says of a chat template: whether it writes what it is given, tried on a probe before anything runs."""

from __future__ import annotations

from typing import Any

from eddecode.errors import PromptError
from eddecode.models.diagnostics import NO_CHAT_TEMPLATE, Diagnostic
from eddecode.prompts.rendering import chat_source, render_chat
from eddecode.prompts.template_process import variables_of

_USER = {"role": "user", "content": "a question"}
_SYSTEM = {"role": "system", "content": "a rule"}


def template_notes(name: str, tokenizer: Any) -> list[Diagnostic]:
    """Notes on the chat template of an aligned model; none where it writes every message."""
    if tokenizer is None or not hasattr(tokenizer, "get_chat_template"):
        return []
    if not getattr(tokenizer, "chat_template", None):
        way_out = "Give the prompt format it was aligned with: aligned_template= or --aligned-template"
        return [Diagnostic("warning", name, NO_CHAT_TEMPLATE, way_out)]
    try:
        render_chat(tokenizer, [_USER])
    except PromptError as error:
        return [Diagnostic("warning", name, str(error), "Prompts are refused until then")]
    notes = _missing_tokens(name, tokenizer)
    try:
        render_chat(tokenizer, [_SYSTEM, _USER])
    except PromptError:
        note = "its chat template takes no system message"
        notes.append(Diagnostic("info", name, note, "A system prompt needs fold_system=True, --fold-system"))
    return notes


def _missing_tokens(name: str, tokenizer: Any) -> list[Diagnostic]:
    """A note on each special token that the template writes and the tokenizer does not have: nothing stands there."""
    read = variables_of(chat_source(tokenizer))
    missing = [
        token for token in ("bos_token", "eos_token") if token in read and not getattr(tokenizer, token, None)
    ]
    hint = "Check that tokenizer_config.json is there and belongs to the template"
    what = "its chat template reads {}, and the tokenizer has none: nothing is written there"
    return [Diagnostic("warning", name, what.format(token), hint) for token in missing]
