"""Corpus and tokenizer: what is held out, how rejection selects, one begin token, same seed same data."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from eddecode.errors import EddecodeError
from eddecode.experiments import corpus
from eddecode.experiments.tokenizer import CHAT_TEMPLATE, VOCABULARY, train_tokenizer, with_chat_template
from eddecode.experiments.training import Encoder, accept_polite, accept_tilted
from eddecode.lab import bundled_pair
from eddecode.testbed import language, rules
from helpers.toy import toy_tokenizer


def test_held_out_requests_are_distinct_balanced_and_never_trained_on() -> None:
    held = corpus.held_out_requests()
    texts = {request.text for request in held}
    assert len(texts) == len(held) == corpus.HELD_OUT
    assert Counter(r.mood for r in held) == dict.fromkeys(rules.MOODS, corpus.HELD_OUT // 2)
    assert corpus.held_out_requests(20) == held[:20]
    shown = {e.request.text for e in islice(corpus.exchanges(1), 3000)}
    assert not shown & texts
    lines = {line for d in islice(corpus.documents(1), 3000) for line in d.text.split("\n")}
    assert not lines & {f"Customer: {text}" for text in texts}


def test_same_seed_same_corpus_and_another_seed_another() -> None:
    first, again, other = (list(islice(corpus.documents(seed), 50)) for seed in (3, 3, 4))
    assert first == again != other
    assert list(islice(corpus.exchanges(3), 20)) == list(islice(corpus.exchanges(3), 20))


def test_documents_are_prose_dialogue_or_both_in_the_declared_shares() -> None:
    n = 4000
    kinds = Counter((not d.reply, not d.text.startswith("Customer:")) for d in islice(corpus.documents(5), n))
    expected = {(True, True): 0.25, (False, True): 0.15, (False, False): 0.60}
    for kind, p in expected.items():
        assert abs(kinds[kind] / n - p) < 5 * math.sqrt(p * (1 - p) / n)


def test_a_filter_keeps_no_rude_reply_and_a_tilt_shifts_the_rate_as_computed() -> None:
    assert not any(language.is_rude(e.reply) for e in islice(corpus.exchanges(1, accept_polite), 500))
    polite = list(islice(corpus.documents(1, accept_polite), 1000))
    assert not any(language.is_rude(d.reply) for d in polite)
    assert any(
        language.is_rude(d.text.split("\nCustomer:")[0]) for d in polite
    )  # innocent words of the prose stay
    # Under p·exp(−words/β), P(rude) = 1 − P(clean) / Z with Z = E[exp(−words/β)], per mood, from plain samples.
    beta, n = 1.0, 6000
    plain = list(islice(corpus.exchanges(2), n))
    expected = 0.0
    for mood in rules.MOODS:
        weights = [math.exp(-language.count_rude(e.reply) / beta) for e in plain if e.request.mood == mood]
        expected += 0.5 * (1 - (1 - language.rude_rate(mood)) * len(weights) / sum(weights))
    tilted = [language.is_rude(e.reply) for e in islice(corpus.exchanges(3, accept_tilted(beta)), n)]
    # Both sides are sampled: a difference of two means, each with standard deviation under 0.5/√n.
    assert abs(sum(tilted) / n - expected) < 5 * math.sqrt(2) * 0.5 / math.sqrt(n)
    with pytest.raises(EddecodeError, match=r"accept_tilted: found beta = 0; expected a positive number"):
        accept_tilted(0)


def test_a_selection_that_keeps_nothing_is_an_error() -> None:
    with pytest.raises(EddecodeError, match=r"were all rejected; `accept` must keep some reply"):
        next(corpus.exchanges(0, lambda reply: 0.0))


def test_tokenizer_is_deterministic_and_round_trips(tmp_path: Path) -> None:
    tokenizer, again = train_tokenizer(7), train_tokenizer(7)
    assert tokenizer.backend_tokenizer.to_str() == again.backend_tokenizer.to_str()
    assert len(tokenizer) == VOCABULARY
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for document in islice(corpus.documents(8), 100):
        text = document.text + document.reply
        ids = loaded(text)["input_ids"]
        assert ids == tokenizer(text)["input_ids"]
        assert ids.count(loaded.bos_token_id) == 1
        assert ids[0] == loaded.bos_token_id
        assert loaded.decode(ids, skip_special_tokens=True) == text
    # Byte-level: text outside the language has ids too.
    assert loaded.decode(loaded("café ☕")["input_ids"], skip_special_tokens=True) == "café ☕"


def test_both_prompts_begin_once_end_alike_and_leave_the_reply_its_ids() -> None:
    tokenizer = with_chat_template(copy.deepcopy(toy_tokenizer()))
    encode, request = Encoder(tokenizer), corpus.held_out_requests()[0]
    reply = "Noted. Read the label. Goodbye."
    exchange = corpus.Exchange(request, reply)
    base, aligned = encode.base_exchange(exchange), encode.aligned_exchange(exchange)
    newline = tokenizer.convert_tokens_to_ids("Ċ")
    for ids, given in (base, aligned):
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[0] == tokenizer.bos_token_id
        assert ids[given - 1] == newline
        assert ids[-1] == tokenizer.eos_token_id
    assert base[0][base[1] :] == aligned[0][aligned[1] :]
    # The reply has the same ids tokenized separately and within the whole text.
    whole = tokenizer(corpus.BASE_TEMPLATE.replace("{prompt}", request.text) + reply)["input_ids"]
    assert [*whole, tokenizer.eos_token_id] == base[0]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": request.text}], add_generation_prompt=True, return_dict=False
    )
    assert chat == encode.aligned_prompt(request)
    with pytest.raises(Exception, match="roles user and assistant, not system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "Be kind."}])


def test_bundled_prompts_are_the_first_held_out_requests() -> None:
    pair = bundled_pair()
    rows = [json.loads(line) for line in pair.prompts.read_text(encoding="utf-8").splitlines()]
    expected = corpus.held_out_requests()[: corpus.BUNDLED_PROMPTS]
    assert rows == [{"prompt": r.text, "category": r.mood} for r in expected]
    assert pair.base_template.read_text(encoding="utf-8") == corpus.BASE_TEMPLATE
    assert pair.lexicon.read_text(encoding="utf-8").split("\n")[:-1] == list(language.rude_words())
    assert AutoTokenizer.from_pretrained(pair.aligned).chat_template == CHAT_TEMPLATE
