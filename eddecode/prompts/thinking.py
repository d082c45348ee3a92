"""Reasoning in a completion: text between marks such as `<think>` and `</think>`, which is not the answer.

Judges read the answer. A block that never closes has no answer after it: what stands before it is judged, often
nothing, and it is counted. Some templates write the opening mark themselves, at the end of the prompt; a completion
then begins within its reasoning. gpt-oss writes messages in channels (the harmony format, github.com/openai/harmony,
docs/format.md): the channel `analysis` is its reasoning, all others are for the user or a tool, and are read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

MARKS = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, SmolLM3, GLM
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("[THINK]", "[/THINK]"),  # Magistral, where they are special tokens
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere Command A Reasoning, special tokens
    ("<|channel>", "<channel|>"),  # Gemma 4, special tokens
)
FIRST_CHARACTERS = tuple(sorted({mark[0] for pair in MARKS for mark in pair}))
"""A text without any of these has no reasoning, unless its prompt opened it."""
_CHANNEL, _MESSAGE, _START = "<|channel|>", "<|message|>", "<|start|>"
# Special tokens of the harmony format, where a tokenizer has the first two.
HARMONY = (_CHANNEL, _MESSAGE, _START, "<|end|>", "<|call|>", "<|constrain|>")
_REASONING_CHANNEL = "analysis"
_END_OF_MESSAGE = re.compile(r"<\|(?:start|end|call|return)\|>")
_ROLES = ("", "assistant", "user", "system", "developer", "tool")
_OPENED = re.compile(
    rf"(?:{'|'.join(re.escape(opening) for opening, _ in MARKS)}|<\|channel\|>\s*analysis\s*<\|message\|>)\s*\Z"
)


def kept_marks(special: Collection[str]) -> frozenset[str]:
    """The special tokens, of those that a tokenizer has, that tell reasoning from the answer in a decoded text."""
    harmony = HARMONY if _CHANNEL in special and _MESSAGE in special else ()
    return frozenset({mark for pair in MARKS for mark in pair} | set(harmony)).intersection(special)


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
    if any(mark in text for mark in (_CHANNEL, _MESSAGE, _START)):
        return _answer_in_channels(text, opened)
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


def _answer_in_channels(text: str, opened: bool) -> Answer:
    """The contents of all messages that are no reasoning. What is no message by the format's rules is no reasoning."""
    kept, reasoned, open_ended = [], opened, False
    for at, part in enumerate(_messages(text)):
        head, mark, content = part.partition(_MESSAGE)
        _, channel_mark, channel = head.partition(_CHANNEL)
        name, _, rest = channel.strip().partition(" ")
        if (
            not mark
        ):  # a head without a message: the end of a text that was cut off, or text outside of the format
            content = rest if channel_mark else "" if at and head.strip() in _ROLES else head
        open_ended = name == _REASONING_CHANNEL or (opened and at == 0 and not channel_mark)
        if open_ended:
            reasoned = True
        elif content.strip():
            kept.append(content)
    return Answer("\n".join(kept), reasoned, closed=not open_ended)


def _messages(text: str) -> Iterator[str]:
    """Messages with their heads; a channel begins one too, where no mark ended the one before."""
    for part in _END_OF_MESSAGE.split(text):
        head, mark, content = part.partition(_MESSAGE)
        if not mark:
            yield head
        while mark:
            content, channel_mark, more = content.partition(_CHANNEL)
            yield head + mark + content
            head, mark, content = (channel_mark + more).partition(_MESSAGE)
            if head and not mark:
                yield head
