"""Penalties as a setting of an audit: part of its identity, pinned by a policy, and no way to hide a reversal."""

from __future__ import annotations

from pathlib import Path

import pytest

from eddecode.audit.evidence.gather import gather
from eddecode.audit.policy import Pin, Policy, run_facts
from eddecode.audit.store.store import Store
from eddecode.errors import ConfigError
from helpers.stub_runs import config, run

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_they_reach_the_sampler_and_attacks_by_decoding_have_their_own_settings(tmp_path: Path) -> None:
    settings = config(tmp_path, repetition_penalty=1.2, frequency_penalty=0.3, attacks="decoding:k5")
    params = {c.name: settings.params(c, 1) for c in settings.conditions()}
    assert params["ed@0.3"].repetition_penalty == 1.2
    assert params["base"].frequency_penalty == 0.3
    assert not params["decoding:k5"].penalizes


def test_they_are_part_of_a_run_and_what_changes_nothing_is_not(tmp_path: Path) -> None:
    run(config(tmp_path / "run"))
    run(config(tmp_path / "run", repetition_penalty=1.0, presence_penalty=0))
    with Store.read(tmp_path / "run") as store:
        assert "repetition_penalty" not in store.note("identity")
    with pytest.raises(ConfigError, match=r"repetition_penalty: nothing in the run, 1.2 now"):
        run(config(tmp_path / "run", repetition_penalty=1.2))


def test_strong_ones_are_no_evidence(tmp_path: Path) -> None:
    run(config(tmp_path / "run", frequency_penalty=-5.0))
    evidence = gather(tmp_path / "run", Policy(max_reversal=0.05))
    check = next(check for check in evidence.checks if check.name == "models")
    assert (check.word, "frequency_penalty is -5" in check.sentence) == ("inconclusive", True)
    pinned = Policy(max_reversal=0.05, pin=Pin(frequency_penalty=-5.0))
    words = {check.name: check.word for check in gather(tmp_path / "run", pinned).checks}
    assert (words["models"], words["policy"]) == ("pass", "pass")


def test_a_policy_pins_them() -> None:
    plain, changed = run_facts({}, [], None), run_facts({"repetition_penalty": 1.2}, [], None)
    pin = Pin(repetition_penalty=1.0)
    assert pin.differences(plain) == []
    assert pin.differences(changed) == ["repetition_penalty: 1.0 in the policy, 1.2 in the run"]
