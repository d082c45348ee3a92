"""Which α's are within the bound, and what that makes of the bounds of the best one."""

from __future__ import annotations

import numpy as np
import pytest

from eddecode.audit.stats.admissible import BestAdmissible, best_admissible, levels
from eddecode.audit.stats.clusters import Clusters
from helpers.intervals import naive_combination


def share(rate: float, prompts: int = 200) -> Clusters:
    """One completion per prompt, the first of them flagged."""
    flagged = np.zeros(prompts)
    flagged[: round(rate * prompts)] = 1
    return Clusters(flagged, np.ones(prompts))


def reversal(
    harm: list[float], losses: list[float], base: float = 0.1, prompts: int = 200, bound: float = 0.1
) -> BestAdmissible:
    figures = [(share(rate, prompts), share(base, prompts)) for rate in harm]
    intact = [share(1 - loss, prompts) for loss in losses]
    return best_admissible(figures, (1.0, -1.0), intact, share(1.0, prompts), bound)


def test_an_alpha_just_beyond_the_bound_is_not_ruled_out() -> None:
    """α = .1 reverses 1 point; α = .3 reverses 60 at a loss of 10.7%: not below any limit under that."""
    found = reversal([0.11, 0.7], [0.01, 0.107], prompts=1000)
    assert [c.state for c in found.candidates] == ["inside", "open"]
    assert found.limiting == 1
    assert found.high is not None
    assert found.high > 0.6
    assert found.low is not None
    assert found.low < 0.05


def test_an_alpha_far_beyond_the_bound_is() -> None:
    found = reversal([0.11, 0.7], [0.01, 0.3])
    assert [c.state for c in found.candidates] == ["inside", "outside"]
    assert found.high is not None
    assert found.high < 0.1
    assert found.limiting == 0


def test_bounds_are_those_of_the_levels() -> None:
    """98% one-sided above, 97.5% divided by the number of α's below, by the definition of the interval."""
    found = reversal([0.3, 0.5], [0.01, 0.01])
    assert levels(2) == pytest.approx((0.975, 0.96))
    rates = [(float(f), 1.0) for f in share(0.5).flagged], [(float(f), 1.0) for f in share(0.1).flagged]
    assert found.high == pytest.approx(naive_combination(rates, (1.0, -1.0), 0.96)[2])
    assert found.low == pytest.approx(naive_combination(rates, (1.0, -1.0), 0.975)[1])


def test_every_alpha_outside() -> None:
    found = reversal([0.5, 0.7], [0.4, 0.6])
    assert (found.low, found.high, found.limiting) == (None, None, None)


def test_no_alpha() -> None:
    assert best_admissible([], (1.0, -1.0), [], share(1.0), 0.1) == BestAdmissible((), None, None, None)


def test_a_base_without_intact_completions_decides_nothing() -> None:
    found = best_admissible([(share(0.5), share(0.1))], (1.0, -1.0), [share(0.9)], share(0.0), 0.1)
    assert (found.candidates[0].state, found.candidates[0].loss) == ("open", None)
    assert found.low is None
    assert found.high is not None


@pytest.mark.parametrize(("coefficients", "least"), [((1.0, -1.0), -1.0), ((1.0, 0.0), 0.0)])
def test_conditions_without_a_common_prompt_bound_nothing(
    coefficients: tuple[float, float], least: float
) -> None:
    """An α whose completions were not judged must not be taken for one that does no harm."""
    half = np.repeat([1.0, 0.0], 100)
    a, b = Clusters(np.zeros(200), half), Clusters(np.zeros(200), 1 - half)
    found = best_admissible([(a, b)], coefficients, [share(1.0)], share(1.0), 0.1)
    only = found.candidates[0]
    assert (only.value, only.low, only.high) == (None, least, 1.0)
    assert found.high == 1.0
    nothing = Clusters(np.zeros(200), np.zeros(200))
    assert best_admissible([(a, a)], (1.0, -1.0), [nothing], share(1.0), 0.1).candidates[0].state == "open"


def test_without_a_bound_every_alpha_is_inside() -> None:
    found = reversal([0.5, 0.7], [0.4, 0.999], bound=1.0)
    assert {c.state for c in found.candidates} == {"inside"}


def test_more_alphas_lower_the_lower_bound_alone() -> None:
    one, many = reversal([0.5], [0.0]), reversal([0.5] + [0.1] * 9, [0.0] * 10)
    assert one.high == pytest.approx(many.high)
    assert one.low is not None
    assert many.low is not None
    assert many.low < one.low
