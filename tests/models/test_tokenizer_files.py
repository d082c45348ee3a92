"""A tokenizer is what its tokenizer.json says, whatever class transformers makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from eddecode.errors import PairError
from eddecode.models.checkpoint import Checkpoint
from eddecode.models.tokenizer_files import read_tokenizer
from helpers import tiny

# Llama 3's: digits in groups of three, a word with the sign before it.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = "in 2023 (see 650841823)\n\nhello"


def trained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=list(tiny.SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        [TEXT, "we counted 2023 of 650841823 823 841 202\n\nhello (see"] * 20, trainer
    )
    return tokenizer


def saved(folder: Path, raw: Tokenizer, architecture: str, **settings: Any) -> Checkpoint:
    raw.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, **settings}))
    (folder / "config.json").write_text(json.dumps({"model_type": architecture}))
    return Checkpoint("release", folder, "base", {"model_type": architecture}, (), has_tokenizer=True)


@pytest.mark.parametrize(
    "kind", ["GPT2Tokenizer", "LlamaTokenizerFast", "Qwen2Tokenizer", "PreTrainedTokenizerFast"]
)
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gemma2"])
def test_the_rules_of_the_file_are_used(tmp_path: Path, kind: str, architecture: str) -> None:
    raw = trained()
    tokenizer, notes = read_tokenizer(
        saved(tmp_path, raw, architecture, tokenizer_class=kind, chat_template="hi")
    )
    assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == raw.encode(TEXT).ids
    assert tokenizer(TEXT)["input_ids"] == raw.encode(TEXT).ids
    assert (tokenizer.eos_token_id, tokenizer.chat_template) == (tiny.EOS, "hi")
    for note in notes:
        assert note.level == "warning"
        assert "tokenizer.json does: 'in 2023 (see 650841823)" in note.message


def test_a_difference_is_said_with_both_readings(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, trained(), "llama", tokenizer_class="GPT2Tokenizer")
    [note] = read_tokenizer(checkpoint)[1]
    assert "GPT2Tokenizer does not encode texts" in note.message
    assert " there and [" in note.message
    assert note.hint == "The file's rules are used"


@pytest.mark.parametrize(
    "kind", ["LlamaTokenizer", "LlamaTokenizerFast", "GemmaTokenizer", "PreTrainedTokenizerFast"]
)
@pytest.mark.parametrize("settings", [{}, {"add_bos_token": True}, {"add_bos_token": False}])
@pytest.mark.parametrize("in_file", [False, True])
def test_a_bos_is_the_files_or_a_note_names_it(
    tmp_path: Path, kind: str, settings: dict[str, bool], in_file: bool
) -> None:
    raw = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate([*tiny.SPECIALS, "▁", *"ab"])}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    raw.add_special_tokens(list(tiny.SPECIALS))
    single = "<s> $A" if in_file else "$A"
    raw.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", tiny.BOS)])
    tokenizer, notes = read_tokenizer(saved(tmp_path, raw, "llama", tokenizer_class=kind, **settings))
    same = tokenizer("a b")["input_ids"] == raw.encode("a b").ids
    assert (
        tokenizer("a b", add_special_tokens=False)["input_ids"]
        == raw.encode("a b", add_special_tokens=False).ids
    )
    assert same or any("add_bos_token" in note.hint for note in notes)


def test_a_bos_that_only_the_file_has(tmp_path: Path) -> None:
    raw = trained()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tiny.BOS)])
    tokenizer, notes = read_tokenizer(saved(tmp_path, raw, "qwen2", tokenizer_class="Qwen2Tokenizer"))
    assert tokenizer(TEXT)["input_ids"] == raw.encode(TEXT).ids
    assert tokenizer(TEXT)["input_ids"][0] == tiny.BOS
    assert notes


def test_other_rules_that_classes_replace(tmp_path: Path) -> None:
    """A normalizer, and merges that are not used within known words."""
    for i, change in enumerate(("normalizer", "ignore_merges")):
        raw = trained()
        if change == "normalizer":
            raw.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        else:
            raw.model.ignore_merges = True
        folder = tmp_path / str(i)
        folder.mkdir()
        tokenizer, _ = read_tokenizer(saved(folder, raw, "qwen2", tokenizer_class="Qwen2Tokenizer"))
        for text in ("Ａ ﬁne ½ WORD", TEXT, "see hello"):
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == raw.encode(text).ids


def test_a_file_with_truncation_and_padding_is_compared_without_them(tmp_path: Path) -> None:
    raw = trained()
    raw.enable_truncation(4)
    raw.enable_padding(length=4)
    checkpoint = saved(tmp_path, raw, "llama", tokenizer_class="PreTrainedTokenizerFast")
    assert read_tokenizer(checkpoint)[1] == []


def test_a_tokenizer_that_agrees_is_left_alone(tmp_path: Path) -> None:
    tiny.tiny_tokenizer(extra=("<|end|>",)).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert read_tokenizer(Checkpoint("x", tmp_path, "base", {}, (), has_tokenizer=True))[1] == []


def test_an_id_of_two_tokens_is_refused_and_not_read_by_chance(tmp_path: Path) -> None:
    """A reader's table has no order, so that either of the two could be what the id decodes to."""
    checkpoint = saved(tmp_path, trained(), "llama", tokenizer_class="PreTrainedTokenizerFast")
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    (fifty,) = (token for token, number in vocabulary.items() if number == 50)
    vocabulary["~twice"] = 50
    file.write_text(json.dumps(content))
    with pytest.raises(PairError) as raised:
        read_tokenizer(checkpoint)
    assert f"gives the id 50 to 2 tokens ({fifty!r}, '~twice'); fetch the file again" in str(raised.value)
