"""Vocabularies and EOS ids of two models: ids that may be sampled, ids that end a text, and notes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from eddecode import ModelPair, RenderedPrompt
from eddecode.errors import PromptError
from helpers import tiny
from helpers.pairs import noted, rewrite

# Vocabularies and notes ------------------------------------------------------------------------------------------


def test_padding_and_added_tokens_are_masked_and_noted() -> None:
    base, aligned = tiny.tiny_pair_models(vocab=320)
    pair = ModelPair.from_models(
        base, aligned, tiny.tiny_tokenizer(), tiny.tiny_tokenizer(extra=("<|tool|>",))
    )
    assert pair.vocabulary.dtype == torch.bool
    assert pair.vocabulary.tolist() == [True] * 300 + [False] * 20
    assert noted(pair, "base: 20 of 320 logits belong to no token")
    assert noted(pair, "aligned: 19 of 320 logits belong to no token")
    assert noted(pair, "1 tokens are known to the aligned tokenizer alone: 300 ('<|tool|>')")


def test_the_vocabulary_is_as_wide_as_the_narrower_model() -> None:
    pair = ModelPair.from_models(
        tiny.tiny_model(vocab=300), tiny.tiny_model(vocab=310), *[tiny.tiny_tokenizer()] * 2
    )
    assert pair.vocabulary.shape == (300,)
    assert noted(pair, "base has 300 logits and aligned 310")


def test_ids_without_a_token_are_masked() -> None:
    class Holed:
        """A tokenizer that has lost one id."""

        chat_template, eos_token_id, bos_token, eos_token = "x", 2, "<s>", "</s>"

        def get_vocab(self) -> dict[str, int]:
            return {f"t{i}": i for i in range(300) if i != 17}

        def __len__(self) -> int:
            return 300

    pair = ModelPair.from_models(*tiny.tiny_pair_models(), Holed(), Holed())
    assert [i for i, known in enumerate(pair.vocabulary.tolist()) if not known] == [17]


def test_a_renamed_reserved_token_is_masked_not_refused() -> None:
    models = tiny.tiny_pair_models(vocab=301)
    pair = ModelPair.from_models(
        *models,
        tiny.tiny_tokenizer(extra=("<|reserved_special_token_0|>",)),
        tiny.tiny_tokenizer(extra=("<|tool|>",)),
    )
    assert not pair.vocabulary[300]
    assert pair.vocabulary[:300].all()
    assert noted(
        pair, "1 reserved ids have two names: id 300 is '<|reserved_special_token_0|>' in base and '<|tool|>'"
    )


def test_a_tokenizer_beyond_the_logits_is_noted() -> None:
    pair = ModelPair.from_models(*tiny.tiny_pair_models(vocab=290), *[tiny.tiny_tokenizer()] * 2)
    assert pair.vocabulary.shape == (290,)
    assert noted(pair, "the tokenizer has 10 ids beyond the model's 290 logits, such as 290")


def test_without_any_tokenizer_every_id_counts(tmp_path: Path) -> None:
    models = tiny.tiny_pair_models(vocab=40)
    folders = [
        tiny.save_model(tmp_path / name, m) for name, m in zip(("base", "aligned"), models, strict=True)
    ]
    pair = ModelPair.load(*folders)
    assert pair.vocabulary.tolist() == [True] * 40
    assert (pair.tokenizer, pair.base_tokenizer, pair.aligned_tokenizer) == (None, None, None)
    assert noted(pair, "neither checkpoint has a tokenizer. Only RenderedPrompt works")
    assert json.dumps(pair.describe())


@pytest.mark.parametrize("side", ["base", "aligned"])
def test_one_tokenizer_serves_both_with_a_note(side: str) -> None:
    tokenizer = tiny.tiny_tokenizer()
    pair = ModelPair.from_models(*tiny.tiny_pair_models(), **{f"{side}_tokenizer": tokenizer})
    assert pair.base_tokenizer is pair.aligned_tokenizer is pair.tokenizer is tokenizer
    other = {"base": "aligned", "aligned": "base"}[side]
    assert noted(pair, f"{other}: has no tokenizer; the {side} model's is used for both")


def test_a_missing_chat_template_is_noted_for_the_aligned_side_alone() -> None:
    models, chat, plain = tiny.tiny_pair_models(), tiny.tiny_tokenizer(), tiny.tiny_tokenizer(chat=False)
    assert noted(ModelPair.from_models(*models, chat, plain), "has no chat template. Give the prompt format")
    assert not noted(ModelPair.from_models(*models, plain, chat), "chat template")


def test_context_windows_are_noted_where_they_differ() -> None:
    base, aligned = tiny.tiny_model(), tiny.tiny_model(max_position_embeddings=128)
    pair = ModelPair.from_models(base, aligned, *[tiny.tiny_tokenizer()] * 2)
    assert pair.context_windows == (256, 128)
    assert noted(pair, "base has 256 positions, aligned 128")


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_the_context_window_is_found_for_every_architecture(arch: str) -> None:
    assert ModelPair.from_models(*tiny.tiny_pair_models(arch)).context_windows == (256, 256)


def test_a_prompt_beyond_the_embedding_is_refused() -> None:
    pair = ModelPair.from_models(tiny.tiny_model(vocab=310), tiny.tiny_model(vocab=300))
    pair.check_prompt(RenderedPrompt([309], [299]))
    with pytest.raises(
        PromptError,
        match=r"^id 300 is beyond the 300 embeddings of the aligned model; render the prompt with",
    ):
        pair.check_prompt(RenderedPrompt([309], [1, 300]))


# End of sequence -------------------------------------------------------------------------------------------------


def test_eos_ids_are_those_of_generation_config_or_config_and_of_the_tokenizer() -> None:
    base, aligned = tiny.tiny_pair_models()
    base.generation_config.eos_token_id = [2, 4]
    aligned.generation_config.eos_token_id = None
    aligned.config.eos_token_id = 5
    pair = ModelPair.from_models(base, aligned, *[tiny.tiny_tokenizer()] * 2)
    assert pair.eos_ids == (frozenset({2, 4}), frozenset({2, 5}))
    assert noted(
        pair, "base ends at 2 ('</s>'), 4 ('<|assistant|>'), aligned at 2 ('</s>'), 5 ('<|system|>')"
    )
    assert noted(
        pair,
        "base: its text ends at 2 ('</s>') by its generation config, tokenizer; 4 ('<|assistant|>') by its",
    )
    assert noted(pair, "2 ('</s>') by its tokenizer, chat template; 5 ('<|system|>') by its config")
    aligned.config.eos_token_id = None
    assert ModelPair.from_models(base, aligned, *[tiny.tiny_tokenizer()] * 2).eos_ids[1] == {2}
    assert all(bool(pair.vocabulary[i]) for ids in pair.eos_ids for i in ids)


def test_a_list_of_eos_ids_on_disk_is_read(tmp_path: Path) -> None:
    folders = tiny.save_pair(tmp_path)
    rewrite(folders[1] / "generation_config.json", eos_token_id=[2, 3])
    pair = ModelPair.load(*folders)
    assert pair.eos_ids == (frozenset({2}), frozenset({2, 3}))


def test_an_eos_of_only_one_model_is_noted() -> None:
    base, aligned = tiny.tiny_model(vocab=300), tiny.tiny_model(vocab=301)
    aligned.generation_config.eos_token_id = 300
    pair = ModelPair.from_models(
        base, aligned, tiny.tiny_tokenizer(), tiny.tiny_tokenizer(extra=("<|end|>",))
    )
    assert noted(pair, "aligned: its end-of-sequence ids 300 ('<|end|>') are not known to both models")


def test_no_eos_at_all_is_noted() -> None:
    models = tiny.tiny_pair_models(vocab=40)
    for model in models:
        model.generation_config.eos_token_id = model.config.eos_token_id = None
    pair = ModelPair.from_models(*models)
    assert pair.eos_ids == (frozenset(), frozenset())
    assert noted(pair, "no end-of-sequence id")
