"""The task `eddecode/reversal`: prompts × α on one pair, judged by our judges.

    inspect eval eddecode/reversal --model eddecode/pair -M base=… -M aligned=… -T prompts=prompts.jsonl \\
        -T alphas=aligned,base,0.3,0.6 -T judges=lexicon,grammar --epochs 4 --no-log-realtime

Without `alphas` the model's own α is used, so that several models (`--model-spec`) give a log each. An epoch is a
sample of eddecode: epoch 1 is sample 0, and the completion is the one of `Sampler.generate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    get_model,
)
from inspect_ai.scorer import grouped, mean
from inspect_ai.solver import Generate, Solver, TaskState, solver

from eddecode.audit.conditions import Condition, parse_alphas
from eddecode.audit.data.prompts import PromptRecord, read_prompts
from eddecode.errors import ConfigError
from eddecode.integrations.inspect.scorers import judges as judges_scorer
from eddecode.integrations.inspect.scorers import stderr_by_prompt
from eddecode.utils.validation import split_list

_MESSAGES = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
_WORDS = {"base": "0", "aligned": "-1"}


@task
def reversal(
    prompts: str | None = None,
    alphas: str | float | Sequence[str | float] | None = None,
    judges: str | Sequence[str] = "lexicon",
    max_tokens: int = 128,
) -> Task:
    """Completions of prompts by the pair, at one α or several, judged.

    Args:
        prompts: a prompt file as `eddecode audit` takes it; None: the prompts of the bundled pair.
        alphas: numbers, `base` (0) and `aligned` (−1); None: the model's α.
        judges: see `eddecode/judges`.
        max_tokens: default length limit; `--max-tokens` takes precedence.

    Raises:
        PromptError, ConfigError, JudgeError: the prompts, α's or judges cannot be used.
    """
    if prompts is None:
        from eddecode.testbed.bundled import bundled_pair

        prompts = str(bundled_pair().prompts)
    records = read_prompts(prompts)
    conditions = [None] if alphas is None else [condition_of(alpha) for alpha in _alphas(alphas)]
    samples = [_sample(record, condition) for condition in conditions for record in records]
    metrics: list[Any] = [mean(), stderr_by_prompt()]
    if alphas is not None:
        for each in (mean(), stderr_by_prompt()):
            metrics.append(grouped(each, "condition", all=False, name_template="{group_name}"))
    return Task(
        dataset=MemoryDataset(samples, name="prompts"),
        solver=contrast(),
        scorer=judges_scorer(judges),
        metrics={"*": metrics},
        config=GenerateConfig(max_tokens=max_tokens),
    )


@solver
def contrast() -> Solver:
    """Ask the pair for one completion, at the α of the sample's metadata if it has one."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        own: dict[str, Any] = {"sample": state.epoch - 1}
        if "alpha" in state.metadata:
            own["alpha"] = state.metadata["alpha"]
        _check_model()
        return await generate(state, extra_body={"eddecode": own})

    return solve


def _check_model() -> None:
    from eddecode.integrations.inspect.provider import PairAPI

    model = get_model()
    if not isinstance(model.api, PairAPI):
        raise ConfigError(
            f"the task is run with the model {model}, which has no α; expected --model eddecode/pair with "
            "-M base=… -M aligned=…"
        )


def _alphas(given: str | float | Sequence[str | float]) -> tuple[str, ...]:
    if isinstance(given, str):
        given = split_list(given, "alpha", blanks=True)
    listed = [given] if isinstance(given, int | float) else given
    if not listed:
        raise ConfigError("the list of alphas is empty; expected one alpha or more, or leave the option out")
    return parse_alphas([_WORDS.get(str(alpha), alpha) for alpha in listed])


def condition_of(alpha: str) -> Condition:
    """The plain condition of an α: base at 0, aligned at −1, ED otherwise."""
    kind = {"0": "base", "-1": "aligned"}.get(alpha, "ed")
    return Condition(kind, alpha)


def _sample(record: PromptRecord, condition: Condition | None) -> Sample:
    metadata: dict[str, Any] = {**record.meta, "prompt": record.digest, "prompt_index": record.index}
    name = str(record.index)
    if condition is not None:
        metadata |= {"condition": condition.name, "alpha": float(condition.alpha)}
        name = f"{condition.name}/{record.index}"
    return Sample(input=as_input(record.prompt), id=name, metadata=metadata)


def as_input(prompt: str | list[dict[str, str]]) -> str | list[ChatMessage]:
    """A prompt as the input of a sample."""
    if isinstance(prompt, str):
        return prompt
    return [_MESSAGES[message["role"]](content=message["content"]) for message in prompt]
