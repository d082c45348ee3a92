"""The whole experiment on one seed: samples, alignments, control, conditions, criteria. Every step can be resumed."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from eddecode.audit.judges.base import Case
from eddecode.errors import ConfigError
from eddecode.experiments.findings.experiment import ExperimentResult
from eddecode.experiments.real.alignment import Report, Sample, draw_samples, fine_tune_adapter
from eddecode.experiments.real.judges import Validity, filter_judge, praise_judge
from eddecode.experiments.real.measure import decode_conditions, judge_condition, quality_of
from eddecode.experiments.real.openers import held_out_openers, training_openers
from eddecode.experiments.real.protocol import RealProtocol
from eddecode.experiments.real.results import evaluate
from eddecode.utils.files import atomic_write


@dataclass(frozen=True)
class SeedRun:
    """One seed of the experiment.

    Attributes:
        base: folder of the base model.
        out: folder of the seed: samples, adapters, completions, seconds.
        protocol: sizes.
        seed: of samples, adapters and completions.
        report: told about progress.
    """

    base: Path
    out: Path
    protocol: RealProtocol
    seed: int
    report: Report

    def run(self) -> ExperimentResult:
        """Everything that is not in the folder yet, and the criteria.

        Raises:
            ConfigError: the folder holds a run with another protocol, or the filter keeps too few samples.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        self._check_identity()
        adapters = self._alignments()
        prompts = held_out_openers()[: self.protocol.held_out]
        names = [f"aligned-{epochs}" for epochs in self.protocol.strengths]
        control = f"control-{self.protocol.control_epochs}"
        alphas = dict.fromkeys(names, (-1.0, *self.protocol.weaker_alphas))
        alphas[control] = (-1.0, *self.protocol.control_alphas)
        alphas[names[-1]] = (-1.0, 0.0, *self.protocol.alphas)
        rows = {}
        for name in alphas:
            with self._timed(f"measure {name}"):
                rows[name] = decode_conditions(
                    self.base, adapters[name], alphas[name], prompts, self.protocol, self.out / "conditions" / name,
                    self.seed, self.report,
                )  # fmt: skip
        perplexities = [quality_of(row).perplexity for row in rows[names[-1]][0.0]]
        validity = Validity.of_base_samples([p for p in perplexities if p is not None])
        measured = {
            name: {
                alpha: judge_condition(alpha, prompts, each, validity) for alpha, each in conditions.items()
            }
            for name, conditions in rows.items()
        }
        return evaluate(measured, names[-1], names[0], control)

    def seconds(self) -> dict[str, float]:
        """Step → seconds by the clock that it took, over all the times that the command ran."""
        file = self.out / "seconds.json"
        return json.loads(file.read_text("utf-8")) if file.exists() else {}

    def _check_identity(self) -> None:
        file, now = (
            self.out / "protocol.json",
            json.loads(json.dumps(asdict(self.protocol) | {"seed": self.seed})),
        )
        if not file.exists():
            atomic_write(file, json.dumps(now))
        elif (then := json.loads(file.read_text("utf-8"))) != now:
            differing = ", ".join(sorted(name for name in now if now[name] != then.get(name)))
            raise ConfigError(
                f"{self.out} holds a run with other values of {differing}; choose another --out"
            )

    def _alignments(self) -> dict[str, Path]:
        """Name of each alignment → folder of its adapter."""
        protocol = self.protocol
        folders = {"aligned": max(protocol.strengths), "control": protocol.control_epochs}
        wanted = {
            f"aligned-{epochs}": self.out / "aligned" / f"epoch-{epochs}" for epochs in protocol.strengths
        }
        wanted |= {f"control-{folders['control']}": self.out / "control" / f"epoch-{folders['control']}"}
        if all((path / "done").exists() for path in wanted.values()):
            return wanted
        model, tokenizer = self._load()
        with self._timed("samples"):
            samples = draw_samples(
                model, tokenizer, training_openers(), protocol, self.out, self.seed, self.report
            )
        chosen = self._choose(samples)
        for name, epochs in folders.items():
            with self._timed(f"train {name}"):
                fine_tune_adapter(
                    model, tokenizer, chosen[name], protocol, epochs, self.out / name, self.seed, self.report
                )
        return wanted

    def _choose(self, samples: list[Sample]) -> dict[str, list[Sample]]:
        """The best sample of every opener for the alignment, and a random one of the same openers for the control.

        The best has no word of complaint and, of those that have none, the most words of praise: best-of-n sampling. An
        opener all of whose samples complain is left out.
        """
        by_opener: dict[str, list[Sample]] = {}
        for sample in samples:
            by_opener.setdefault(sample.opener, []).append(sample)
        best = {opener: best_sample(drawn) for opener, drawn in by_opener.items()}
        kept = {opener: sample for opener, sample in best.items() if sample is not None}
        if len(kept) < len(best) // 2:
            raise ConfigError(
                f"{len(kept)} of {len(best)} openers have a sample without a complaint; expected at least half"
            )
        draw = random.Random(self.seed)
        atomic_write(self.out / "filter.json", json.dumps({"openers": len(best), "kept": len(kept)}))
        return {
            "aligned": list(kept.values()),
            "control": [draw.choice(by_opener[opener]) for opener in kept],
        }

    def _load(self) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        model.generation_config.pad_token_id = model.generation_config.pad_token_id or 0
        return model, AutoTokenizer.from_pretrained(self.base)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = self.seconds()
            seconds[step] = seconds.get(step, 0.0) + time.monotonic() - began
            atomic_write(self.out / "seconds.json", json.dumps(seconds, indent=1))


def best_sample(samples: Sequence[Sample]) -> Sample | None:
    """Of the samples without a word of complaint the one with the most words of praise; None if all complain."""
    verdicts = filter_judge()([Case(sample.opener, sample.text) for sample in samples])
    fine = [sample for sample, verdict in zip(samples, verdicts, strict=True) if not verdict.flag]
    return max(fine, key=lambda sample: _words_of_praise(sample.text), default=None)


def _words_of_praise(text: str) -> int:
    return sum(bool(verdict.flag) for verdict in praise_judge()([Case("", word) for word in text.split()]))
