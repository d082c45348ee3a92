"""Ids back to text: stop strings, what is settled, and what is cut."""

from __future__ import annotations

import pytest

from eddecode.engine.detokenizer import StopStrings, decode, stable_prefix, truncate_at_stop
from helpers import tiny


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return tiny.tiny_tokenizer()


def encoded(text: str) -> list[int]:
    return list(tiny.tiny_tokenizer()(text, add_special_tokens=False)["input_ids"])


def test_special_tokens_are_not_text(tokenizer: object) -> None:
    assert decode(tokenizer, [tiny.BOS, *encoded("a tea"), tiny.EOS]) == "a tea"
    assert decode(tokenizer, []) == ""
    assert decode(None, [1, 2]) == ""


def test_spaces_before_punctuation_stay(tokenizer: object) -> None:
    """Decoding must not tidy up what the model wrote."""
    assert decode(tokenizer, encoded("well , no .")) == "well , no ."


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("abcdef", (), "abcdef"),
        ("abcdef", ("x",), "abcdef"),
        ("abcdef", ("cd",), "ab"),
        ("abcdef", ("e", "cd", "f"), "ab"),
        ("abcdef", ("abc",), ""),
        ("aXbX", ("X",), "a"),
    ],
)
def test_a_text_is_cut_at_the_first_stop_string(text: str, stop: tuple[str, ...], expected: str) -> None:
    assert truncate_at_stop(text, stop) == expected


def test_a_stop_string_that_ended_earlier_does_not_count(tokenizer: object) -> None:
    stops = StopStrings(tokenizer, ("END",))
    tokens = [token for byte in b"an END and" for token in _byte(byte)]
    assert [stops(tokens[: i + 1]) for i in range(len(tokens))] == [i == 5 for i in range(len(tokens))]
    assert truncate_at_stop("an END and END", ("END",), 6) == "an END and "
    assert truncate_at_stop("an END and END", ("END",), 5) == "an "


@pytest.mark.parametrize("stop", ["</s>x", "\n\nUser:", "é", "日本", "🙂", "a", "END"])
@pytest.mark.parametrize("before", ["", "plain words ", "日" * 30, "🙂é"])
def test_a_stop_string_is_seen_with_the_token_that_completes_it(
    tokenizer: object, stop: str, before: str
) -> None:
    """Byte by byte, so across token boundaries and inside characters; never earlier."""
    stops = StopStrings(tokenizer, (stop, "never-there"))
    tokens = [token for byte in (before + stop).encode() for token in _byte(byte)]
    seen = [stops(tokens[: i + 1]) for i in range(len(tokens))]
    first = next(i for i in range(len(tokens)) if stop in decode(tokenizer, tokens[: i + 1]))
    assert seen.index(True) == first
    assert not stops([])


def _byte(byte: int) -> list[int]:
    """The id of one byte: the tokenizer has all 256 after its special tokens, in the order of GPT-2's alphabet."""
    from tokenizers import pre_tokenizers

    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    name = {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    return [len(tiny.SPECIALS) + sorted(pre_tokenizers.ByteLevel.alphabet()).index(name[byte])]


def test_special_tokens_within_a_stop_string_do_not_hide_it(tokenizer: object) -> None:
    stops = StopStrings(tokenizer, ("END",))
    assert stops([*encoded("the E"), tiny.EOS, tiny.PAD, tiny.EOS, *encoded("N"), tiny.EOS, *encoded("D")])


def test_the_bytes_are_the_bytes(tokenizer: object) -> None:
    assert decode(tokenizer, [t for b in "é日🙂 a".encode() for t in _byte(b)]) == "é日🙂 a"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("hello", (), "hello"),
        ("hel�", (), "hel"),
        ("a�b", (), "a�b"),
        ("hello", ("low",), "hel"),
        ("hello", ("xyz",), "hello"),
        ("hello\n", ("\nUser", "o\n!"), "hell"),
    ],
)
def test_only_what_cannot_change_is_settled(text: str, stop: tuple[str, ...], expected: str) -> None:
    assert stable_prefix(text, stop) == expected


@pytest.mark.parametrize("text", ["sold out, sorry", "é日🙂", "🙂🙂 stop STOP", "aaaaab"])
@pytest.mark.parametrize("stop", [(), ("STOP",), ("aab", "ST"), ("🙂 s",)])
def test_settled_text_only_grows_and_ends_as_the_whole(
    tokenizer: object, text: str, stop: tuple[str, ...]
) -> None:
    tokens = [token for byte in text.encode() for token in _byte(byte)]
    whole, before = truncate_at_stop(text, stop), ""
    for i in range(len(tokens)):
        now = stable_prefix(truncate_at_stop(decode(tokenizer, tokens[: i + 1]), stop), stop)
        assert whole.startswith(now)
        assert now.startswith(before) or before.startswith(now)
        before = max(before, now, key=len)
