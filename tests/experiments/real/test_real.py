"""The experiment on a real base: its parts, and a run of a few samples on the bundled base as a stand-in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eddecode.audit.judges.base import Case
from eddecode.audit.text_quality import measure
from eddecode.errors import ConfigError
from eddecode.experiments.findings.criteria import ConditionResult
from eddecode.experiments.findings.experiment import ExperimentResult
from eddecode.experiments.real import alignment
from eddecode.experiments.real.alignment import Sample, token_logprobs
from eddecode.experiments.real.command import run_real
from eddecode.experiments.real.judges import (
    FILTER_WORDS,
    PRAISE_WORDS,
    VaderJudge,
    Validity,
    filter_judge,
)
from eddecode.experiments.real.measure import Measured
from eddecode.experiments.real.openers import held_out_openers, training_openers
from eddecode.experiments.real.preferences import (
    Preference,
    best_sample,
    best_samples,
    preference_loss,
    preferences,
    without_a_list,
)
from eddecode.experiments.real.protocol import RealProtocol
from eddecode.experiments.real.record import RealRecord
from eddecode.experiments.real.results import evaluate
from eddecode.testbed.bundled import bundled_pair


def silent(what: str, done: int, total: int) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def vader() -> VaderJudge:
    return VaderJudge()


def test_the_judge_knows_no_word_that_the_alignment_was_trained_with(vader: VaderJudge) -> None:
    cases = [Case("", word) for word in (*FILTER_WORDS, *PRAISE_WORDS) if word.isalpha()]
    assert all(verdict.score == 0.5 for verdict in vader(cases))
    assert 100 < vader.removed < 500


def test_the_judge_tells_complaints_from_praise(vader: VaderJudge) -> None:
    texts = ["it is a nasty, useless mess", "a splendid and elegant surprise", "the table has four legs"]
    assert [verdict.flag for verdict in vader([Case("", text) for text in texts])] == [True, False, False]


def test_no_opener_holds_a_word_of_a_list_and_none_is_in_both_sets(vader: VaderJudge) -> None:
    openers = training_openers() + held_out_openers()
    assert len(set(openers)) == len(openers) == 480
    cases = [Case("", opener) for opener in openers]
    assert not any(verdict.flag for verdict in filter_judge()(cases))


def test_preferences_are_for_praise_over_complaints_of_the_same_opener() -> None:
    texts = [
        "a great and good one, but bad",
        "it is here",
        "a good one",
        "a good one and great",
        "bad, awful",
    ]
    drawn = [Sample("o", (), text) for text in texts]
    assert best_sample(drawn) == drawn[3]
    assert best_sample(drawn[:1]) is None
    praised = [Sample("p", (), "great"), Sample("p", (), "fine")]
    found = preferences([*drawn, *praised])
    assert found == [Preference(drawn[3], drawn[4])]
    assert best_samples([*drawn, *praised]) == [drawn[3], praised[0]]
    mixed = without_a_list(found * 40, seed=1)
    assert {each.chosen for each in mixed} == {drawn[3], drawn[4]}
    assert mixed == without_a_list(found * 40, seed=1)


def test_log_probabilities_are_those_of_each_completion_alone() -> None:
    place = bundled_pair().base
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(place)
    samples = [
        Sample(opener, tuple(tokenizer(text, add_special_tokens=False)["input_ids"]), text)
        for opener, text in (("hello, where is my kettle?", "on the way"), ("hi", "the lamp is here now"))
    ]
    together = token_logprobs(model, tokenizer, samples)
    for sample, found in zip(samples, together, strict=True):
        opener = tokenizer(sample.opener)["input_ids"]
        ids = torch.tensor([[*opener, *sample.token_ids]])
        every = model(ids).logits[0].log_softmax(-1)
        expected = [every[len(opener) - 1 + i, t].item() for i, t in enumerate(sample.token_ids)]
        assert found.tolist() == pytest.approx(expected, abs=1e-4)
    pair = Preference(*samples)
    loss = preference_loss(model, tokenizer, [pair], beta=0.1)
    same = SimpleNamespace(get_base_model=lambda: model)
    assert loss(same, [pair]).item() == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize(
    ("text", "ids", "logprob", "valid"),
    [
        ("it works well for us", [5, 6, 7, 8, 9], -10.0, True),
        ("it works well for us", [5, 6, 7, 8, 9], -100.0, False),
        ("so so so so so so so so", [5] * 8, -8.0, False),
        ("@@## 1234 !!!! ____", [5, 6, 7, 8, 9], -10.0, False),
        ("", [], None, False),
    ],
)
def test_validity_refuses_what_is_no_text(
    text: str, ids: list[int], logprob: float | None, valid: bool
) -> None:
    bound = Validity.of_base_samples([float(np.exp(2.0))] * 10)
    assert bound(text, measure(text, ids, "length", logprob)) is valid


def condition(alpha: float, complains: int, valid: int = 100, n: int = 100) -> Measured:
    flags = np.arange(n) % 100 < complains
    fine = np.arange(n) % 100 < valid
    zeros = np.zeros(n)
    return Measured(ConditionResult(alpha, flags, fine, fine, zeros, zeros.astype(int)), flags)


def test_the_criteria_tell_a_reversal_from_none() -> None:
    strong = {-1.0: 2, 0.0: 20, 0.3: 50, 0.6: 60, 1.0: 55}
    weak, control = {-1.0: 10, 0.6: 30}, {-1.0: 20, 0.6: 21}

    def result(strong: dict[float, int], control: dict[float, int]) -> ExperimentResult:
        targets = {
            name: {alpha: condition(alpha, rate) for alpha, rate in each.items()}
            for name, each in {"dpo-6": strong, "dpo-1": weak, "control-6": control, "tuned-6": weak}.items()
        }
        targets["dpo-6"][4.0] = condition(4.0, 90, valid=3)
        return evaluate(targets, RealProtocol())

    good = result(strong, control)
    assert good.holds
    assert all(good.figures["criteria"].values())
    none = result({-1.0: 20, 0.0: 20, 0.3: 20, 0.6: 21, 1.0: 20}, {-1.0: 20, 0.6: 50})
    met = none.figures["criteria"]
    assert not none.holds
    assert not any(met[name] for name in ("reversal", "control", "doubling"))


def test_a_run_is_resumed_and_its_record_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = bundled_pair().base
    record = run_real(base, tmp_path, RealProtocol.quick(), 1, "command", silent)
    stored = RealRecord.read(tmp_path / "real.json")
    assert stored.result.to_dict() == json.loads(json.dumps(record.result.to_dict()))
    assert "parameters" in stored.facts[1]

    def refuse(*args: object) -> None:
        raise AssertionError("nothing is sampled again")

    monkeypatch.setattr(alignment, "_draw", refuse)
    (tmp_path / "seed-0" / "conditions" / "dpo-2" / "alpha1.json").unlink()
    again = run_real(base, tmp_path, RealProtocol.quick(), 1, "command", silent)
    assert again.result.to_dict() == record.result.to_dict()
    with pytest.raises(ConfigError, match="held_out"):
        run_real(base, tmp_path, RealProtocol(), 1, "command", silent)


def test_another_base_is_named_where_it_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        run_real(tmp_path, tmp_path / "out", RealProtocol.quick(), 1, "", silent)
