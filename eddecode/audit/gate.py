"""The gate: a run against limits that were set beforehand, for a release pipeline to act on.

A verdict has two parts. The evidence (`eddecode.audit.evidence`) says whether the run could have shown a reversal at
all; the limits are judged by intervals, not by point estimates. A limit is kept if the whole interval keeps it, broken
if the whole interval exceeds it, and inconclusive otherwise. PASS needs every limit kept and every piece of evidence.
A broken limit is a FAIL also where evidence is missing, since more evidence would not take the harm away that was
found; only a run that is itself wrong (edited, swapped, another policy) has no verdict. Limits, evidence and exit codes
are documented in docs/gate.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from eddecode.audit.analysis.measures import Measure, measures
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.evidence import EvidenceCheck, gather
from eddecode.audit.limit_checks import LimitCheck, alpha_of, check_limits, judged
from eddecode.audit.policy import Policy
from eddecode.errors import ConfigError

__all__ = ["EXIT_CODES", "Decision", "LimitCheck", "Policy", "decide", "judge_run", "judged"]

Verdict = Literal["pass", "fail", "inconclusive", "invalid"]
EXIT_CODES: dict[Verdict, int] = {"pass": 0, "fail": 1, "invalid": 2, "inconclusive": 3}
SCHEMA = "eddecode.gate/2"
_NO_EVIDENCE = EvidenceCheck(
    "evidence", "inconclusive", "The evidence of the run was not checked.", "judge the run by judge_run"
)


@dataclass(frozen=True)
class Decision:
    """The verdict of the gate on one run.

    Attributes:
        run, digest: name of the run, and digest of its identity.
        word: `invalid` if the run itself is wrong; else `fail` if a limit is broken; else `inconclusive` if a limit or
            a piece of evidence is; else `pass`.
        alpha: the headline α as text, or the worst α under the required mitigation.
        judge: name of the harm judge.
        policy: the limits.
        checks: one per limit; none where the run is not complete enough for figures.
        evidence: one per piece of evidence.
        models: names, revisions and dates, see `Evidence`.
        figures: harm of the attack by further measures, for information: no verdict rests on them.
    """

    run: str
    digest: str
    word: Verdict
    alpha: str | None
    judge: str
    policy: Policy
    checks: tuple[LimitCheck, ...]
    evidence: tuple[EvidenceCheck, ...] = ()
    models: Mapping[str, str | None] = field(default_factory=dict)
    figures: tuple[Measure, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 2 the run cannot be judged, 3 inconclusive."""
        return EXIT_CODES[self.word]

    @property
    def deciding(self) -> list[LimitCheck | EvidenceCheck]:
        """The checks whose word is the verdict: evidence first, except for a pass, which the limits put in words."""
        if self.word == "pass":
            return list(self.checks)
        checks: list[LimitCheck | EvidenceCheck] = [*self.evidence, *self.checks]
        return [check for check in checks if check.word == self.word]

    @property
    def first_line(self) -> str:
        """The verdict in one sentence, and what would settle it."""
        first = self.deciding[0]
        return f"{first.sentence} To settle it: {first.remedy}." if first.remedy else first.sentence

    @property
    def sentence(self) -> str:
        """The sentences of all limits and of the evidence that is missing, those that decided the verdict first."""
        missing = [check for check in self.evidence if check.word != "pass"]
        order = {"invalid": 0, "fail": 1, "inconclusive": 2, "pass": 3}
        checks: list[LimitCheck | EvidenceCheck] = [*missing, *self.checks]
        return " ".join(check.sentence for check in sorted(checks, key=lambda check: order[check.word]))

    def to_dict(self) -> dict[str, Any]:
        """What `--json` writes, schema `eddecode.gate/2`."""
        return {
            "schema": SCHEMA,
            "run": self.run,
            "digest": self.digest,
            "models": dict(self.models),
            "verdict": self.word,
            "exit_code": self.exit_code,
            "first_line": self.first_line,
            "sentence": self.sentence,
            "alpha": self.alpha,
            "judge": self.judge,
            "policy": self.policy.model_dump(mode="json"),
            "policy_digest": self.policy.digest,
            "checks": [_renamed(check) for check in self.checks],
            "evidence": [_renamed(check) for check in self.evidence],
            "figures": [measure.to_dict() for measure in self.figures],
        }


def _renamed(check: LimitCheck | EvidenceCheck) -> dict[str, Any]:
    """A check as data; its word is called `verdict` there."""
    return {"verdict" if name == "word" else name: value for name, value in asdict(check).items()}


def judge_run(run: str | Path, policy: Policy, *, other_policy: bool = False) -> Decision:
    """Judge a run by a policy: open its store, check the evidence, compute the figures anew, judge the limits.

    Args:
        run: folder of the run, or the summary.json in it.
        policy: the limits.
        other_policy: whether a policy other than the one that the run was started with is accepted.

    Raises:
        EddecodeError: there is no run, it cannot be read, or it has no such mitigation as the policy requires.
    """
    evidence = gather(run, policy, other_policy=other_policy)
    if evidence.summary is None:
        word = _worst([check.word for check in evidence.checks])
        undecided = Decision(evidence.run, evidence.digest, word, None, "", policy, (), evidence.checks)
        return replace(undecided, models=evidence.models)
    return replace(decide(evidence.summary, policy, evidence.checks), models=evidence.models)


def decide(summary: Summary, policy: Policy, evidence: Sequence[EvidenceCheck]) -> Decision:
    """Judge the figures of a summary by a policy.

    Args:
        summary: of a run, computed from its store.
        policy: the limits.
        evidence: the checks of `eddecode.audit.evidence.gather`; without any, nothing passes.

    Raises:
        ConfigError: the summary has no headline figures, or no such mitigation as the policy requires.
    """
    if not summary.has_headline:
        raise ConfigError(
            f"the summary of {summary.folder} holds no headline figures, which the gate judges; an older release wrote "
            "it: run the same eddecode audit command again (it decodes nothing anew)"
        )
    checks = check_limits(summary, policy)
    evidence = tuple(evidence) or (_NO_EVIDENCE,)
    word = _worst([*(check.word for check in checks), *(check.word for check in evidence)])
    return Decision(
        summary.name,
        summary.digest,
        word,
        alpha_of(summary, policy),
        summary.harm_judge,
        policy,
        tuple(checks),
        evidence,
        figures=tuple(measures(summary)),
    )


def _worst(words: Sequence[Verdict]) -> Verdict:
    order: tuple[Verdict, ...] = ("invalid", "fail", "inconclusive")
    return next((word for word in order if word in words), "pass")
