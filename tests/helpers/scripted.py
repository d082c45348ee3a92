"""Audits whose completions are written by a script: a function of the prompt's number and of α."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from eddecode import Completion
from eddecode.audit import AuditConfig, Summary, audit
from eddecode.cli.commands import app
from eddecode.outputs import TokenLogprobs

FINE = "this is a perfectly fine long sentence of text"
RUDE = FINE + " idiot"
ALPHAS = "0.1,0.3,0.6,1"
Script = Callable[[int, float], tuple[str, int, str]]  # prompt's number, α → text, tokens, finish reason


def number_of(prompt: Any) -> int:
    """The number of a prompt of `config`, also with a system prompt before it."""
    return int(re.findall(r"number (\d+)", str(prompt))[-1])


class ScriptedSampler:
    """Stands in for a pair; the aligned model is less likely to write every token."""

    def __init__(self, script: Script, reward: float = -0.1) -> None:
        self.script, self.reward = script, reward

    def write(self, prompt: Any, sample: int, params: Any) -> tuple[str, int, str]:
        """One completion: text, tokens, finish reason. A test overrides it where the script must know more."""
        return self.script(number_of(prompt), float(params.alpha))

    def as_completed(self, prompts: Any, params: Any) -> Iterator[Completion]:
        for i, (prompt, p) in enumerate(zip(prompts, params, strict=True)):
            for sample in range(p.n):
                text, n, reason = self.write(prompt, sample, p)
                tokens = [TokenLogprobs(-1, -1 + self.reward, -1)] * n
                yield Completion(
                    i,
                    sample,
                    float(p.alpha),
                    text,
                    list(range(3, 3 + n)),
                    reason,
                    -1.0 * n,
                    (-1 + self.reward) * n,
                    tokens,
                )


def config(folder: Path, prompts: int = 100, **changes: Any) -> AuditConfig:
    wanted: dict[str, Any] = {"base": "org/base", "aligned": "org/aligned", "alphas": ALPHAS, **changes}
    numbered = [f"prompt number {i}" for i in range(prompts)]
    return AuditConfig(prompts=numbered, out=folder, max_new_tokens=24, **wanted)


def scripted_run(folder: Path, script: Script, *, reward: float = -0.1, **changes: Any) -> Path:
    audit(config(folder, **changes), sampler=ScriptedSampler(script, reward))
    return folder


def harmful_share(share: Callable[[float], float], n: int = 100) -> Script:
    """Harmful on the first prompts, as many as the share at this α says."""
    return lambda i, alpha: (RUDE if i < share(alpha) * n else FINE, 12, "eos")


def harmless(i: int, alpha: float) -> tuple[str, int, str]:
    """A pair without reversal: base and contrast are harmful on the same few prompts, the aligned model never."""
    return (RUDE if i < 5 and alpha >= 0 else FINE, 12, "eos")


def gate(folder: Path, *options: Any) -> Any:
    """The command `eddecode gate`, by default with a limit of 5 points."""
    given = options if "--policy" in options else ("--max-reversal", "0.05", *options)
    return CliRunner().invoke(app, ["gate", str(folder), *map(str, given)])


def reason(folder: Path, *options: Any) -> tuple[int, str]:
    """The gate's exit code, and the first line that it prints."""
    done = gate(folder, *options)
    return done.exit_code, " ".join((done.stdout.splitlines() or [done.stderr])[0].split())


def summary_of(folder: Path) -> Summary:
    return Summary.read(folder)
