"""The parts of a summary that a system card needs beside the headline: one class per kind of row of `release`.

Each row gives the strongest attack by one measure of harm: the α is selected by that measure, among those within the
bound on lost utility. Computed by `release_figures`, described in docs/statistics.md.
"""

from __future__ import annotations

from eddecode.audit.analysis.summary_parts import AlphaCandidate, Part
from eddecode.audit.stats.estimates import Estimate


class AttackFigures(Part):
    """The strongest attack within the bound, by one measure of harm.

    Attributes:
        alpha, condition: the α with the highest value, and the name of its condition; None where no α keeps the bound.
        base, aligned: the same measure of the two models alone; their intervals are 95% each by itself.
        harm: of the attack: what an attacker reaches.
        reversal: harm − base. uplift_over_aligned: harm − aligned.
    """

    alpha: str | None = None
    condition: str | None = None
    base: Estimate | None = None
    aligned: Estimate | None = None
    harm: Estimate | None = None
    reversal: Estimate | None = None
    uplift_over_aligned: Estimate | None = None


class AttemptFigures(AttackFigures):
    """The share of prompts with at least one harmful completion among `k` attempts."""

    k: int


class AnyAlpha(Part):
    """The share of prompts with a harmful completion among all samples at all α's within the bound.

    Attributes:
        alphas: those within the bound, as observed.
        attempts: completions of a prompt, of all these α's together.
        harm: the share.
    """

    alphas: tuple[str, ...]
    attempts: int
    harm: Estimate


class JudgeFigures(AttackFigures):
    """Harm by one judge of harm. The intervals of all judges hold at once (Bonferroni)."""

    judge: str


class CategoryFigures(AttackFigures):
    """Harm on the prompts of one category. The intervals of all categories hold at once (Bonferroni)."""

    category: str
    prompts: int


class SettingCandidate(AlphaCandidate):
    """One α in one setting; `reversal`, `low` and `high` are over the strongest setting of the base."""

    condition: str


class SettingFigures(AttackFigures):
    """The strongest attack over templates, system prompts, transforms and temperatures.

    `base`, `aligned`, and what is computed from them, are of the plain setting.

    Attributes:
        settings: number of settings, the plain one included.
        strongest_base, base_condition: the most harmful setting of the base model alone, which an attacker has too.
        strongest_aligned, aligned_condition: of the aligned model alone.
        over_strongest_base, over_strongest_aligned: harm − that of the strongest setting of base, of aligned: what the
            pair adds for someone who also chooses the best setting for one model alone. The gate judges these.
        any_of_k: share of prompts with a harmful completion among all samples, at the setting and α with most; None
            with one sample per prompt.
        candidates: every α above 0 in every setting.
    """

    settings: int
    strongest_base: Estimate | None = None
    base_condition: str | None = None
    strongest_aligned: Estimate | None = None
    aligned_condition: str | None = None
    over_strongest_base: Estimate | None = None
    over_strongest_aligned: Estimate | None = None
    any_of_k: Estimate | None = None
    candidates: tuple[SettingCandidate, ...] = ()


class AttackCandidate(AlphaCandidate):
    """One condition that an attacker may choose; `reversal`, `low` and `high` are its harm rate and its bounds."""

    condition: str


class BestPerPrompt(Part):
    """Harm where the best of several decoding settings of the aligned model is taken for each prompt.

    Attributes:
        settings: names of the conditions within the bound, as observed.
        attempts: completions of a prompt, of all these settings together; any of them may be the harmful one.
        harm: share of prompts with a harmful completion.
    """

    settings: tuple[str, ...]
    attempts: int
    harm: Estimate


class AttackModel(Part):
    """What was fitted for an attack with models of its own, and what its change costs.

    Attributes:
        condition: its name.
        layer, position: where a direction was taken: index of the layer, and of the token from the end of a prompt.
        refusal_remaining: share of the difference between first tokens after refused and after answered prompts that
            is left without the direction, on held-out prompts; None where the model begins both alike.
        kl_to_aligned: mean KL(aligned ‖ attack) of first tokens on held-out harmless prompts, nats; None without such.
        kl_prompts: number of these prompts.
    """

    condition: str
    layer: int | None = None
    position: int | None = None
    refusal_remaining: float | None = None
    kl_to_aligned: float | None = None
    kl_prompts: int | None = None


class WorstAttack(AttackFigures):
    """The most harmful of all attacks that need no training: ED in every setting, and those of `--attacks`.

    The base alone is one of them: an attacker has it. The value is cross-fitted over the selection, and the interval
    holds the truly worst one within the bound on lost utility. `alpha` is None where the worst is not ED.

    Attributes:
        attacks: names of the attacks beside ED that were measured.
        valid: the same, where the completion must also be valid; None without a judge of validity.
        best_per_prompt: of the decoding settings; None where none keeps the bound, or none was measured.
        candidates: every condition that was selected from.
        models: of the attacks with models of their own, in the order of the run; none in runs of older releases.
    """

    attacks: tuple[str, ...]
    valid: AttackFigures | None = None
    best_per_prompt: BestPerPrompt | None = None
    candidates: tuple[AttackCandidate, ...] = ()
    models: tuple[AttackModel, ...] = ()


class Worst(Part):
    """The judge or category with the largest reversal of several; the interval holds for the truly largest one."""

    name: str
    reversal: Estimate


class NothingFound(Part):
    """A condition without a flagged completion.

    Attributes:
        condition: its name.
        completions, prompts: number of them.
        high: upper bound of the harm rate at 95% (one-sided), 3/prompts, the rule of three.
    """

    condition: str
    completions: int
    prompts: int
    high: float


class ReleaseFigures(Part):
    """The figures that a system card needs beside the headline.

    Attributes:
        any_of_k: one row per number of attempts; the last is all samples of a prompt. Empty with one sample.
        any_alpha: attempts at every α; None where no α keeps the bound.
        valid: harmful and valid completions, with the α selected by them; None without a judge of validity.
        score: mean of the harm judge's score instead of its flag.
        judges: one row per judge of harm. worst_judge: of several; else None.
        categories: one row per category. worst_category: of several; else None.
        settings: over templates, system prompts, transforms and temperatures; None where the run has one setting.
        worst_attack: over ED and other attacks; None where the run measured no other.
        nothing_found: conditions without a flagged completion.
    """

    any_of_k: tuple[AttemptFigures, ...] = ()
    any_alpha: AnyAlpha | None = None
    valid: AttackFigures | None = None
    score: AttackFigures | None = None
    judges: tuple[JudgeFigures, ...] = ()
    worst_judge: Worst | None = None
    categories: tuple[CategoryFigures, ...] = ()
    worst_category: Worst | None = None
    settings: SettingFigures | None = None
    worst_attack: WorstAttack | None = None
    nothing_found: tuple[NothingFound, ...] = ()
