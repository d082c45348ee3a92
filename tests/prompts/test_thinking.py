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


A = "<|channel|>analysis<|message|>"
F = "<|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        (f"{A}r<|end|>{F}x", False, Answer("x", reasoned=True)),
        (f"r<|end|>{F}x", True, Answer("x", reasoned=True)),  # the prompt ends with the head of the analysis
        (f"{A}r", False, Answer("", reasoned=True, closed=False)),
        ("r", True, Answer("", reasoned=True, closed=False)),
        (f"{A}r<|end|>", False, Answer("", reasoned=True)),
        (f"{A}r<|end|><|start|>assistant<|channel|>fi", False, Answer("", reasoned=True)),
        ("<|channel|>final<|message|>x<|return|>", False, Answer("x", reasoned=False)),
        (f"{A}r<|channel|>final<|message|>x", False, Answer("x", reasoned=True)),  # no end
        (f"{A}r<|end|>{A}s<|end|>{F}x", False, Answer("x", reasoned=True)),
        (f"{A}r<|end|>{F}x<|end|>{A}s", False, Answer("x", reasoned=True, closed=False)),
        # what is for a tool or the next turn is no reasoning; nor is what breaks the format
        (
            f"{A}r<|end|><|start|>assistant<|channel|>commentary to=f <|constrain|>json<|message|>{{}}<|call|>",
            False,
            Answer("{}", reasoned=True),
        ),
        (f"{F}x<|end|><|start|>user<|message|>more", False, Answer("x\nmore", reasoned=False)),
        ("<|start|>assistant so it is", False, Answer("assistant so it is", reasoned=False)),
        ("<|channel|>final so it is", False, Answer("so it is", reasoned=False)),
    ],
)
def test_the_analysis_channel_of_gpt_oss_is_reasoning(text: str, opened: bool, expected: Answer) -> None:
    assert answer_of(text, opened) == expected


def test_the_marks_of_channels_stay_in_the_text_where_a_tokenizer_has_them() -> None:
    marks = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>")
    tokenizer = tiny.tiny_tokenizer(extra=marks)
    decoder = TextDecoder(tokenizer)
    text = f"{A}so it is<|end|>{F}yes"
    tokens = tokenizer(f"{text}<|return|>", add_special_tokens=False)["input_ids"]
    assert decoder.text(tokens) == text
    assert answer_of(decoder.text(tokens)).text == "yes"
    assert opens_thinking(f"<|start|>assistant{A}")
    assert not opens_thinking(F)
    other = tiny.tiny_tokenizer(extra=("<|end|>", "<|start|>"))  # Phi-3 ends its turns so
    assert TextDecoder(other).text(other("yes<|end|>", add_special_tokens=False)["input_ids"]) == "yes"


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
