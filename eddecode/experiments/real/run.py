"""The whole experiment on one seed: samples, alignments, control, conditions, criteria. Every step can be resumed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eddecode.errors import ConfigError
from eddecode.experiments.findings.experiment import ExperimentResult
from eddecode.experiments.real.alignment import Report, draw_samples, fine_tuning_loss, train_adapter
from eddecode.experiments.real.judges import Validity
from eddecode.experiments.real.measure import decode_conditions, judge_condition, quality_of
from eddecode.experiments.real.openers import held_out_openers, training_openers
from eddecode.experiments.real.preferences import (
    Preference,
    best_samples,
    preference_loss,
    preferences,
    without_a_list,
)
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
        conditions = self.protocol.conditions
        rows = {}
        for name, alphas in conditions.items():
            with self._timed(f"measure {name}"):
                rows[name] = decode_conditions(
                    self.base, adapters[name], alphas, prompts, self.protocol, self.out / "conditions" / name,
                    self.seed, self.report,
                )  # fmt: skip
        perplexities = [quality_of(row).perplexity for row in rows[self.protocol.strongest][0.0]]
        validity = Validity.of_base_samples([p for p in perplexities if p is not None])
        measured = {
            name: {
                alpha: judge_condition(alpha, prompts, each, validity)
                for alpha, each in measured_rows.items()
            }
            for name, measured_rows in rows.items()
        }
        return evaluate(measured, self.protocol)

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
        wanted = {
            name: self.out / name.rpartition("-")[0] / f"epoch-{name.rpartition('-')[2]}"
            for name in self.protocol.conditions
        }
        if all((path / "done").exists() for path in wanted.values()):
            return wanted
        protocol = self.protocol
        model, tokenizer = self._load()
        with self._timed("samples"):
            samples = draw_samples(
                model, tokenizer, training_openers(), protocol, self.out, self.seed, self.report
            )
        found = preferences(samples)
        if len(found) < protocol.training_openers // 4:
            raise ConfigError(
                f"{len(found)} of {protocol.training_openers} openers have both a sample with a word of complaint and "
                "one without; expected at least a quarter of them"
            )
        mixed, best = without_a_list(found, self.seed), best_samples(samples)
        counts = {"openers": protocol.training_openers, "preferences": len(found), "best samples": len(best)}
        atomic_write(self.out / "training.json", json.dumps(counts))

        def prefer(pairs: list[Preference]) -> Callable[[], Callable[..., Tensor]]:
            return lambda: preference_loss(model, tokenizer, pairs, protocol.beta)

        self._train(model, "dpo", max(protocol.strengths), found, prefer(found))
        self._train(model, "control", protocol.control_epochs, mixed, prefer(mixed))
        self._train(model, "tuned", protocol.tuned_epochs, best, lambda: fine_tuning_loss(tokenizer))
        return wanted

    def _train(
        self,
        model: Any,
        name: str,
        epochs: int,
        items: Sequence[Any],
        make_loss: Callable[[], Callable[..., Tensor]],
    ) -> None:
        folder = self.out / name
        if (folder / f"epoch-{epochs}" / "done").exists():
            return
        with self._timed(f"train {name}"):
            train_adapter(model, items, make_loss(), self.protocol, epochs, folder, self.seed, self.report)

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
