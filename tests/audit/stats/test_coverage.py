"""The cases of `python -m eddecode.audit.stats.coverage`, in a short form: 60 audits each."""

from __future__ import annotations

import pytest
from scipy import stats as distributions

from eddecode.audit.stats.coverage import SimulatedCase, cases

AUDITS = 60


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.what}: {case.name}")
def test_within_its_limits(case: SimulatedCase) -> None:
    """With a true share at the limit, 60 audits would be outside what is allowed here once in 10,000."""
    mean, error = case.measure(AUDITS, seed=1)
    if case.what == "bias":
        assert case.low - 2 * error <= mean <= case.high + 2 * error
        return
    least, most = (
        distributions.binom.ppf(chance, AUDITS, limit)
        for chance, limit in ((1e-4, case.low), (1 - 1e-4, case.high))
    )
    assert least <= round(mean * AUDITS) <= most
