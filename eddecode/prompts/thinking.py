"""Reasoning in a completion: text between marks such as `<think>` and `</think>`, which is not the answer.

Judges read the answer. A block that never closes has no answer after it: what stands before it is judged, often
nothing, and it is counted. Some templates write the opening mark themselves, at the end of the prompt; a completion
then begins within its reasoning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MARKS = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, SmolLM3, GLM
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("[THINK]", "[/THINK]"),  # Magistral, where they are special tokens
)
FIRST_CHARACTERS = tuple(sorted({mark[0] for pair in MARKS for mark in pair}))
"""A text without any of these has no reasoning, unless its prompt opened it."""
_OPENED = re.compile(rf"(?:{'|'.join(re.escape(opening) for opening, _ in MARKS)})\s*\Z")


@dataclass(frozen=True)
class Answer:
    """A completion without its reasoning.

    Attributes:
        text: what is left, without white space where reasoning stood before it.
        reasoned: whether there was any reasoning.
        closed: False if a block never ends; text is then what stands before it.
    """

    text: str
    reasoned: bool
    closed: bool = True


def opens_thinking(prompt: str) -> bool:
    """Whether a rendered prompt ends with an opening mark, so that a completion begins within its reasoning."""
    return _OPENED.search(prompt) is not None


def answer_of(text: str, opened: bool = False) -> Answer:
    """A completion without its reasoning; opened: whether the prompt opened a block.

    >>> answer_of("<think>two and two</think>\\n\\nFour.").text, answer_of("so far").text
    ('Four.', 'so far')
    """
    found = False
    for opening, closing in MARKS:
        before, mark, after = text.partition(closing)
        if mark and opening not in before:  # it was opened by the prompt
            text, found, opened = after.lstrip(), True, False
        while opening in text:
            before, _, rest = text.partition(opening)
            _, mark, after = rest.partition(closing)
            if not mark:
                return Answer(before, reasoned=True, closed=False)
            text, found = before + after.lstrip(), True
    return Answer("", reasoned=True, closed=False) if opened else Answer(text, found)
