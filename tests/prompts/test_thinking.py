"""Reasoning is no part of an answer, and a block that never ends is known."""

from __future__ import annotations

import pytest

from eddecode.engine.detokenizer import StopStrings, TextDecoder
from eddecode.prompts.thinking import MARKS, Answer, answer_of, opens_thinking
from helpers import tiny


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("plain", False, Answer("plain", reasoned=False)),
        ("  kept as it is \n", False, Answer("  kept as it is \n", reasoned=False)),
        ("<think>a</think>\n\nb", False, Answer("b", reasoned=True)),
        ("<think></think>b", False, Answer("b", reasoned=True)),
        ("a <think>x</think> b <think>y</think> c", False, Answer("a b c", reasoned=True)),
        ("<think>\nso far", False, Answer("", reasoned=True, closed=False)),
        ("yes. <think>so far", False, Answer("yes. ", reasoned=True, closed=False)),
        ("<think>a</think>b<think>c", False, Answer("b", reasoned=True, closed=False)),
        # the prompt ends with <think>
        ("hm</think>\nb", True, Answer("b", reasoned=True)),
        ("hm", True, Answer("", reasoned=True, closed=False)),
        ("", True, Answer("", reasoned=True, closed=False)),
        ("hm</think>b<think>c</think>d", True, Answer("bd", reasoned=True)),
        ("hm</think>b", False, Answer("b", reasoned=True)),  # a prompt that nobody knows of
        ("<think> is a tag", False, Answer("", reasoned=True, closed=False)),
        ("[THINK]a[/THINK]b", False, Answer("b", reasoned=True)),
    ],
)
def test_the_answer_is_what_is_not_reasoning(text: str, opened: bool, expected: Answer) -> None:
    assert answer_of(text, opened) == expected


@pytest.mark.parametrize(("opening", "closing"), MARKS)
def test_every_pair_of_marks(opening: str, closing: str) -> None:
    assert answer_of(f"{opening}\na\n{closing}\n\nb") == Answer("b", reasoned=True)
    assert not answer_of(f"{opening}a").closed
    assert opens_thinking(f"<|assistant|>{opening}\n")
    assert not opens_thinking(f"{opening}{closing}\n\n")
    assert not opens_thinking(f"tell me what {opening} means")


def test_marks_that_are_special_tokens_stay_in_the_text() -> None:
    """Otherwise nothing would tell the reasoning from the answer."""
    tokenizer = tiny.tiny_tokenizer(extra=("[THINK]", "[/THINK]", "<|end|>"))
    decoder = TextDecoder(tokenizer)
    tokens = tokenizer("[THINK]so it is[/THINK]yes<|end|></s>", add_special_tokens=False)["input_ids"]
    assert decoder.text(tokens) == "[THINK]so it is[/THINK]yes"
    assert answer_of(decoder.text(tokens)).text == "yes"
    stops = StopStrings(decoder, ("[/THINK]",))
    assert [stops(tokens[:i]) for i in range(1, len(tokens))].index(True) == tokens.index(301)
    assert stops.cut(tokens[: tokens.index(301) + 1]) == "[THINK]so it is"
