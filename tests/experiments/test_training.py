"""The training loop: batches, schedule and loss, and that a seed decides the weights."""

from __future__ import annotations

import copy
from itertools import islice

import pytest
import torch

from eddecode.errors import EddecodeError
from eddecode.experiments import corpus
from eddecode.experiments.training import (
    IGNORED,
    Encoder,
    Example,
    FitConfig,
    ModelShape,
    accept_polite,
    accept_rude,
    batches,
    collate,
    fine_tune,
    learning_rate,
    new_model,
    pretrain,
)
from eddecode.testbed import language
from helpers.toy import toy_tokenizer

SMALL = ModelShape(hidden=32, layers=1, heads=2, feed_forward=48)
FEW = FitConfig(steps=4, lr=1e-3, batch=4)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_same_seed_same_weights_whatever_the_global_random_state() -> None:
    tokenizer = toy_tokenizer()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = pretrain(tokenizer, SMALL, FEW, seed=5)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert same(first, pretrain(tokenizer, SMALL, FEW, seed=5))
    assert not same(first, pretrain(tokenizer, SMALL, FEW, seed=6))
    aligned = fine_tune(first, tokenizer, config=FEW, seed=5)
    assert same(aligned, fine_tune(first, tokenizer, config=FEW, seed=5))
    assert not same(aligned, fine_tune(first, tokenizer, config=FEW, seed=6))
    assert not same(aligned, fine_tune(first, tokenizer, accept_rude, FEW, seed=5))


def test_fine_tuning_leaves_its_start_alone_and_snapshots_are_shorter_runs() -> None:
    tokenizer = toy_tokenizer()
    base = new_model(tokenizer, SMALL, seed=0)
    kept, snapshots = copy.deepcopy(base), {}
    config = FitConfig(steps=4, lr=1e-3, batch=4, warmup=0.0, decay=1.0)
    whole = fine_tune(
        base, tokenizer, config=config, snapshots={2: lambda m: snapshots.update(two=copy.deepcopy(m))}
    )
    assert same(base, kept)
    assert not whole.training
    shorter = FitConfig(steps=2, lr=1e-3, batch=4, warmup=0.0, decay=1.0)
    assert same(snapshots["two"], fine_tune(base, tokenizer, config=shorter))


def test_loss_falls_and_counts_only_what_is_not_given() -> None:
    tokenizer = toy_tokenizer()
    losses: list[float] = []
    pretrain(tokenizer, SMALL, FitConfig(steps=60, lr=5e-3, batch=8), progress=lambda *r: losses.append(r[2]))
    assert len(losses) == 60
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    # The model's loss on a padded batch equals the mean of log-probabilities counted one by one.
    model, encode = new_model(tokenizer, SMALL, seed=1).eval(), Encoder(tokenizer)
    batch = [encode.aligned_exchange(e) for e in islice(corpus.exchanges(1), 3)]
    ids, labels = collate(batch, tokenizer.pad_token_id)
    nats: list[float] = []
    with torch.no_grad():
        for tokens, given in batch:
            log_p = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
            nats += [-float(log_p[i - 1, tokens[i]]) for i in range(given, len(tokens))]
        loss = float(model(input_ids=ids, labels=labels).loss)
    assert loss == pytest.approx(sum(nats) / len(nats), rel=1e-4)
    assert int((labels != IGNORED).sum()) == len(nats)


def test_batches_hold_every_example_once_and_similar_lengths_together() -> None:
    lengths = [(7 * i) % 101 + 1 for i in range(64)]
    examples: list[Example] = [([i] * n, 1) for i, n in enumerate(lengths)]
    made = list(batches(iter(examples), size=8, seed=1, pool=8))
    assert sorted(ids[0] for batch in made for ids, _ in batch) == list(range(64))
    cuts = sorted(sorted(len(ids) for ids, _ in batch) for batch in made)
    assert [n for cut in cuts for n in cut] == sorted(lengths)
    assert made != sorted(made, key=lambda batch: len(batch[0][0])), "the batches' own order must be shuffled"
    assert made == list(batches(iter(examples), size=8, seed=1, pool=8))


def test_learning_rate_warms_up_then_falls_to_its_share() -> None:
    config = FitConfig(steps=1000, lr=2.0, warmup=0.1, decay=0.1)
    rates = [learning_rate(step, config) for step in range(1000)]
    assert max(rates) == pytest.approx(2.0)
    assert rates.index(max(rates)) == 100
    assert rates[:101] == sorted(rates[:101])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] == pytest.approx(0.2, rel=1e-3)
    constant = FitConfig(steps=10, lr=2.0, warmup=0.0, decay=1.0)
    assert {learning_rate(step, constant) for step in range(10)} == {2.0}


def test_a_diverging_run_says_so() -> None:
    tokenizer = toy_tokenizer()
    model = new_model(tokenizer, SMALL, seed=0)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("inf"))
    with pytest.raises(EddecodeError, match=r"training diverged: loss nan at step 0; lower lr"):
        fine_tune(model, tokenizer, accept_polite, FEW)


def test_initial_loss_is_that_of_a_uniform_guess() -> None:
    tokenizer = toy_tokenizer()
    model, encode = new_model(tokenizer, SMALL, seed=0).eval(), Encoder(tokenizer)
    request = language.parse_request("Hello. Where is my kettle?")
    ids, labels = collate(
        [encode.base_exchange(corpus.Exchange(request, "Noted. Read the label. Goodbye."))],
        tokenizer.pad_token_id,
    )
    with torch.no_grad():
        loss = float(model(input_ids=ids, labels=labels).loss)
    # Logits of a fresh model are small: with std .05 and 32 dimensions their variance is below .1.
    assert loss == pytest.approx(torch.tensor(float(len(tokenizer))).log().item(), abs=0.5)
