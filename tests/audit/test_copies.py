"""What counts once: prompts that differ in nothing that is asked, and attempts that are one text."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eddecode.audit import audit
from helpers.scripted import FINE, RUDE, ScriptedSampler, config, gate, scripted_run

ASKED = [f"where is the café number {i}?" for i in range(12)]
COPIES: tuple[Callable[[str], Any], ...] = (
    lambda text: unicodedata.normalize("NFD", text),
    lambda text: text.replace("w", "\uff57"),  # full width
    lambda text: text.replace("where", "𝐰𝐡𝐞𝐫𝐞"),
    lambda text: f"“{text}”",
    lambda text: text.removesuffix("?"),
    lambda text: text.replace("w", "w\ufe0f"),  # a variation selector
    lambda text: [{"role": "user", "content": text}],
    lambda text: [{"role": "system", "content": f"Be {len(text)}."}, {"role": "user", "content": text}],
)


def said(folder: Path, policy: str) -> tuple[int, str]:
    (folder / "policy.toml").write_text(policy)
    done = gate(folder, "--policy", folder / "policy.toml")
    return done.exit_code, " ".join(done.stdout.split())


def asked(folder: Path, prompts: list[Any]) -> tuple[int, str]:
    settings = config(folder)
    script = ScriptedSampler(lambda i, alpha: (RUDE if i == 0 and alpha >= 0 else FINE, 12, "eos"))
    audit(type(settings)(**{**vars(settings), "prompts": prompts}), sampler=script)
    return said(folder, "max_reversal = 0.5\n")


def test_copies_of_prompts_are_no_evidence(tmp_path: Path) -> None:
    code, text = asked(tmp_path, [*ASKED, *(copy(text) for copy in COPIES for text in ASKED)])
    assert code == 3
    assert f"Only 12 of {12 + 12 * len(COPIES)} prompts differ" in text


def test_what_is_asked_differently_counts(tmp_path: Path) -> None:
    """Another number, another sign, another vowel sign of a script that has them, and another turn before it."""
    hindi = [{"role": "user", "content": "number 20 कि"}, {"role": "assistant", "content": "ok"}]
    last = {"role": "user", "content": "go on, number 21"}
    prompts = [*ASKED, "number 30: 2+2", "number 30: 2×2", "number 31 कि", "number 31 की", [*hindi, last]]
    prompts.append([{"role": "user", "content": "number 22"}, hindi[1], last])
    assert "prompts differ in" not in asked(tmp_path, prompts)[1]


def test_several_attempts_with_one_text_are_one(tmp_path: Path) -> None:
    """As with top_k = 1, or a temperature near 0."""

    class Varied(ScriptedSampler):
        def write(self, prompt: Any, sample: int, params: Any) -> tuple[str, int, str]:
            text, *rest = super().write(prompt, sample, params)
            return (f"{text} {sample}", *rest)  # type: ignore[return-value]

    def script(i: int, alpha: float) -> tuple[str, int, str]:
        return RUDE if i < 5 and alpha >= 0 else FINE, 12, "eos"

    policy = "max_any_of_k = 0.3\n"
    code, text = said(scripted_run(tmp_path / "same", script, samples=2), policy)
    assert code == 3
    assert "100.0% have the same text in all of them: copies of one attempt" in text
    audit(config(tmp_path / "varied", samples=2), sampler=Varied(script))
    assert said(tmp_path / "varied", policy)[0] == 0


@pytest.mark.parametrize(
    ("settings", "found", "pin"),
    [
        ({"temperature": 5.0}, "temperature is 5", "temperature = 5.0"),
        ({"repetition_penalty": 0.5}, "repetition_penalty is 0.5", "repetition_penalty = 0.5"),
    ],
)
def test_settings_that_spoil_every_text(
    tmp_path: Path, settings: dict[str, Any], found: str, pin: str
) -> None:
    script = ScriptedSampler(lambda i, alpha: (RUDE if i < 5 and alpha >= 0 else FINE, 12, "eos"))
    audit(config(tmp_path, **settings), sampler=script)
    code, text = said(tmp_path, "max_reversal = 0.05\n")
    assert code == 3
    assert found in text
    assert said(tmp_path, f"max_reversal = 0.05\n[pin]\n{pin}\n")[0] == 0
