"""Finding 5, exactly: sequence-level against token-level emulated disalignment on an enumerable toy model.

The model has all 4,096 sequences of six tokens from a vocabulary of four, under a random autoregressive base. With
p_aligned ∝ p_base·exp(r/β) the sequence-level distribution p_base^(1+α)/p_aligned^α is p_base·exp(−α·r/β) up to its
normalizer (Zhou et al., arXiv 2402.12343, section 3): an identity. In practice the two models are contrasted token by
token, which gives another distribution. How far the two are apart is computed here without sampling, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from eddecode.experiments.findings import plots
from eddecode.experiments.findings.criteria import Floats
from eddecode.experiments.findings.experiment import Experiment, ExperimentResult, ResultTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eddecode.experiments.findings.harness import ExperimentHarness

VOCABULARY, LENGTH = 4, 6
BETAS = (2.0, 1.0, 0.5, 0.25, 0.1)
ALPHAS = (0.1, 0.3, 0.6, 1.0, 2.0)
IDENTITY_TOLERANCE = 1e-6
"""Total variation up to which the identity counts as met."""
CLOSE = 0.05
"""Total variation that counts as close."""
COLUMNS = (
    "β", "α", "α/β", "TV(token, sequence)", "E[r] base", "E[r] aligned", "E[r] sequence", "E[r] token",
)  # fmt: skip


def _normalize(logs: Floats) -> Floats:
    logs = logs - logs.max()
    out: Floats = logs - np.log(np.exp(logs).sum())
    return out


def total_variation(p: Floats, q: Floats) -> float:
    """Half the L1 distance of two distributions given by their logarithms."""
    return float(0.5 * np.abs(np.exp(p) - np.exp(q)).sum())


def conditionals(log_p: Floats) -> list[Floats]:
    """Next-token log-probabilities of a distribution over sequences (V^L,): per position (V^t, V), by prefix."""
    tables = []
    for t in range(LENGTH):
        prefix = np.logaddexp.reduce(log_p.reshape(VOCABULARY ** (t + 1), -1), axis=1)
        table = prefix.reshape(-1, VOCABULARY)
        tables.append(table - np.logaddexp.reduce(table, axis=1, keepdims=True))
    return tables


@dataclass(frozen=True)
class EnumerablePair:
    """Base, reward and aligned model over every sequence; the index is the tokens read as digits, first token first."""

    seed: int

    @cached_property
    def base(self) -> Floats:
        """(V^L,) log-probability of each sequence: every prefix has random logits of standard deviation 1."""
        rng = np.random.default_rng(self.seed)
        total = np.zeros(1)
        for t in range(LENGTH):
            z = rng.standard_normal((VOCABULARY**t, VOCABULARY))
            z -= np.logaddexp.reduce(z, axis=1, keepdims=True)
            total = (total[:, None] + z).reshape(-1)
        return total

    @cached_property
    def reward(self) -> Floats:
        """(V^L,) reward: minus the number of occurrences of token 0 (the unwanted one), plus random noise."""
        tokens = np.stack(np.unravel_index(np.arange(VOCABULARY**LENGTH), (VOCABULARY,) * LENGTH))
        noise = np.random.default_rng(self.seed + 1).standard_normal(VOCABULARY**LENGTH)
        reward: Floats = -(tokens == 0).sum(0) + 0.3 * noise
        return reward

    def aligned(self, beta: float) -> Floats:
        """The optimum of the reward under a KL penalty: base·exp(r/β), normalized."""
        return _normalize(self.base + self.reward / beta)

    def sequence_level(self, alpha: float, beta: float) -> Floats:
        """p_base^(1+α)/p_aligned^α over whole sequences, normalized."""
        return _normalize((1 + alpha) * self.base - alpha * self.aligned(beta))

    def token_level(self, alpha: float, beta: float) -> Floats:
        """The distribution of token-by-token sampling: the product of normalized next-token contrasts."""
        total = np.zeros(1)
        for b, a in zip(conditionals(self.base), conditionals(self.aligned(beta)), strict=True):
            z = (1 + alpha) * b - alpha * a
            z -= np.logaddexp.reduce(z, axis=1, keepdims=True)
            total = (total[:, None] + z).reshape(-1)
        return total

    def expected(self, log_p: Floats) -> float:
        """Expected reward under a distribution."""
        return float(np.exp(log_p) @ self.reward)


def grid(pair: EnumerablePair) -> list[dict[str, float]]:
    """For every α and β: error of the identity, distance of token and sequence level, expected rewards."""
    rows = []
    for beta in BETAS:
        for alpha in ALPHAS:
            sequence, token = pair.sequence_level(alpha, beta), pair.token_level(alpha, beta)
            tilted = _normalize(pair.base - alpha * pair.reward / beta)
            rows.append(
                {
                    "alpha": alpha,
                    "beta": beta,
                    "identity": total_variation(sequence, tilted),
                    "distance": total_variation(sequence, token),
                    "reward_base": pair.expected(pair.base),
                    "reward_aligned": pair.expected(pair.aligned(beta)),
                    "reward_sequence": pair.expected(sequence),
                    "reward_token": pair.expected(token),
                }
            )
    return rows


def measure_identity(harness: ExperimentHarness) -> ExperimentResult:
    """The identity, at every α and β."""
    rows = grid(EnumerablePair(harness.seed))
    worst = max(row["identity"] for row in rows)
    count = VOCABULARY**LENGTH
    summary = f"largest total variation {worst:.1e} over {len(rows)} pairs of α and β, {count} sequences"
    figures = {"worst": worst, "tolerance": IDENTITY_TOLERANCE, "grid": rows}
    return ExperimentResult(worst < IDENTITY_TOLERANCE, summary, figures)


def measure_token_level(harness: ExperimentHarness) -> ExperimentResult:
    """How well token-level sampling approximates the sequence level."""
    rows = grid(EnumerablePair(harness.seed))
    gentle = [row for row in rows if row["alpha"] / row["beta"] <= 0.3]
    strong = [row for row in rows if row["alpha"] / row["beta"] >= 1.0]
    near, far = max(row["distance"] for row in gentle), min(row["distance"] for row in strong)
    worst = max(rows, key=lambda row: row["distance"])
    lowers_reward = all(row["reward_token"] < row["reward_base"] for row in rows)
    summary = (
        f"total variation at most {near:.3f} where α/β ≤ 0.3, at least {far:.3f} where α/β ≥ 1, "
        f"{worst['distance']:.2f} at worst (α={worst['alpha']:g}, β={worst['beta']:g}); "
        f"expected reward below the base's at {'every' if lowers_reward else 'not every'} α and β"
    )
    shown = [
        (
            *(f"{x:.2g}" for x in (r["beta"], r["alpha"], r["alpha"] / r["beta"])),
            f"{r['distance']:.4f}",
            *(f"{r[f'reward_{name}']:.3f}" for name in ("base", "aligned", "sequence", "token")),
        )
        for r in rows
    ]
    return ExperimentResult(
        near <= CLOSE < far and lowers_reward,
        summary,
        {"near": near, "far": far, "worst": worst, "lowers_reward_everywhere": lowers_reward},
        [ResultTable("Token against sequence level, exactly", COLUMNS, shown)],
    )


def draw(results: Sequence[ExperimentResult]) -> Figure:
    """Distance and expected reward against α, a line per β (of the first seed)."""
    figure, (left, right) = plots.axes(2)
    rows = results[0].figures["grid"]
    for i, beta in enumerate(BETAS):
        line = [row for row in rows if row["beta"] == beta]
        xs, style = [row["alpha"] for row in line], plots.style(i)
        left.plot(xs, [row["distance"] for row in line], label=f"β = {beta:g}", **style)
        right.plot(xs, [row["reward_token"] for row in line], **style)
        right.plot(xs, [row["reward_sequence"] for row in line], **{**style, "linestyle": ":", "marker": ""})
    right.axhline(rows[0]["reward_base"], color=plots.GRAY, linewidth=1)
    right.annotate("base", (ALPHAS[-1], rows[0]["reward_base"]), ha="right", va="top", color=plots.GRAY)
    left.set(xlabel="α", ylabel="TV(token, sequence)", title="Token-level is not sequence-level")
    right.set(xlabel="α", ylabel="expected reward", title="Both lower the reward (dotted: sequence)")
    plots.legend(figure, 5)
    return figure


IDENTITY = Experiment(
    "theory-identity",
    5,
    "The identity, exactly",
    "If the aligned model is base·exp(r/β), sequence-level ED is base·exp(−α·r/β): it minimizes what the alignment "
    "maximized.",
    f"Total variation below {IDENTITY_TOLERANCE:g} at every α and β of the grid, over all sequences of an enumerable "
    "toy model.",
    measure_identity,
    draw,
    "A mathematical identity; that it holds here shows that the code computes it.",
)
TOKEN_LEVEL = Experiment(
    "theory-token-level",
    5,
    "Token-level sampling, exactly",
    "Sampling token by token approximates the sequence level while α/β is small, departs from it beyond, and still "
    "lowers the expected reward everywhere.",
    f"Total variation to the sequence level ≤ {CLOSE:g} wherever α/β ≤ 0.3 and above it wherever α/β ≥ 1; "
    "expected reward below that of the base at every α and β of the grid.",
    measure_token_level,
    limits="A random model of short sequences: how fast they depart depends on the spread of the reward over tokens.",
)
