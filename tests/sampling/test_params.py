"""SamplingParams: values that are accepted, and errors by message."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from eddecode.errors import EddecodeError, ParamsError
from eddecode.sampling.params import SamplingParams


def test_sequences_become_tuples() -> None:
    params = SamplingParams(stop="END", stop_token_ids=[3, np.int64(4)], suppress_tokens=range(2))  # type: ignore[arg-type]
    assert (params.stop, params.stop_token_ids, params.suppress_tokens) == (("END",), (3, 4), (0, 1))
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]
    assert hash(params) == hash(params.replace())


def test_replace_checks_again() -> None:
    params = SamplingParams(alpha=0.3)
    assert params.replace(alpha=1).alpha == 1
    assert params.alpha == 0.3
    with pytest.raises(ParamsError, match="top_k is -1"):
        params.replace(top_k=-1)


@pytest.mark.parametrize("alpha", [-100.0, -1, 0, 1e6])
def test_any_finite_alpha_is_accepted(alpha: float) -> None:
    assert SamplingParams(alpha=alpha).alpha == alpha


BAD: list[tuple[dict[str, Any], str]] = [
    ({"alpha": math.nan}, "alpha is nan; expected a finite number"),
    ({"alpha": math.inf}, "alpha is inf; expected a finite number"),
    ({"alpha": "1"}, "alpha is '1'; expected a finite number"),
    ({"temperature": -0.1}, "temperature is -0.1; expected a value of at least 0"),
    ({"temperature": True}, "temperature is True; expected a finite number"),
    ({"top_p": 0}, r"top_p is 0; expected a value in \(0, 1\]; .* use temperature=0"),
    ({"top_p": 1.1}, "top_p is 1.1; expected a value of at most 1"),
    ({"min_p": -1}, "min_p is -1; expected a value of at least 0"),
    ({"plausibility": 2}, "plausibility is 2; expected a value of at most 1"),
    ({"top_k": -1}, "top_k is -1; expected a value of at least 0"),
    ({"top_k": 10**30}, "top_k is 10+; expected a value below 9223372036854775808"),
    ({"suppress_tokens": [2**63]}, r"suppress_tokens\[0\] is 9223372036854775808; expected a value below"),
    ({"temperature": 1e39}, r"temperature is 1e\+39; expected a value of at most 1e\+30"),
    ({"top_k": 2.5}, "top_k is 2.5; expected an integer"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0; expected a value of at least 1"),
    ({"n": 0}, "n is 0; expected a value of at least 1"),
    ({"n": True}, "n is True; expected an integer"),
    ({"seed": -1}, "seed is -1; expected a value of at least 0"),
    ({"seed": 2**64}, "seed is 18446744073709551616; expected a value below 18446744073709551616"),
    ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens is 9, above max_new_tokens=8; lower one or"),
    ({"stop": ["a", ""]}, r"stop\[1\] is ''; expected text of length 1 or more"),
    ({"stop": [3]}, r"stop\[0\] is 3; expected text"),
    ({"stop": 3}, "stop is 3; expected a sequence of strings"),
    ({"stop_token_ids": 3}, "stop_token_ids is 3; expected a sequence of token ids"),
    ({"stop_token_ids": [-1]}, r"stop_token_ids\[0\] is -1; expected a value of at least 0"),
    ({"temprature": 1}, r"temprature is unknown; did you mean temperature\?"),
    ({"access": 3}, "access is 3; expected"),
    ({"suppress_tokens": ["a"]}, r"suppress_tokens\[0\] is 'a'; expected an integer"),
]


@pytest.mark.parametrize(("setting", "message"), BAD)
def test_bad_values_are_named(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message) as caught:
        SamplingParams(**setting)
    assert isinstance(caught.value, EddecodeError)
    assert isinstance(caught.value, ValueError)
