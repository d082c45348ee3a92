"""What a gate may rest on, through the public `audit` with a scripted sampler: α's that must not drop out of sight."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from eddecode.audit import AuditConfig, Summary, audit
from eddecode.audit.judges.lexicon import LexiconJudge
from eddecode.outputs import Completion
from helpers.stub_sampler import uniform

FINE = "this is a perfectly fine long sentence of text"
RUDE = f"{FINE} idiot"
Script = Callable[[int, float], tuple[str, int]]  # (number of the prompt, α) → text and number of tokens


class Scripted:
    """A sampler whose completions are a function of the prompt's number and α."""

    def __init__(self, script: Script) -> None:
        self.script = script

    def as_completed(self, prompts: Any, params: Any) -> Iterator[Completion]:
        for i, (prompt, p) in enumerate(zip(prompts, params, strict=True)):
            for sample in range(p.n):
                text, tokens = self.script(int(str(prompt).split()[-1]), float(p.alpha))
                yield Completion(
                    i, sample, p.alpha, text, list(range(3, 3 + tokens)), "eos", -1.0 * tokens, -1.1 * tokens
                )


def run(out: Path, script: Script, order: Sequence[int] = range(200), **changes: Any) -> Summary:
    config = AuditConfig(
        base="b",
        aligned="a",
        prompts=[f"prompt {i}" for i in order],
        out=out,
        **{"alphas": "0.1,0.3", **changes},
    )
    return audit(config, sampler=Scripted(script), judges=[LexiconJudge(["idiot"])])


def just_beyond(prompt: int, alpha: float) -> tuple[str, int]:
    """Base 10%; α = .1 reverses 1 point; α = .3 reverses 60, and 10.5% of its completions are too short."""
    tokens = 3 if alpha > 0.2 and prompt % 200 >= 179 else 12
    share = {0.1: 0.11, 0.3: 0.7}.get(alpha, 0.1 if alpha == 0 else 0.02)
    return (RUDE if prompt * 7 % 200 < 200 * share else FINE), tokens


def test_an_alpha_just_beyond_the_bound_sets_the_upper_end(tmp_path: Path) -> None:
    """The headline is α = .1 at 1 point; that no gate may pass by it is in the interval, and the states say why."""
    summary = run(tmp_path, just_beyond)
    head = summary.headline
    assert head.alpha == "0.1"
    assert head.reversal.value < 0.02
    assert head.reversal.high > 0.6
    assert [(c.alpha, c.state) for c in head.candidates] == [("0.1", "inside"), ("0.3", "open")]
    assert 0.1 < head.candidates[1].loss < 0.12
    assert head.candidates[1].high == head.reversal.high


def test_too_short_is_lost_utility_and_not_left_out(tmp_path: Path) -> None:
    """With a minimum length the same completions leave the harm rate, and the loss stays what it is."""
    summary = run(tmp_path, just_beyond, min_tokens=8)
    entry = summary.named("ed@0.3")
    assert (entry.completions, entry.dropped) == (179, 21)
    assert (entry.rates["lexicon"].total, entry.utility.rate.total) == (179, 200)
    assert (entry.utility.rate.flagged, entry.utility.within) == (179, False)
    assert summary.headline.candidates[1].state == "open"
    assert summary.headline.reversal.high > 0.5

    def nearly_all(prompt: int, alpha: float) -> tuple[str, int]:
        return (RUDE, 3 if prompt else 12) if alpha > 0.2 else (FINE, 12)

    everything = run(tmp_path / "all", nearly_all, min_tokens=8)
    assert everything.headline.candidates[1].state == "outside"
    assert everything.named("ed@0.3").rates["lexicon"].total == 1


def test_the_order_of_the_prompts_changes_nothing(tmp_path: Path) -> None:
    """Every figure and note of the summary, byte for byte; only the identity names another list of prompts."""

    def script(prompt: int, alpha: float) -> tuple[str, int]:
        rude = uniform(prompt, "harm") < 0.3 + 0.1 * alpha + 0.2 * uniform(prompt, alpha)
        return (RUDE if rude else FINE), 3 if uniform(prompt, alpha, "short") < 0.08 else 9 + prompt % 5

    shuffled = sorted(range(120), key=lambda i: uniform("order", i))
    found = []
    for name, order in (("one", range(120)), ("other", shuffled)):
        summary = run(tmp_path / name, script, order, alphas="0.1,0.3,0.6,1", samples=2, mitigations="topk5")
        content = summary.to_dict()
        assert content.pop("digest")
        assert content.pop("identity")
        found.append(json.dumps(content))
    assert found[0] == found[1]


def test_nothing_clearly_within_the_bound(tmp_path: Path) -> None:
    """No lower end, and words that say so."""
    summary = run(tmp_path, lambda i, a: (RUDE if a > 0 else FINE, 3 if a > 0 and i < 2 else 12), range(30))
    assert {c.state for c in summary.headline.candidates} == {"open"}
    assert summary.headline.reversal.low is None
    assert summary.headline.reversal.high == 1
