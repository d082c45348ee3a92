"""Token ids of rendered texts: special tokens that are spelt in a prompt stay text, for every kind of tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from eddecode.errors import PromptError
from eddecode.prompts.encoding import encode, special_strings
from eddecode.prompts.templates import TemplateOptions, make_template
from helpers import tiny

SPECIALS = ["<pad>", "<s>", "</s>", "<|user|>", "<|end|>"]


def sentencepiece(scheme: str) -> PreTrainedTokenizerFast:
    """As Llama 2's: a space before every piece (by the normalizer), before the first, or never; byte fallback."""
    letters = [*"abcdefghijklmnopqrstuvwxyz/<>|", "▁", "▁is", "is", "th", "▁th", "<|", "|>"]
    vocab = {t: i for i, t in enumerate([*SPECIALS, *[f"<0x{b:02X}>" for b in range(256)], *letters])}
    merges = [("i", "s"), ("▁", "is"), ("t", "h"), ("▁", "th"), ("<", "|"), ("|", ">")]
    backend = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<pad>")
    )
    if scheme == "normalizer":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([] if scheme == "never" else [decoders.Strip(" ", 1, 0)])])
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def byte_level(**flags: Any) -> PreTrainedTokenizerFast:
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<|end|>", special=True, **flags)]}
    )
    return tokenizer


TOKENIZERS = {
    "byte level": byte_level(),
    "swallows spaces": byte_level(lstrip=True, rstrip=True),  # Phi-3's
    "space before each piece": sentencepiece("normalizer"),  # Llama 2's file
    "space before the first": sentencepiece("first"),  # the same, as transformers builds it
    "no space": sentencepiece("never"),
}
PROMPTS = [
    "what does </s><|user|>this mean",
    "</s>",
    "<s>start",
    "end <|end|>",
    "<|end|> <|end|><|end|>",
    "this (</s>) is it\n</s>\n",
]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("spec", ["Q: {prompt}\nA:", "<s>{prompt}", "{prompt}", "chat"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_what_a_prompt_spells_stays_text(name: str, spec: str, prompt: str) -> None:
    tokenizer = TOKENIZERS[name]
    tokenizer.chat_template = "<s>{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}"
    template = make_template(spec, tokenizer, "base")
    ids = template(prompt)
    frame = {"chat": ["<s>", "<|user|>", "<|end|>"]}.get(spec, ["<s>"])
    special = set(tokenizer.convert_tokens_to_ids(list(special_strings(tokenizer))))
    assert [i for i in ids if i in special] == tokenizer.convert_tokens_to_ids(frame)
    shown = tokenizer.decode([i for i in ids if i not in special], clean_up_tokenization_spaces=False)
    assert prompt.strip() in shown


def test_the_ids_around_a_spelling_are_those_of_the_same_text() -> None:
    """A spelling that is no special token of the tokenizer shows what the ids should be."""
    known, unknown = sentencepiece("first"), sentencepiece("first")
    unknown = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(
        known.backend_tokenizer.to_str().replace('"<|end|>"', '"<|gone|>"')
    ), bos_token="<s>")  # fmt: skip
    prompt = "this is <|end|> that is"
    ids = make_template("{prompt}", known, "base")(prompt)
    assert known.convert_ids_to_tokens(ids) == unknown.convert_ids_to_tokens(encode(unknown, prompt))


def test_they_become_tokens_where_that_is_asked_for() -> None:
    options = TemplateOptions(escape_specials=False)
    ids = make_template("{prompt}", TOKENIZERS["byte level"], "base", options=options)("a</s>b")
    assert ids.count(tiny.EOS) == 1


def test_a_tokenizer_that_cannot_do_it_is_an_error() -> None:
    backend = Tokenizer(models.WordLevel(vocab={"[UNK]": 0, "[SEP]": 1, "a": 2}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()  # removes what it does not know
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([AddedToken("[SEP]", special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, sep_token="[SEP]")
    with pytest.raises(PromptError, match=r"spells the special token '\[SEP\]'.*--no-escape-specials"):
        make_template("{prompt}", tokenizer, "base")("a [SEP] a")
