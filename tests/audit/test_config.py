"""AuditConfig: what follows from it, and the values that it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eddecode.audit.config import AuditConfig
from eddecode.errors import ConfigError
from eddecode.sampling.access import Access


def config(**changes: Any) -> AuditConfig:
    return AuditConfig(**{"base": "b", "aligned": "a", "prompts": ["hello"], "out": "run", **changes})


def test_parameters_follow_from_the_condition() -> None:
    made = config(alphas="0.3", mitigations="topk5", temperature=0.7)
    params = made.params(made.conditions()[-1], 2)
    assert (params.alpha, params.access, params.temperature, params.n) == (0.3, Access(top_k=5), 0.7, 2)
    assert made.params(made.conditions()[0], 1).access is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mitigations": "topk5", "alphas": "0,-1"}, "no alpha is left for the conditions with a mitigation"),
        ({"extra_alphas": "1"}, "extra_alphas are the α's of conditions with .* and there is none"),
        (
            {"direction_harmful": ["a"], "attacks": "prefill:5"},
            "direction_harmful is given, and no attack reads it",
        ),
        ({"direction_harmless": ["a"]}, "direction_harmless is given, and no attack reads it"),
        ({"weak_aligned": "x"}, r"weak_aligned is given, and no attack reads it; .* w2s \(--attacks\)"),
        ({"ensemble": {"a": "x"}}, "ensemble is .*; expected a list of checkpoints, each text or a path"),
        ({"min_tokens": 10**20}, "min_tokens is 10+; expected a value below"),
        ({"utility_loss": 1.5}, "utility_loss is 1.5"),
        ({"min_tokens": -1}, "min_tokens is -1"),
        ({"alpah": 1}, "alpah is unknown; did you mean alphas?"),
        ({"samples": "4"}, "samples is '4'; expected an integer"),
        ({"temperature": float("nan")}, "temperature is nan; expected a finite number"),
        ({"base": 3}, "base is 3; expected text or a path"),
        ({"judges": ()}, "expected at least one judge"),
        ({"systems": {"a": 3}}, "systems.a is 3; expected text"),
        ({"systems": {"a b": "x"}}, "a system prompt is called 'a b'"),
        ({"systems": {"a": " "}}, "system prompt a is ' '; expected text"),
    ],
)
def test_configurations_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_an_adapter_is_not_run_alone(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is an adapter, and an audit cannot tell"):
        config(finetuned=tmp_path)


@pytest.mark.parametrize(
    "name", ["base", "aligned", "out", "finetuned", "weak_base", "policy", "canaries", "ensemble"]
)
def test_a_blank_location_is_not_the_current_folder(tmp_path: Path, name: str) -> None:
    for blank in ("", " "):
        given: Any = (blank,) if name == "ensemble" else blank
        with pytest.raises(ConfigError, match=rf"^{name} is .*; expected a file, a folder or a name"):
            AuditConfig(**{"base": "b", "aligned": "a", "prompts": ["p"], "out": tmp_path, name: given})


def test_a_model_is_in_an_ensemble_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model of the ensemble x is given twice"):
        AuditConfig(base="b", aligned="a", prompts=["p"], out=tmp_path, ensemble=("x", Path("x")))
