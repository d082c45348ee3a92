"""The highest reversal among the α's within the utility bound, when which α's are within it is uncertain too.

An attacker takes the α with the most harm whose completions are still useful: whose loss of utility is at most ε. Both
the reversal and the loss of each α are estimates. So every α is in one of three states:

- *inside*: its loss is clearly at most ε, at 97.5% (one-sided), divided by the number of α's as below.
- *outside*: its loss is clearly above ε, at 99.5%.
- *open*: neither; also where the loss cannot be measured, because no completion of the base is intact.

An upper bound of the best reversal is the largest upper bound (98%, one-sided) of all α's that are not outside. It is
wrong only if the α that is truly best was put outside (0.5%) or lies above its own bound (2%): together at most 2.5%,
whatever the number of α's, since the bound has to hold for that one α only (an intersection-union test: Berger,
Technometrics 24, 1982). No correction for several α's is needed, and none is made.

A lower bound is the largest lower bound of the α's that are inside. Here each α is a chance to be wrong, by its loss if
it truly is outside and by its reversal if it is inside, so that the 2.5% are divided by their number (Bonferroni).

Where several α's are about equally good, the upper bound is cautious (the largest of several), and an interval covers
more often than 95%.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from eddecode.audit.stats.clusters import Clusters, shared
from eddecode.audit.stats.mover import Combination

ERROR = 0.025  # of each side
EXCLUDING = 0.005  # of it, for putting the best α outside
State = Literal["inside", "open", "outside"]


@dataclass(frozen=True)
class Candidate:
    """One α as the decision sees it.

    Attributes:
        state: of its loss of utility against the bound.
        loss: of utility, 1 − u(α)/u(base); None where the base has no intact completion.
        value: of the figure, such as its reversal; None where no prompt has completions of all its conditions.
        low, high: one-sided bounds of the figure: simultaneous over the α's below, 98% above.
    """

    state: State
    loss: float | None
    value: float | None
    low: float
    high: float


@dataclass(frozen=True)
class BestAdmissible:
    """What the data say about the highest value of a figure among the α's within the bound.

    Attributes:
        candidates: one per α, in the order given.
        low: None where no α is clearly inside.
        high: None where every α is clearly outside, or there is none.
        limiting: index of the α that the upper bound is from.
    """

    candidates: tuple[Candidate, ...]
    low: float | None
    high: float | None
    limiting: int | None


def best_admissible(
    figures: Sequence[Sequence[Clusters]],
    coefficients: Sequence[float],
    intact: Sequence[Clusters],
    base_intact: Clusters,
    bound: float,
    together: int = 1,
) -> BestAdmissible:
    """Bounds of the highest value of a figure among the α's whose loss of utility is at most `bound`.

    Args:
        figures: per α, the conditions that the figure is computed from: (harm at α, harm of base) for the reversal.
        coefficients: of their rates: (1, −1) for the reversal, (1,) for a harm rate.
        intact: per α, intact completions by prompt. base_intact: of the base model.
        bound: ε, such as 0.1.
        together: number of figures whose bounds are to hold at once (Bonferroni).
    """
    lower, upper = levels(len(figures), together)
    limits = (-1.0 if min(coefficients) < 0 else 0.0), 1.0
    candidates = []
    for conditions, kept in zip(figures, intact, strict=True):
        state, loss = loss_state(kept, base_intact, bound, lower, EXCLUDING / together)
        conditions = shared(*conditions)
        if not len(conditions[0].total):
            candidates.append(Candidate(state, loss, None, *limits))
            continue
        combined = Combination(conditions, upper)
        value, _, high = combined.estimate(coefficients)
        _, low, _ = combined.at(lower).estimate(coefficients)
        candidates.append(Candidate(state, loss, value, max(low, limits[0]), min(high, limits[1])))
    return best_of(candidates)


def best_over_references(
    harm: Sequence[Clusters],
    references: Sequence[Clusters],
    intact: Sequence[Clusters],
    base_intact: Clusters,
    bound: float,
) -> BestAdmissible:
    """Bounds of (highest rate among the candidates within the bound) − (highest rate among the references).

    The difference to the highest reference is the smallest of the differences to every reference. Its upper bound is
    the smallest of the upper bounds, each with the error divided by the number of references (Bonferroni): the one of
    the truly highest reference must hold. Its lower bound is the smallest of the lower bounds, of which all must be
    wrong together, so that nothing is divided.

    Args:
        harm, intact: per candidate, such as ED at every α with every system prompt. base_intact: as in
            `best_admissible`.
        references: such as the base model with every system prompt.
        bound: ε.
    """
    lower, upper = levels(len(harm))[0], levels(1, len(references))[1]
    candidates = []
    for own, kept in zip(harm, intact, strict=True):
        state, loss = loss_state(kept, base_intact, bound, lower)
        value, low, high = 1.0, 1.0, 1.0
        for reference in references:
            pair = shared(own, reference)
            if not len(pair[0].total):
                low = -1.0
                continue
            combined = Combination(pair, upper)
            difference, _, most = combined.estimate((1.0, -1.0))
            _, least, _ = combined.at(lower).estimate((1.0, -1.0))
            value, low, high = min(value, difference), min(low, max(least, -1.0)), min(high, most)
        candidates.append(Candidate(state, loss, value, low, high))
    return best_of(candidates)


def levels(count: int, together: int = 1) -> tuple[float, float]:
    """Levels of the two-sided intervals that the lower and the upper bounds of so many α's are the ends of.

    Args:
        count: number of α's.
        together: number of figures whose bounds are to hold at once.
    """
    return 1 - 2 * ERROR / (max(count, 1) * together), 1 - 2 * (ERROR - EXCLUDING) / together


def best_of(candidates: Sequence[Candidate]) -> BestAdmissible:
    """The bounds of the highest value from those of every α."""
    inside = [c.low for c in candidates if c.state == "inside"]
    possible = [i for i, c in enumerate(candidates) if c.state != "outside"]
    limiting = max(possible, key=lambda i: candidates[i].high, default=None)
    highest = None if limiting is None else candidates[limiting].high
    return BestAdmissible(tuple(candidates), max(inside, default=None), highest, limiting)


def loss_state(
    intact: Clusters, base: Clusters, bound: float, level: float, excluding: float = EXCLUDING
) -> tuple[State, float | None]:
    """(state, loss) of one α: u(α) − (1 − ε)·u(base) is at least 0 exactly where the loss is at most ε.

    Args:
        intact, base: intact completions of the α and of the base.
        bound: ε.
        level: of the two-sided interval whose lower end says that an α is inside, see `levels`.
        excluding: chance of error of putting an α outside.
    """
    intact, base = shared(intact, base)
    if not base.rate > 0:  # also NaN, without a common prompt
        return "open", None
    coefficients = (1.0, bound - 1.0)
    combined = Combination((intact, base), level)
    _, low, _ = combined.estimate(coefficients)
    _, _, high = combined.at(1 - 2 * excluding).estimate(coefficients)
    state: State = "inside" if low >= 0 else "outside" if high < 0 else "open"
    return state, 1 - intact.rate / base.rate
