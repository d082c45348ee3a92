"""How a chat template ends the assistant's turn: the token that a model learned to write there.

Many releases name only the end of the text in their generation config (`<|end_of_text|>`), and end turns with another
token (`<|eot_id|>`). A model that is never stopped there goes on with the user's next turn. The template knows: it
writes that token after an assistant's message.
"""

from __future__ import annotations

import re
from typing import Any

from eddecode.errors import PromptError
from eddecode.prompts.rendering import chat_source, render_chat

# Names that mean nothing else. Others depend on the release: gpt-oss ends its reasoning with `<|end|>` and goes on.
_END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|eom_id|>")
_PROBE = [
    {"role": "user", "content": "a question"},
    {"role": "assistant", "content": "the answer of the assistant"},
]


def end_of_turn_ids(tokenizer: Any, source: str | None = None) -> tuple[int, ...]:
    """The ids by which a chat template ends an assistant's turn; none without a template.

    Args:
        tokenizer: of the template.
        source: a Jinja template in the place of the tokenizer's own.
    """
    try:
        source = chat_source(tokenizer) if source is None else source
    except (PromptError, AttributeError):
        return ()
    tokens = {str(token): int(i) for i, token in tokenizer.added_tokens_decoder.items()}
    found = [tokens[name] for name in _END_OF_TURN if name in tokens and name in source]
    try:
        chat = render_chat(tokenizer, _PROBE, source=source, add_generation_prompt=False)
    except PromptError:  # one that takes no reply of an assistant, for example
        return tuple(found)
    spelt = re.compile(
        "|".join(map(re.escape, sorted(filter(str.strip, tokens), key=len, reverse=True))) or "(?!)"
    )
    start, end = chat.spans[-1]
    match = spelt.match(chat.text[end:].lstrip())
    # A template that always asks for an answer begins the next turn here, with what stands before this one.
    if match and match[0] not in spelt.findall(chat.text[:start])[-1:]:
        found.append(tokens[match[0]])
    return tuple(dict.fromkeys(found))
