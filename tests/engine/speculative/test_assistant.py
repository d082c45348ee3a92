"""An assistant: which models may be one, and what it reads as rows come, stay behind and go.

That its guesses change no token is in test_speculative.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eddecode import EddecodeError, Sampler, SamplingParams
from eddecode.engine.draft import Draft
from eddecode.engine.sequence import SequenceState
from eddecode.engine.speculative.assistant import AssistantDrafter, Slot
from eddecode.engine.speculative.factory import assistant_for
from eddecode.engine.speculative.speculator import AdaptiveSpeculator
from eddecode.errors import PairError, ParamsError
from eddecode.models.sizes import kv_bytes_per_token
from helpers import decoding, tiny


def saved(folder: Path, vocab: int = tiny.VOCAB, **options: Any) -> Path:
    tiny.tiny_model("qwen2", vocab, seed=5).save_pretrained(folder)
    tiny.tiny_tokenizer(vocab, **options).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("given", ["path", "string", "model"])
def test_a_folder_or_a_model(tmp_path: Path, given: str) -> None:
    folder = saved(tmp_path / "small")
    assistant: Any = {"path": folder, "string": str(folder), "model": tiny.tiny_model("qwen2", seed=5)}[given]
    pair = decoding.spoken_pair()
    params = SamplingParams(alpha=0.2, max_new_tokens=30, n=3, seed=1, ignore_eos=True)
    expected = Sampler(pair, aligned_template="chat").generate("hello", params)
    sampler = Sampler(pair, aligned_template="chat", speculation=assistant)
    assert decoding.tokens(sampler.generate("hello", params)) == decoding.tokens(expected)
    assert sampler.speculator is not None
    assert [drafter.name for drafter in sampler.speculator.drafters] == ["assistant"]


def test_a_name_that_is_nothing_is_refused() -> None:
    message = "speculation is 'fast'; expected one of off, auto, base, ngram, or an assistant model. As the latter: "
    with pytest.raises(ParamsError, match=message + "the assistant checkpoint 'fast'"):
        Sampler(decoding.pair(), speculation="fast")


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path / "other") / "tokenizer.json"
    made = json.loads(file.read_text(encoding="utf-8"))
    ids = made["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    file.write_text(json.dumps(made), encoding="utf-8")
    message = (
        r"the assistant's vocabulary is not the pair's: 2 of 300 ids that may be sampled differ "
        r"\(id \d+ is 'a' in the pair and 'b' in the assistant, id \d+ is 'b' in the pair and 'a' in the assistant\)"
    )
    with pytest.raises(PairError, match=message):
        Sampler(decoding.spoken_pair(), speculation=file.parent)


def test_without_tokenizers_the_widths_must_agree() -> None:
    message = (
        "the assistant scores 290 ids and the pair's models 300 and 300, and there are no two tokenizers to"
    )
    with pytest.raises(PairError, match=message):
        Sampler(decoding.pair(), speculation=tiny.tiny_model(vocab=290))


def test_what_is_no_language_model_is_refused() -> None:
    with pytest.raises(
        EddecodeError, match="the base model is a Linear; expected a transformers causal language"
    ):
        Sampler(decoding.pair(), speculation=torch.nn.Linear(2, 2))


class Checked(AssistantDrafter):
    """Checks what is in each slot after every drafted token."""

    checked = 0

    def draft(self, sequences: Any) -> Any:
        for tokens in super().draft(sequences):
            assert {slot.sequence for slot in self._slots} == set(sequences)
            lengths = self._runner.model_runners[0].cache.lengths  # type: ignore[attr-defined]
            for slot, length in zip(self._slots, lengths, strict=True):
                assert length == len(slot.sequence.request.prompts[0]) + slot.num_read + len(slot.drafted)
                assert slot.num_read == len(slot.sequence.tokens)
            Checked.checked += 1
            yield tokens


class Seldom(AdaptiveSpeculator):
    """Now and then many plain steps in a row, so that the assistant has many tokens to read."""

    turn = 0

    def propose(self, sequences: Any, limit: int) -> Draft:
        self.turn += 1
        return Draft() if self.turn % 30 < 19 else super().propose(sequences, limit)


@pytest.mark.parametrize("kind", [AdaptiveSpeculator, Seldom])
def test_it_follows_rows_that_come_and_go(kind: type[AdaptiveSpeculator]) -> None:
    """The base as its own assistant, at α = 0, is right each time: also after it fell behind, and in any slot."""
    pair = decoding.pair()
    prompts = decoding.mixed_prompts(9)
    params = [SamplingParams(max_new_tokens=15 + 9 * (i % 4), ignore_eos=True, seed=i) for i in range(9)]
    expected = Sampler(pair, max_slots=3).generate(prompts, params)
    made = assistant_for(pair, pair.base)
    sampler = Sampler(pair, max_slots=3)
    sampler.speculator = kind([Checked(made._runner, made.model)], num_draft_tokens=3)
    Checked.checked = 0
    assert decoding.tokens(sampler.generate(prompts, params)) == decoding.tokens(expected)
    stats = sampler.speculator.stats
    assert Checked.checked > 20
    assert stats.accepted == stats.verified > 20


def test_ids_that_only_the_pair_knows_are_never_guessed(tmp_path: Path) -> None:
    """Paddings of a vocabulary differ within a family: a narrower assistant serves."""
    pair = decoding.spoken_pair(vocab=300)
    model = tiny.tiny_model("qwen2", 280, seed=5)
    made = assistant_for(decoding.pair(vocab=280), model)
    sampler = Sampler(pair, aligned_template="chat")
    sampler.speculator = AdaptiveSpeculator([AssistantDrafter(made._runner, model)], num_draft_tokens=2)
    params = SamplingParams(alpha=0.5, max_new_tokens=40, n=3, seed=1, ignore_eos=True, temperature=2.0)
    expected = Sampler(pair, aligned_template="chat").generate("hello", params)
    assert max(max(c.token_ids) for c in expected) >= 280
    assert decoding.tokens(sampler.generate("hello", params)) == decoding.tokens(expected)


def test_its_keys_and_values_count_in_the_budget() -> None:
    """Room for three rows of the pair alone is room for two with an assistant of the size of one of them."""
    pair = decoding.pair()
    prompts = [decoding.prompt(i, 10, 10) for i in range(4)]
    params = SamplingParams(max_new_tokens=30, ignore_eos=True)
    each = kv_bytes_per_token(pair.base)
    assert each is not None
    together = []
    for speculation in ("off", pair.base):
        sampler = Sampler(pair, memory_budget=3 * 40 * 2 * each, speculation=speculation)
        engine, _ = sampler._submit(prompts, params)
        most = 0
        while engine.busy:
            engine.step()
            most = max(most, len(engine.scheduler.running))
        together.append(most)
    assert together == [3, 2]


def test_rows_of_a_slot_are_found_again() -> None:
    """Tokens that are still to be read: accepted drafts are not, the last token always is."""
    sequence = SequenceState(request=None, tokens=[5, 6, 7, 8])  # type: ignore[arg-type]
    assert Slot(sequence, num_read=4).num_pending() == 1
    assert Slot(sequence, num_read=1, drafted=[6, 7, 9]).num_pending() == 1
    assert Slot(sequence, num_read=1, drafted=[6, 7, 8, 3]).num_pending() == 1
    assert Slot(sequence, num_read=1, drafted=[7, 7]).num_pending() == 3
