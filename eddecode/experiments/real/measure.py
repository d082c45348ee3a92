"""Conditions of the experiment, measured through the Sampler, one file per condition."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eddecode.audit.judges.base import Case, verdicts_of
from eddecode.audit.text_quality import Utility, measure
from eddecode.experiments.findings.criteria import ConditionResult, Flags
from eddecode.experiments.real.alignment import Report
from eddecode.experiments.real.judges import Validity, filter_judge, vader_judge
from eddecode.experiments.real.protocol import RealProtocol
from eddecode.models.pair import ModelPair
from eddecode.outputs import Completion
from eddecode.sampler import Sampler
from eddecode.sampling.params import SamplingParams
from eddecode.utils.files import atomic_write

Row = dict[str, Any]
"""A completion as it is stored: text, token_ids, finish_reason, base_logprob and implied_reward, in nats."""
SLOTS = 64
PLAIN = "{prompt}"
"""Both models continue the opener as it is: neither has a chat template."""


@dataclass(frozen=True)
class Measured:
    """A condition by both judges.

    Attributes:
        independent: by VADER, whose words were not trained against; `rude` of it means that it complains.
        trained_against: (n,) bool, verdicts of the list that was.
    """

    independent: ConditionResult
    trained_against: Flags


def decode_conditions(
    base: Path,
    aligned: Path,
    alphas: Sequence[float],
    prompts: Sequence[str],
    protocol: RealProtocol,
    folder: Path,
    seed: int,
    report: Report,
) -> dict[float, list[Row]]:
    """One completion per prompt at every α; conditions that are in the folder are read.

    The completions stay in `folder`, beside the run, and are no part of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {alpha: folder / f"alpha{alpha:g}.json" for alpha in alphas}
    missing = [alpha for alpha in alphas if not files[alpha].exists()]
    if missing:
        pair = ModelPair.load(base, aligned, dtype="float32")
        sampler = Sampler(pair, base_template=PLAIN, aligned_template=PLAIN, max_slots=SLOTS)
        for alpha in missing:
            params = SamplingParams(alpha=alpha, max_new_tokens=protocol.tokens, seed=seed)
            found = dict[int, Row]()
            for completion in sampler.as_completed(list(prompts), params):
                found[completion.prompt_index] = _row(completion)
                report(f"{folder.name}, α = {alpha:g}", len(found), len(prompts))
            atomic_write(files[alpha], json.dumps([found[index] for index in range(len(prompts))]))
    return {alpha: json.loads(file.read_text("utf-8")) for alpha, file in files.items()}


def _row(completion: Completion) -> Row:
    names = ("text", "token_ids", "finish_reason", "base_logprob", "implied_reward")
    return {name: getattr(completion, name) for name in names}


def quality_of(row: Row) -> Utility:
    """Metrics of a stored completion that need no judge."""
    return measure(row["text"], row["token_ids"], row["finish_reason"], row["base_logprob"])


def judge_condition(
    alpha: float, prompts: Sequence[str], rows: Sequence[Row], validity: Validity
) -> Measured:
    """Verdicts of VADER and of the filter's own list of complaints, and the composite validity."""
    cases = [Case(prompt, row["text"]) for prompt, row in zip(prompts, rows, strict=True)]
    complains, filtered = (
        np.array([bool(verdict.flag) for verdict in verdicts_of(judge, cases)])
        for judge in (vader_judge(), filter_judge())
    )
    valid = np.array([validity(row["text"], quality_of(row)) for row in rows])
    ended = np.array([row["finish_reason"] == "eos" for row in rows])
    reward = np.array([row["implied_reward"] for row in rows], dtype=np.float64)
    tokens = np.array([len(row["token_ids"]) for row in rows])
    return Measured(ConditionResult(alpha, complains, valid, ended, reward, tokens), filtered)
