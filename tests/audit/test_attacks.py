"""Names of attacks, their conditions in a run, and decoding settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eddecode.audit.attacks import SWEEP, parse_attacks
from eddecode.audit.config_file import read_config_file
from eddecode.audit.store.store import Store
from eddecode.errors import ConfigError
from helpers.stub_runs import config, exported, run
from helpers.stub_sampler import StubSampler


def test_names_are_canonical_and_each_is_taken_once() -> None:
    found = parse_attacks(
        "weights@-.30, weights@-0.3:chat,prefill:05,handover:3,prefill=Sure, here,decoding:k5-t0.70"
    )
    names = [attack.name for attack in found]
    assert names[:4] == ["weights@-0.3", "weights@-0.3:chat", "prefill:5", "handover:3"]
    assert names[4].startswith("prefill=Sure_here.")
    assert [a.rank for a in parse_attacks("lowrank@08,lowrank@4:chat,weights@2")] == [8, 4, 0]
    assert found[4].text == "Sure, here"
    assert names[5] == "decoding:t0.7-k5"
    assert found[5].sampling == {"temperature": 0.7, "top_k": 5.0}
    fitted = parse_attacks("ablate,ablate:03,steer@.50,steer@2:1,w2s@1.0,amplify@0.50")
    assert [a.name for a in fitted] == [
        *("ablate", "ablate:3", "steer@0.5", "steer@2:1", "w2s@1", "amplify@0.5")
    ]
    assert [a.alpha for a in fitted] == ["-1"] * 5 + ["-1.5"]
    assert [a.layer for a in fitted] == [None, 3, None, 1, None, None]
    assert [parse_attacks([a.name])[0] for a in fitted] == list(fitted)
    assert [attack.name for attack in parse_attacks("decoding")] == [f"decoding:{each}" for each in SWEEP]
    assert parse_attacks(["prefill=a "])[0].name != parse_attacks(["prefill=a"])[0].name  # blanks are tokens
    assert all(
        parse_attacks([attack.name])[0].sampling == attack.sampling for attack in parse_attacks("decoding")
    )
    with pytest.raises(ConfigError, match="given twice"):
        parse_attacks("weights@0.5,weights@.5")
    with pytest.raises(ConfigError, match="given twice"):
        parse_attacks(["decoding", "decoding:t1"])


@pytest.mark.parametrize(
    "name",
    [
        *(
            "weights",
            "weights@",
            "weights@x",
            "weights@1",
            "weights@0",
            "weights@nan",
            "prefill",
            "prefill:0",
        ),
        *(
            "prefill:-1",
            "prefill= ",
            "handover:x",
            "decoding:",
            "decoding:q1",
            "decoding:t1-t2",
            "decoding:p0",
        ),
        *(
            "ablate:",
            "ablate:-1",
            "ablate:x",
            "steer",
            "steer@",
            "steer@0",
            "steer@1:",
            "w2s@-1",
            "amplify@1:2",
        ),
        *("decoding:p1.5", "lowrank@0", "lowrank@-1", "lowrank@x", "decoding:k1.5", "finetune", "", " "),
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        parse_attacks([name])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(("", "the list of attacks is empty"), (" ", "the list of attacks is empty")),
        *((",ablate", "which has an empty entry"), ("ablate,", "no attack 'ablate,'")),
        *(("ablate,,steer@1", "no attack 'ablate,'"), (",", "no attack ','")),
    ],
)
def test_a_list_without_attacks_or_with_a_gap_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, attacks=text)
    assert config(tmp_path, attacks=()).attacks == ()
    assert config(tmp_path, attacks="prefill=Well,").attacks == ("prefill=Well,",)  # its text has the comma


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacks": "prefill:24"}, "begins with 24 tokens"),
        ({"attacks": "weights@-0.3", "quantization": "4bit"}, "quantized"),
        ({"attacks": "decoding:t0"}, "same completion every time"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, max_new_tokens=24, **changes)


class _Watching(StubSampler):
    def as_completed(self, prompts: Any, params: Any) -> Iterator[Any]:
        self.asked = [*getattr(self, "asked", []), *zip(prompts, params, strict=True)]
        return super().as_completed(prompts, params)


def test_conditions_are_decoded_stored_grown_and_exported(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "ask"}]
    pair, merged = _Watching(), _Watching()
    changes: dict[str, Any] = {"prompts": [chat, "other"], "alphas": "1", "top_k": 7}
    run(config(tmp_path / "run", **changes))
    settings = config(tmp_path / "run", **changes, attacks="weights@-0.3,decoding:p0.5")
    run(settings, sampler={"": pair, "weights@-0.3": merged}, grow=True)
    assert [(prompt, p.alpha, p.top_k) for prompt, p in merged.asked] == [(chat, -1.0, 7), ("other", -1.0, 7)]
    # The decoding attack has its own sampling, and no system prompt.
    asked = [(prompt, p.alpha, p.temperature, p.top_p, p.top_k) for prompt, p in pair.asked]
    assert asked == [([chat[1]], -1.0, 1.0, 0.5, 0), ("other", -1.0, 1.0, 0.5, 0)]
    rows = exported(tmp_path / "run")
    assert {(r["condition"], r["attack"], r["alpha"], r["name"]) for r in rows} == {
        ("aligned", "", -1, "aligned"),
        ("base", "", 0, "base"),
        ("ed", "ed", 1, "ed@1"),
        ("weights", "weights@-0.3", -1, "weights@-0.3"),
        ("decoding", "decoding:p0.5", -1, "decoding:p0.5"),
    }
    with Store.read(tmp_path / "run") as store:
        assert store.note("identity")["attacks"] == ["weights@-0.3", "decoding:p0.5"]
        assert store.conditions() == settings.conditions()
    assert read_config_file(tmp_path / "run" / "audit.toml")["attacks"] == ("weights@-0.3", "decoding:p0.5")
    assert [r["name"] for r in exported(tmp_path / "run") if r["temperature"] != settings.temperature] == []
    with pytest.raises(ConfigError, match=r"none for the weights@0\.5"):
        run(config(tmp_path / "run2", **changes, attacks="weights@0.5"))
    with pytest.raises(ConfigError, match=r"needs an eddecode\.Sampler"):
        run(config(tmp_path / "run3", **changes, attacks="prefill:3"))
