"""A run as logs of Inspect (`.eval`): one per condition, with α among the model's arguments.

`inspect view`, `evals_df` and `samples_df` group logs by those arguments. A sample is a prompt, an epoch is a sample
number from 1, and a judge is a scorer whose value is 1 where it flagged a completion. Each sample has the events of its
model call and of its scores, so that the viewer's transcript shows them. What Inspect has no field for is in the
metadata, in the form in which `provider` and `scorers` write it too, so that `import_logs` reads both.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from inspect_ai.event import ModelEvent, ScoreEvent
from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalLog,
    EvalMetric,
    EvalPlan,
    EvalPlanStep,
    EvalResults,
    EvalSample,
    EvalScore,
    EvalSpec,
    EvalStats,
    write_eval_log,
)
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    GenerateConfig,
    ModelOutput,
    ModelUsage,
)
from inspect_ai.scorer import SampleScore, Score, mean

from eddecode.audit.conditions import Condition
from eddecode.audit.data.prompts import PromptRecord
from eddecode.audit.export.rows import chosen_keys, export_rows
from eddecode.audit.store.queries import kind_note
from eddecode.audit.store.records import HUMAN
from eddecode.audit.store.store import Store
from eddecode.errors import ConfigError, StoreError
from eddecode.integrations.inspect.scorers import stderr_by_prompt
from eddecode.integrations.inspect.task import as_input
from eddecode.utils.files import atomic_path

MODEL = "eddecode/pair"
TASK = "reversal"
STOP_REASONS = {"eos": "stop", "stop": "stop", "length": "max_tokens"}

_NOT_EXPORTED = ("identity", "digest", "source")  # of the notes: the first two have fields of their own
_QUALITY = ("length", "perplexity", "distinct_1", "distinct_2", "repetition", "empty")


def export_logs(folder: str | Path, out: str | Path, names: Sequence[str] = ()) -> list[Path]:
    """Write one log per condition.

    Args:
        folder: of the run.
        out: a folder, made if it is missing; or, for a single condition, a file that ends in `.eval`.
        names: of the conditions; none: all.

    Returns:
        The files.

    Raises:
        StoreError: there is no run in the folder, or a file cannot be written.
        ConfigError: the run has no such condition, or `out` is one file for several.
    """
    target = Path(out)
    with Store.read(folder) as store:
        keys = chosen_keys(store, names)
        single = target.suffix == ".eval"
        if single and len(keys) > 1:
            raise ConfigError(
                f"--out {target} is one file, and there is one log per condition ({len(keys)}); give a folder, or one "
                "condition with --condition"
            )
        try:
            (target.parent if single else target).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{target} cannot be made ({error.strerror}); choose another --out") from error
        run, written = _Run(store), []
        for condition in store.conditions():
            if condition.key in keys:
                log = run.log(condition)
                path = target if single else target / _file_name(log, condition)
                with atomic_path(path) as scratch:
                    write_eval_log(log, scratch, format="eval")
                written.append(path)
    return written


class _Run:
    """A stored run, and what its logs share."""

    def __init__(self, store: Store) -> None:
        self.store, self.identity = store, store.note("identity")
        self.sessions, self.digest = store.sessions(), str(store.note("digest"))
        self.order = [condition.key for condition in store.conditions()]
        self.prompts = {record.index: record for record in store.prompts()}
        self.judges = {judge.name: judge for judge in store.judges()}
        self.started = str(self.sessions[0]["started"])

    def log(self, condition: Condition) -> EvalLog:
        """The log of one condition."""
        rewards = self._rewards(condition)
        samples = [
            self._sample(condition, row, rewards(row)) for row in export_rows(self.store, [condition.key])
        ]
        output_tokens = sum(sample.model_usage[MODEL].output_tokens for sample in samples)
        usage = {MODEL: ModelUsage(output_tokens=output_tokens, total_tokens=output_tokens)}
        return EvalLog(
            status="success" if self.store.count() == self.store.expected() else "cancelled",
            eval=self._spec(condition),
            plan=EvalPlan(
                steps=[EvalPlanStep(solver="eddecode/contrast")], config=self._generate_config(condition)
            ),
            results=EvalResults(
                total_samples=len(samples), completed_samples=len(samples), scores=self._scores(samples)
            ),
            stats=EvalStats(
                started_at=self.started,
                completed_at=str(self.sessions[-1]["started"]),
                model_usage=usage,
            ),
            samples=samples,
        )

    def _rewards(self, condition: Condition) -> Any:
        """A function of a row that returns its rewards per token, if the run has those of every completion."""
        packed = list(self.store.rewards(condition.key))
        complete = len(packed) == len(self.prompts) * int(self.identity["samples"])
        queue = iter(packed)
        return lambda row: list(next(queue)) if complete else None

    def _spec(self, condition: Condition) -> EvalSpec:
        packages = {n: str(self.sessions[0][n]) for n in ("eddecode", "torch") if n in self.sessions[0]}
        bounds = [s["utility_loss"] for s in self.sessions if s.get("utility_loss") is not None]
        return EvalSpec(
            eval_id=_id("eval", self.digest, condition.key),
            run_id=_id("run", self.digest),
            task_id=_id("task", self.digest, condition.key),
            created=self.started,
            task=TASK,
            task_registry_name="eddecode/reversal",
            task_display_name=condition.label,
            dataset=EvalDataset(name="prompts", samples=len(self.prompts)),
            model=MODEL,
            model_generate_config=self._generate_config(condition),
            model_args=self._model_args(condition),
            config=EvalConfig(epochs=int(self.identity["samples"])),
            packages=packages,
            tags=[condition.name],
            metadata={
                "eddecode": {
                    "condition": asdict(condition),
                    "position": self.order.index(condition.key),
                    "identity": self.identity,
                    "digest": self.digest,
                    "utility_loss": bounds[-1] if bounds else None,
                    "notes": {n: v for n, v in self.store.notes().items() if n not in _NOT_EXPORTED},
                    "usage": "a run does not store how many tokens a prompt has: usage counts completions",
                }
            },
        )

    def _model_args(self, condition: Condition) -> dict[str, Any]:
        shared = ("dtype", "base_template", "aligned_template")
        found: dict[str, Any] = {"base": self.identity["base"], "aligned": self.identity["aligned"]}
        found |= {"alpha": float(condition.alpha)}
        found |= {name: self.identity[name] for name in shared if self.identity.get(name)}
        extras = {name: value for name, value in asdict(condition).items() if value}
        return {**extras, **found}

    def _generate_config(self, condition: Condition) -> GenerateConfig:
        own = self.identity
        return GenerateConfig(
            temperature=float(condition.temperature or own["temperature"]),
            top_p=own["top_p"],
            top_k=int(own["top_k"]) or None,
            max_tokens=own["max_new_tokens"],
            stop_seqs=list(own["stop"]) or None,
            seed=own["seed"],
        )

    def _sample(self, condition: Condition, row: dict[str, Any], rewards: list[float] | None) -> EvalSample:
        record = self.prompts[row["prompt_index"]]
        unique = (self.digest, condition.key, str(record.index), str(row["sample"]))
        output = self._output(condition, row, rewards, unique)
        messages = _messages(record, unique)
        scores = self._verdicts(row)
        events: list[Any] = [self._model_event(condition, messages, output, unique)]
        events += [self._score_event(name, score, unique) for name, score in scores.items()]
        return EvalSample(
            id=str(record.index),
            epoch=row["sample"] + 1,
            input=as_input(record.prompt),
            target="",
            messages=[*messages, output.message],
            output=output,
            scores=scores,
            metadata={
                **record.meta,
                "prompt": record.digest,
                "prompt_index": record.index,
                "condition": condition.name,
                "alpha": float(condition.alpha),
                **{name: row[name] for name in _QUALITY},
            },
            events=events,
            model_usage={MODEL: output.usage or ModelUsage()},
            uuid=_id("sample", *unique),
            started_at=self.started,
            completed_at=self.started,
        )

    def _output(
        self, condition: Condition, row: dict[str, Any], rewards: list[float] | None, unique: Sequence[str]
    ) -> ModelOutput:
        ids = row["token_ids"]
        tokens = len(ids) if ids is not None else row["length"] + (row["finish_reason"] == "eos")
        message = ChatMessageAssistant(
            id=_id("answer", *unique), content=row["text"] or "", model=MODEL, source="generate"
        )
        facts = {name: row[name] for name in ("sample", "token_ids", "finish_reason", "text_digest")}
        facts |= {name: row[name] for name in ("base_logprob", "aligned_logprob", "implied_reward")}
        facts |= {"has_text": row["text"] is not None}
        if rewards is not None:
            facts["rewards"] = rewards
        record = {
            "alpha": float(condition.alpha),
            "base": self.identity["base"],
            "aligned": self.identity["aligned"],
            "completions": [facts],
        }
        return ModelOutput(
            model=MODEL,
            choices=[
                ChatCompletionChoice(
                    message=message, stop_reason=STOP_REASONS.get(row["finish_reason"], "unknown")
                )
            ],
            usage=ModelUsage(output_tokens=tokens, total_tokens=tokens),
            metadata={"eddecode": record},
        )

    def _model_event(
        self, condition: Condition, messages: list[Any], output: ModelOutput, unique: Sequence[str]
    ) -> ModelEvent:
        return ModelEvent(
            uuid=_id("model", *unique),
            timestamp=datetime.fromisoformat(self.started),
            completed=datetime.fromisoformat(self.started),
            working_start=0.0,
            model=MODEL,
            input=messages,
            tools=[],
            tool_choice="none",
            config=self._generate_config(condition),
            output=output,
        )

    def _score_event(self, name: str, score: Score, unique: Sequence[str]) -> ScoreEvent:
        return ScoreEvent(
            uuid=_id("score", name, *unique),
            timestamp=datetime.fromisoformat(self.started),
            working_start=0.0,
            score=score,
            target="",
            scorer=name,
        )

    def _verdicts(self, row: dict[str, Any]) -> dict[str, Score]:
        """The verdicts of the active judges, and human labels."""
        found = {}
        for name, verdict in row["verdicts"].items():
            judge = self.judges.get(name)
            if judge is not None:
                kind = self.store.note(kind_note(name, judge.identity)) or ""
                who = {"role": judge.role, "identity": judge.identity, "kind": kind}
            elif name == HUMAN:
                who = {"role": "harm", "identity": HUMAN, "kind": HUMAN}
            else:
                continue  # a judge that another one of its name has replaced
            found[name] = Score(
                value=int(verdict["flag"]),
                answer=verdict["label"],
                explanation=verdict["reason"],
                metadata={"judges": {name: {**verdict, **who}}},
            )
        return found

    def _scores(self, samples: Sequence[EvalSample]) -> list[EvalScore]:
        """Rate and clustered standard error per judge, as Inspect's own metrics compute them."""
        found = []
        for name in self.judges:
            scored = [
                SampleScore(score=s.scores[name], sample_id=s.id, sample_metadata=s.metadata)
                for s in samples
                if s.scores and name in s.scores
            ]
            if scored:
                values = {"mean": mean()(scored), "stderr": stderr_by_prompt()(scored)}
                metrics = {k: EvalMetric(name=k, value=v) for k, v in values.items()}
                found.append(
                    EvalScore(
                        name=name,
                        scorer=name,
                        scored_samples=len(scored),
                        unscored_samples=0,
                        metrics=metrics,
                    )
                )
        return found


def _messages(record: PromptRecord, unique: Sequence[str]) -> list[Any]:
    """A prompt as chat messages, with ids that are the same in every export."""
    prompt = record.prompt
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    messages = as_input(turns)
    assert not isinstance(messages, str)
    return [
        message.model_copy(update={"id": _id("message", str(i), *unique)})
        for i, message in enumerate(messages)
    ]


def _file_name(log: EvalLog, condition: Condition) -> str:
    """`<time>_<task>_<id>.eval`, without which Inspect lists no log; the condition is part of the task's name."""
    time = re.sub(r"[:+.]", "-", str(log.eval.created))
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", condition.name)
    return f"{time}_{TASK}-{name}_{log.eval.task_id}.eval"


def _id(*parts: str) -> str:
    """22 characters, the length of Inspect's own ids; the same for the same run."""
    return hashlib.blake2b(" ".join(parts).encode(), digest_size=11).hexdigest()
