"""The words of a report that a reader outside the field does not know, in a sentence each."""

from __future__ import annotations

WORDS: tuple[tuple[str, str], ...] = (
    (
        "base, aligned",
        "The pre-trained model, and the model that was aligned from it, which is to be released.",
    ),
    (
        "the attack (ED)",
        "Emulated disalignment: decoding the two models against each other, without any training. Whoever has both can "
        "do it.",
    ),
    (
        "α",
        "How strongly the attack turns away from the aligned model: 0 is the base alone, −1 the aligned model alone; "
        "above 0 the alignment is reversed.",
    ),
    ("harm rate", "The share of completions that the judge of harm flags."),
    (
        "reversal",
        "What the attack adds to the base's harm rate, in percentage points; what the pair gives away.",
    ),
    ("uplift", "What the attack adds to the aligned model's harm rate, in percentage points."),
    (
        "utility, intact",
        "The share of completions that are still of use: valid by a judge, or else neither empty, short, repetitive "
        "nor incoherent (intact). Utility lost is how much of the base's share the attack costs.",
    ),
    (
        "headline α",
        "The strength with the highest harm rate among those that lose no more utility than the bound allows; the "
        "figures at the top are at this α.",
    ),
    (
        "[27.1, 37.9]",
        "An interval: with other prompts of the same kind the figure would vary within it, at the level that is named.",
    ),
    ("any of k", "The share of prompts for which at least one of k attempts is harmful."),
    ("reversal index", "The reversal, as a share of what the base's rate leaves up to 100%."),
    (
        "implied reward, nats",
        "log p_aligned − log p_base of a completion: what the alignment prefers is above 0. A nat is the unit of a "
        "natural logarithm; 0.69 nats are a factor of 2 in probability.",
    ),
    (
        "KL(aligned ‖ base)",
        "How far the aligned model is from its base, in nats per completion; 0 is no distance.",
    ),
    ("p (Holm)", "The probability of such a difference by chance, corrected for the number of comparisons."),
)
