"""The parts of a run's summary: one class per kind of row in `summary.json`, described in docs/statistics.md.

The same classes are filled by the analysis and read back from the file, so that a report sees what the analysis wrote.
A field has a default where a file may lack it: a run without mitigations, or one that an older release wrote. Keys that
a class does not know are ignored. The order of the fields is the order of the keys in the file.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from eddecode.audit.stats.estimates import CorrectedRate, Estimate, Rate

_NUMBER = r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"


class Part(BaseModel):
    """A part of the summary; it cannot be changed."""

    model_config = ConfigDict(frozen=True)


class JudgeInfo(Part):
    """A judge of the run.

    Attributes:
        name: under which its verdicts are stored.
        role: `harm`, `validity` or `refusal`.
        identity: version of the judge.
        kind: `lexicon`, `guard` …, whatever its name; empty where an older release recorded it.
    """

    name: str
    role: str
    identity: str
    kind: str = ""


class CanarySummary(Part):
    """How the harm judge judged completions whose harm is known.

    Attributes:
        digest: of the set.
        harmful, harmful_flagged: number of harmful ones, and how many of them it flags.
        harmless, harmless_flagged: of the harmless ones.
    """

    digest: str
    harmful: int
    harmful_flagged: int
    harmless: int
    harmless_flagged: int


class UtilitySummary(Part):
    """Whether the completions of one condition are still text.

    Attributes:
        kind: `validity` (decided by a judge) or `composite` (within the range of the base's own completions).
        rate: of intact completions.
        loss: 1 − rate / rate of base, on the same prompts; None for base itself.
        within: whether the loss keeps the run's bound.
        perplexity: geometric mean over completions of the perplexity per token under the base.
        distinct_1, distinct_2, repetition: means over completions.
        too_short: share of completions with fewer than 8 tokens of text.
    """

    kind: str
    rate: Rate
    loss: Estimate | None
    within: bool
    perplexity: float | None
    distinct_1: float | None
    distinct_2: float | None
    repetition: float | None
    too_short: float | None


class ConditionSummary(Part):
    """The figures of one condition.

    Attributes:
        name, label: its key, and its name for people.
        condition: `base`, `aligned` or `ed`.
        alpha: α as exact text.
        system, transform, mitigation, model, temperature, template: what is changed about it; None: nothing.
        completions, dropped: number that count, and number that harm rates leave out as too short.
        rates: judge name → rate of flagged completions.
        any_of_k: share of prompts with a completion flagged by the harm judge among all samples; None with one sample.
        harm_and_valid: rate of completions that the harm judge and every validity judge flag; None without the latter.
        categories: category of the prompts → harm rate.
        corrected: judge name → harm rate corrected by human labels.
        utility: whether it is still text; None in summaries of schema 1.
        mean_tokens: mean length of all completions in tokens, EOS included.
        mean_implied_reward: mean of log p_aligned − log p_base of a completion, nats, rounded to 0.001; None if not
            finite.
        finish_reasons: reason → number of completions, those too short included.
    """

    name: str
    label: str
    condition: str
    alpha: str = Field(pattern=_NUMBER)
    system: str | None = None
    transform: str | None = None
    mitigation: str | None = None
    model: str | None = None
    temperature: str | None = None
    template: str | None = None
    completions: int = 0
    dropped: int = 0
    rates: dict[str, Rate] = {}
    any_of_k: Estimate | None = None
    harm_and_valid: Rate | None = None
    categories: dict[str, Rate] = {}
    corrected: dict[str, CorrectedRate] = {}
    utility: UtilitySummary | None = None
    mean_tokens: float = 0.0
    mean_implied_reward: float | None = None
    finish_reasons: dict[str, int] = {}

    @property
    def plain(self) -> bool:
        """Whether nothing is changed about it: the conditions of the curve over α."""
        changed = (self.system, self.transform, self.mitigation, self.model, self.temperature, self.template)
        return not any(changed)


class HeadlineEstimates(Part):
    """The figures at a selected α, on the same prompts; `harm` and what is computed from it is cross-fitted.

    Attributes:
        alpha, condition: the α and the name of its condition; None where no α was selected.
        reason: why no α was selected, else empty.
        harm: harm rate, free of the bias of the selection.
        plain: harm rate as observed at that α.
        reversal: harm − base.
        uplift_over_aligned: harm − aligned.
        ratio_to_base, ratio_to_aligned: harm / base, harm / aligned.
        reversal_index: reversal / (1 − base), Abbott's index.
        utility_loss: of the condition.
    """

    alpha: str | None = None
    condition: str | None = None
    reason: str = ""
    harm: Estimate | None = None
    plain: Rate | None = None
    reversal: Estimate | None = None
    uplift_over_aligned: Estimate | None = None
    ratio_to_base: Estimate | None = None
    ratio_to_aligned: Estimate | None = None
    reversal_index: Estimate | None = None
    utility_loss: Estimate | None = None


class ValidHarmEstimates(Part):
    """The figures for completions that are harmful and valid, at the headline α (not selected again)."""

    base: Rate
    aligned: Rate
    plain: Rate
    reversal: Estimate
    ratio_to_base: Estimate


class AlphaCandidate(Part):
    """One α of the sweep as the decision sees it.

    Attributes:
        alpha: as exact text.
        state: of its loss of utility: clearly within the bound (`inside`), clearly beyond it (`outside`), or `open`.
        loss: of utility, 1 − u(α)/u(base).
        reversal: harm rate − base.
        low, high: one-sided bounds of the reversal (see `eddecode.audit.stats.admissible`).
    """

    alpha: str
    state: str
    loss: float | None
    reversal: float | None
    low: float
    high: float


class Headline(HeadlineEstimates):
    """The figures that a decision rests on. Intervals of harm, reversal and uplift hold the best admissible α.

    Attributes:
        judge: name of the harm judge.
        bound: largest loss of utility that an α may have; None in summaries of schema 1.
        utility: its measure, `validity` or `composite`.
        base, aligned: harm rates; None in summaries of schema 1.
        valid: the figures for harmful and valid completions; None without a validity judge.
        unconstrained: the figures of the α selected without the bound.
        candidates: every α of the sweep with the state of its loss of utility.
        corrected_reversal: the reversal of rates that are corrected by human labels; None without labels of both base
            and the headline α.
        any_of_k: share of prompts with at least one harmful completion among all samples, at the α with the highest
            share; None with one sample per prompt.
        attempts: k, samples per prompt; None in files of older releases.
    """

    judge: str | None = None
    bound: float | None = None
    utility: str | None = None
    base: Rate | None = None
    aligned: Rate | None = None
    valid: ValidHarmEstimates | None = None
    unconstrained: HeadlineEstimates | None = HeadlineEstimates()
    candidates: tuple[AlphaCandidate, ...] = ()
    corrected_reversal: Estimate | None = None
    any_of_k: Estimate | None = None
    attempts: int | None = None


class SelectionSummary(Part):
    """How the headline α was selected.

    Attributes:
        method: `cross-fit`, or `none` with fewer than two candidates.
        splits: number of random halvings.
        candidates: α's above 0. admissible: those within the bound on lost utility.
        picked: α → share of half-samples that selected it.
        plain_maximum: highest observed harm rate. cross_fitted: harm rate free of the selection's bias.
        optimism: the difference of the two.
    """

    method: str = "none"
    splits: int = 0
    candidates: tuple[str, ...] = ()
    admissible: tuple[str, ...] = ()
    picked: dict[str, float] = {}
    plain_maximum: float | None = None
    cross_fitted: float | None = None
    optimism: float | None = None


class PairedComparison(Part):
    """A condition against base or aligned, on the same prompts.

    Attributes:
        condition, against: their names.
        family: tests that were corrected together.
        p, p_holm: two-sided p-value, and after Holm's correction within the family.
        method: `mcnemar-exact`, `sign-flip-exact` or `sign-flip`.
        prompts, up, down: number compared, with a higher and with a lower harm rate than the reference.
        difference, ratio: of the two harm rates.
    """

    condition: str
    against: str
    family: str
    p: float
    method: str
    prompts: int
    up: int
    down: int
    difference: Estimate
    ratio: Estimate
    p_holm: float


class MitigationSummary(Part):
    """The reversal that remains under a mitigation, at the worst α within the bound on lost utility.

    Attributes:
        mitigation: its name; None: the attack without one.
        conditions: names of the conditions under it.
        condition, alpha: the worst one; None where no α keeps the bound.
        harm, reversal: under the mitigation.
        reduction: headline reversal − this one. left: this reversal / headline reversal.
        utility_loss: of the condition.
        uplift_over_aligned: harm − aligned.
        any_of_k: as that of the headline, under the mitigation.
        candidates: every α that was tried under it; `reversal`, `low`, `high` as in the headline.
        note: why there are no figures, else empty.
    """

    mitigation: str | None
    conditions: tuple[str, ...] = ()
    condition: str | None = None
    alpha: str | None = None
    harm: Estimate | None = None
    reversal: Estimate | None = None
    reduction: Estimate | None = None
    left: Estimate | None = None
    utility_loss: Estimate | None = None
    uplift_over_aligned: Estimate | None = None
    any_of_k: Estimate | None = None
    candidates: tuple[AlphaCandidate, ...] = ()
    note: str = ""


class TransformedRate(Part):
    """The harm rate of one model with changed prompts, and its difference to the same model with plain prompts."""

    condition: str
    alpha: str
    rate: Rate
    uplift: Estimate | None


class TransferSummary(Part):
    """The effect of one setting on base, aligned and ED: of a transform, system prompt, temperature, or templates.

    Attributes:
        transform, system, temperature, template: all but one of them are None.
        found_for: model that the transform was found for, if its file names one.
        base, aligned, ed: None where it was not run.
    """

    transform: str | None = None
    system: str | None = None
    temperature: str | None = None
    template: str | None = None
    found_for: str | None = None
    base: TransformedRate | None = None
    aligned: TransformedRate | None = None
    ed: TransformedRate | None = None


class JudgeAgreement(Part):
    """Cohen's κ of two judges of one role.

    Attributes:
        first, second, role: the judges.
        kappa, low, high: κ with its interval; None where it is not defined.
        agreement, expected: share of completions on which they agree, and the share that chance would give.
        n, effective: number of completions, and the number of independent ones with the same information.
    """

    first: str
    second: str
    role: str
    kappa: float | None
    low: float | None
    high: float | None
    agreement: float
    expected: float
    n: int
    effective: float


class ImpliedReward(Part):
    """Mean implied reward log p_aligned − log p_base of one condition, nats per completion and per token."""

    condition: str
    alpha: str
    completion: Estimate
    token: float | None


class KLPerToken(Part):
    """The two KL divergences divided by the mean length of a completion, nats per token."""

    base_aligned: float | None
    aligned_base: float | None


class KLDivergence(Part):
    """KL(base ‖ aligned) and KL(aligned ‖ base), nats per completion; None where `note` says why."""

    base_aligned: Estimate | None = None
    aligned_base: Estimate | None = None
    per_token: KLPerToken | None = None
    note: str = ""


class RewardPosition(Part):
    """Mean implied reward per token of the positions from `first` to `last` (from 0), nats."""

    first: int
    last: int
    mean: float | None
    low: float | None
    high: float | None
    completions: int


class RewardProfile(Part):
    """Implied reward by position in the completion, of one condition."""

    condition: str
    alpha: str
    positions: tuple[RewardPosition, ...]


class JudgeFree(Part):
    """The figures that need no judge; `depth` is empty where the run keeps no values per token."""

    implied_reward: tuple[ImpliedReward, ...] = ()
    kl: KLDivergence = KLDivergence()
    depth: tuple[RewardProfile, ...] = ()


class BenignRow(Part):
    """One condition on the benign set.

    Attributes:
        name, label: of the condition.
        completions: of benign prompts.
        rates: judge of refusals, or the harm judge → its rate on them.
    """

    name: str
    label: str
    completions: int = 0
    rates: dict[str, Rate] = {}


class BenignFigures(Part):
    """Refusals of harmless prompts.

    Attributes:
        prompts, distinct_prompts: of the benign set.
        judge: name of the judge whose flags are the false refusals.
        rows: one per condition.
    """

    prompts: int
    distinct_prompts: int
    judge: str
    rows: tuple[BenignRow, ...] = ()
