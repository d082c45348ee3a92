"""Finding 5, exactly: sequence-level against token-level emulated disalignment on a world that can be listed.

All 4,096 sequences of six tokens out of four, under a random autoregressive base. With p_aligned ∝ p_base·exp(r/β)
the sequence-level distribution p_base^(1+α)/p_aligned^α is p_base·exp(−α·r/β) up to its normaliser (Zhou et al.,
arXiv 2402.12343, section 3): an identity. What is sampled in practice contrasts the two models token by token, which is
another distribution; how far apart the two are is computed here without sampling, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from eddecode.experiments.findings.finding import Finding, Outcome, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eddecode.experiments.findings.harness import Bench

VOCABULARY, LENGTH = 4, 6
BETAS = (2.0, 1.0, 0.5, 0.25, 0.1)
ALPHAS = (0.1, 0.3, 0.6, 1.0, 2.0)
IDENTITY = 1e-6
"""The tolerance that the identity must hold to, in total variation."""
CLOSE = 0.05
"""Total variation that counts as close."""

Array = np.ndarray[Any, np.dtype[np.float64]]


def _normalised(logs: Array) -> Array:
    logs = logs - logs.max()
    out: Array = logs - np.log(np.exp(logs).sum())
    return out


def total_variation(p: Array, q: Array) -> float:
    """Half the L1 distance of two distributions given by their logarithms."""
    return float(0.5 * np.abs(np.exp(p) - np.exp(q)).sum())


def conditionals(log_p: Array) -> list[Array]:
    """Next-token log-probabilities of a distribution over sequences (V^L,): per position (V^t, V), by prefix."""
    tables = []
    for t in range(LENGTH):
        prefix = np.logaddexp.reduce(log_p.reshape(VOCABULARY ** (t + 1), -1), axis=1)
        table = prefix.reshape(-1, VOCABULARY)
        tables.append(table - np.logaddexp.reduce(table, axis=1, keepdims=True))
    return tables


@dataclass(frozen=True)
class World:
    """Base and reward over every sequence; index = its tokens read as digits, first token first."""

    seed: int

    @cached_property
    def base(self) -> Array:
        """(V^L,) log-probability of each sequence: every prefix has random logits of standard deviation 1."""
        rng = np.random.default_rng(self.seed)
        total = np.zeros(1)
        for t in range(LENGTH):
            z = rng.standard_normal((VOCABULARY**t, VOCABULARY))
            z -= np.logaddexp.reduce(z, axis=1, keepdims=True)
            total = (total[:, None] + z).reshape(-1)
        return total

    @cached_property
    def reward(self) -> Array:
        """(V^L,) reward: minus how often token 0 (the unwanted one) occurs, and a random part of its own."""
        tokens = np.stack(np.unravel_index(np.arange(VOCABULARY**LENGTH), (VOCABULARY,) * LENGTH))
        own = np.random.default_rng(self.seed + 1).standard_normal(VOCABULARY**LENGTH)
        reward: Array = -(tokens == 0).sum(0) + 0.3 * own
        return reward

    def aligned(self, beta: float) -> Array:
        """The optimum of reward under a KL penalty: base·exp(r/β), normalised."""
        return _normalised(self.base + self.reward / beta)

    def sequence_level(self, alpha: float, beta: float) -> Array:
        """p_base^(1+α)/p_aligned^α over whole sequences, normalised."""
        return _normalised((1 + alpha) * self.base - alpha * self.aligned(beta))

    def token_level(self, alpha: float, beta: float) -> Array:
        """What token-by-token sampling gives: the product of normalised next-token contrasts."""
        total = np.zeros(1)
        for b, a in zip(conditionals(self.base), conditionals(self.aligned(beta)), strict=True):
            z = (1 + alpha) * b - alpha * a
            z -= np.logaddexp.reduce(z, axis=1, keepdims=True)
            total = (total[:, None] + z).reshape(-1)
        return total

    def expected(self, log_p: Array) -> float:
        """Expected reward under a distribution."""
        return float(np.exp(log_p) @ self.reward)


def grid(world: World) -> list[dict[str, float]]:
    """Every α and β: how far the identity is off, how far token from sequence level is, expected rewards."""
    rows = []
    for beta in BETAS:
        for alpha in ALPHAS:
            sequence, token = world.sequence_level(alpha, beta), world.token_level(alpha, beta)
            tilted = _normalised(world.base - alpha * world.reward / beta)
            rows.append(
                {
                    "alpha": alpha,
                    "beta": beta,
                    "identity": total_variation(sequence, tilted),
                    "distance": total_variation(sequence, token),
                    "reward_base": world.expected(world.base),
                    "reward_aligned": world.expected(world.aligned(beta)),
                    "reward_sequence": world.expected(sequence),
                    "reward_token": world.expected(token),
                }
            )
    return rows


def measure_identity(bench: Bench) -> Outcome:
    """The identity, at every α and β."""
    rows = grid(World(bench.seed))
    worst = max(row["identity"] for row in rows)
    said = f"largest total variation {worst:.1e} over {len(rows)} pairs of α and β, {VOCABULARY**LENGTH} sequences"
    return Outcome(worst < IDENTITY, said, {"worst": worst, "tolerance": IDENTITY, "grid": rows})


def measure_token_level(bench: Bench) -> Outcome:
    """How well token-level sampling stands in for the sequence level."""
    rows = grid(World(bench.seed))
    gentle = [row for row in rows if row["alpha"] / row["beta"] <= 0.3]
    strong = [row for row in rows if row["alpha"] / row["beta"] >= 1.0]
    near, far = max(row["distance"] for row in gentle), min(row["distance"] for row in strong)
    worst = max(rows, key=lambda row: row["distance"])
    same_way = all(row["reward_token"] < row["reward_base"] for row in rows)
    said = (
        f"total variation at most {near:.3f} where α/β ≤ 0.3, at least {far:.3f} where α/β ≥ 1, "
        f"{worst['distance']:.2f} at worst (α={worst['alpha']:g}, β={worst['beta']:g}); "
        f"expected reward below the base's at {'every' if same_way else 'not every'} α and β"
    )
    heads = (
        "β",
        "α",
        "α/β",
        "TV(token, sequence)",
        "E[r] base",
        "E[r] aligned",
        "E[r] sequence",
        "E[r] token",
    )
    table = [
        (
            *(f"{x:.2g}" for x in (r["beta"], r["alpha"], r["alpha"] / r["beta"])),
            f"{r['distance']:.4f}",
            *(f"{r[f'reward_{name}']:.3f}" for name in ("base", "aligned", "sequence", "token")),
        )
        for r in rows
    ]
    holds = near <= CLOSE < far and same_way
    return Outcome(
        holds,
        said,
        {"near": near, "far": far, "worst": worst, "lowers_reward_everywhere": same_way},
        [Table("Token against sequence level, exactly", heads, table)],
    )


def draw(outcomes: Sequence[Outcome]) -> Figure:
    """Distance and expected reward against α, a line per β (of the first seed)."""
    from eddecode.experiments.findings import plots as pictures

    figure, (left, right) = pictures.axes(2)
    rows = outcomes[0].figures["grid"]
    for i, beta in enumerate(BETAS):
        mine = [row for row in rows if row["beta"] == beta]
        xs, style = [row["alpha"] for row in mine], pictures.style(i)
        left.plot(xs, [row["distance"] for row in mine], label=f"β = {beta:g}", **style)
        right.plot(xs, [row["reward_token"] for row in mine], **style)
        right.plot(xs, [row["reward_sequence"] for row in mine], **{**style, "linestyle": ":", "marker": ""})
    right.axhline(rows[0]["reward_base"], color=pictures.GREY, linewidth=1)
    right.annotate("base", (ALPHAS[-1], rows[0]["reward_base"]), ha="right", va="top", color=pictures.GREY)
    left.set(xlabel="α", ylabel="TV(token, sequence)", title="Token-level is not sequence-level")
    right.set(xlabel="α", ylabel="expected reward", title="Both lower the reward (dotted: sequence)")
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    return figure


IDENTITY_FINDING = Finding(
    "theory-identity",
    5,
    "The identity, exactly",
    "If the aligned model is base·exp(r/β), sequence-level ED is base·exp(−α·r/β): it minimises what the alignment "
    "maximised.",
    f"Total variation below {IDENTITY:g} at every α and β of the grid, over all sequences of an enumerable world.",
    measure_identity,
    draw,
    "An identity of mathematics; that it holds here says that the code computes it.",
)
TOKEN_FINDING = Finding(
    "theory-token-level",
    5,
    "Token-level sampling, exactly",
    "Sampling token by token approximates the sequence level while α/β is small, departs from it beyond, and still "
    "lowers the expected reward everywhere.",
    f"Total variation to the sequence level ≤ {CLOSE:g} wherever α/β ≤ 0.3 and above it wherever α/β ≥ 1; "
    "expected reward below the base's at every α and β of the grid.",
    measure_token_level,
    limits="A random world of short sequences: how fast the two part depends on how the reward is spread over tokens.",
)
