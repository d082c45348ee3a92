"""Ids back to text: stop strings, what is settled, and what is cut."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eddecode import ModelPair, RenderedPrompt, Sampler, SamplingParams
from eddecode.engine.detokenizer import StopStrings, TextDecoder, decode, stable_prefix, truncate_at_stop
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


# Special tokens in stop strings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [1, 9, 40, 200])
def test_a_long_run_of_special_tokens_does_not_hide_a_stop_string(tokenizer: object, run: int) -> None:
    stops = StopStrings(tokenizer, ("END",))
    tokens = [*encoded("the E"), *[tiny.EOS, tiny.PAD] * run, *encoded("N"), *[tiny.BOS] * run, *encoded("D")]
    seen = [stops(tokens[: i + 1]) for i in range(len(tokens))]
    assert seen.index(True) == len(tokens) - 1
    assert stops.cut(tokens) == "the "


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("<|user|>", "a cat"),
        ("cat<|user|>", "a "),
        ("<|user|>ha", "a cat"),
        ("at<|user|>h", "a c"),
        ("<|assistant|><|user|>", "a cat"),
    ],
)
def test_a_stop_string_with_a_special_token(tokenizer: object, stop: str, expected: str) -> None:
    tokens = [*encoded("a cat"), tiny.ASSISTANT, tiny.USER, *encoded("hat")]
    if "<|assistant|>" not in stop:
        tokens.remove(tiny.ASSISTANT)
    stops = StopStrings(tokenizer, (stop, "never"))
    ends = [i + 1 for i in range(len(tokens)) if stops(tokens[: i + 1])]
    assert ends
    assert stops.cut(tokens[: ends[0]]) == expected
    for i in range(ends[0]):  # nothing that is cut off later was given out before
        assert expected.startswith(stops.settled(tokens[:i]))


def test_a_special_token_that_is_spelt_out_ends_a_completion_too(tokenizer: object) -> None:
    stops = StopStrings(tokenizer, ("<|user|>",))
    tokens = [token for byte in b"so <|user|>" for token in _byte(byte)]
    assert [stops(tokens[: i + 1]) for i in range(len(tokens))].index(True) == len(tokens) - 1
    assert stops.cut(tokens) == "so "


# Streams -----------------------------------------------------------------------------------------------------------


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama 2's: characters that it does not know are bytes; the first space is taken away."""
    names = ["<pad>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)], "▁", *"abcdefgh", "é"]
    backend = Tokenizer(
        models.BPE(
            vocab={t: i for i, t in enumerate(names)}, merges=[], byte_fallback=True, unk_token="<pad>"
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in names[:3]])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def word_pieces() -> PreTrainedTokenizerFast:
    """As BERT's: the decoder joins words with punctuation that follows."""
    names = ["<pad>", "<s>", "</s>", "[UNK]", "do", "n", "##o", "'", "t", ".", ",", "##s", "we", "'re", "!"]
    backend = Tokenizer(models.WordPiece({t: i for i, t in enumerate(names)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    backend.add_special_tokens([AddedToken(x, special=True) for x in names[:3]])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


TOKENIZERS = {
    "byte level": tiny.tiny_tokenizer,
    "byte fallback": byte_fallback,
    "word pieces": word_pieces,
}


@pytest.mark.parametrize("stop", [(), ("a", "�b"), ("<s>",), ("c<s>a", "é")])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_pieces_of_a_stream_join_to_the_completion(name: str, stop: tuple[str, ...]) -> None:
    """Random tokens: bytes that belong to no character, special tokens in between, stop strings half-way."""
    tokenizer = TOKENIZERS[name]()
    vocab = len(tokenizer)
    pair = ModelPair.from_models(*tiny.tiny_pair_models(vocab=vocab), tokenizer, tokenizer)
    params = SamplingParams(
        alpha=0.5,
        temperature=2.0,
        max_new_tokens=24,
        n=24,
        seed=3,
        ignore_eos=True,
        stop=stop,
        min_new_tokens=3,
    )
    pieces: dict[int, str] = {}
    for piece in Sampler(pair).stream([RenderedPrompt([1, 4], [1, 5])], params):
        pieces[piece.sample] = pieces.get(piece.sample, "") + piece.text
        if piece.completion:
            assert pieces[piece.sample] == piece.completion.text
    assert len(pieces) == 24
    assert any(pieces.values())


def test_a_byte_that_rewrites_the_bytes_before_it() -> None:
    """é is two bytes; with a third one that is none of a character, all three are replacement characters."""
    decoder, first = TextDecoder(byte_fallback()), 3
    tokens = [260, first + 0xC3, first + 0xA9, first + 0xFF, 261]
    texts = [decoder.text(tokens[:i]) for i in range(6)]
    assert texts[3:] == ["aé", "a���", "a���b"]
    assert [decoder.settled_text(tokens[:i]) for i in range(6)] == ["", "a", "a", "a", "a", "a���b"]


def test_a_stream_of_ordinary_text_is_not_held_back() -> None:
    decoder = TextDecoder(byte_fallback())
    tokens = [260, 261, 259, 262]
    assert [decoder.settled_text(tokens[: i + 1]) for i in range(4)] == ["a", "ab", "ab ", "ab c"]
