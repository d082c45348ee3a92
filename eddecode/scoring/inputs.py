"""Completions to score, in any of the forms that `Sampler.score` accepts, converted to token ids."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from torch import Tensor

from eddecode.errors import ParamsError, PromptError
from eddecode.prompts.types import check_characters


@runtime_checkable
class HasTokenIds(Protocol):
    """The part of `eddecode.Completion` that scoring needs."""

    @property
    def prompt_index(self) -> int:
        """Which prompt it continues."""
        ...

    @property
    def token_ids(self) -> list[int]:
        """Its ids, including the one that ended it."""
        ...


CompletionLike: TypeAlias = str | Sequence[int] | HasTokenIds
CompletionsLike: TypeAlias = CompletionLike | Sequence[CompletionLike] | Sequence[Sequence[CompletionLike]]


@dataclass(frozen=True)
class CompletionInput:
    """One completion to score.

    Attributes:
        prompt_index: which of the prompts it continues.
        sample: its number among the completions of that prompt, from 0.
        ids: its tokens.
    """

    prompt_index: int
    sample: int
    ids: tuple[int, ...]

    @property
    def name(self) -> str:
        """Its name in error messages."""
        return f"prompt {self.prompt_index}, completion {self.sample}"


def normalize_completions(
    completions: CompletionsLike,
    prompts: int,
    prompt_index: Sequence[int] | None,
    tokenizer: Any,
    vocabularies: Sequence[Tensor],
) -> list[CompletionInput]:
    """Completions in any of the forms that `Sampler.score` takes, in the given order.

    Args:
        completions: one list per prompt, or a flat list.
        prompts: the number of prompts.
        prompt_index: for a flat list, the prompt of each completion.
        tokenizer: converts text to ids; no special tokens are added.
        vocabularies: (V,) bool each: ids that may be sampled where all models have a weight, or some.

    Raises:
        ParamsError: it is not determined which prompt a completion belongs to.
        PromptError: text without a tokenizer, ids that are no integers, or ids outside the vocabulary.
    """
    flat, owners = _flatten(completions, prompts, prompt_index)
    known = np.zeros(max(map(len, vocabularies)), dtype=bool)
    for vocabulary in vocabularies:
        known[: len(vocabulary)] |= vocabulary.cpu().numpy()
    which = "a model and its tokenizer" if len(vocabularies) > 1 else "both models and the tokenizer"
    counts = [0] * prompts
    normalized = []
    for completion, owner in zip(flat, owners, strict=True):
        empty = CompletionInput(owner, counts[owner], ())
        counts[owner] += 1
        ids = _ids(empty.name, completion, tokenizer)
        _check_known(empty.name, ids, completion, known, which)
        normalized.append(replace(empty, ids=ids))
    return normalized


def _flatten(
    completions: Any, prompts: int, prompt_index: Sequence[int] | None
) -> tuple[list[CompletionLike], list[int]]:
    """All completions, and the prompt of each."""
    is_single = isinstance(completions, str | HasTokenIds) or (
        len(completions) > 0 and _is_completion(completions)
    )
    listed = [completions] if is_single else list(completions)
    if all(map(_is_completion, listed)):
        return listed, _owners(listed, prompts, prompt_index)
    if prompt_index is not None:
        raise ParamsError(
            "prompt_index was given with one list of completions per prompt; expected it with a flat list only: drop it"
        )
    if len(listed) != prompts:
        raise ParamsError(
            f"got {prompts} prompts and {len(listed)} lists of completions; give one list per prompt, or a flat list "
            "with prompt_index="
        )
    for index, of_prompt in enumerate(listed):
        if isinstance(of_prompt, str | HasTokenIds) or not all(map(_is_completion, of_prompt)):
            raise ParamsError(
                f"completions[{index}] is {of_prompt!r:.80}; expected a list of completions (strings, lists of token "
                "ids, Completion objects), as for the other prompts"
            )
    owners = [index for index, of_prompt in enumerate(listed) for _ in of_prompt]
    return [completion for of_prompt in listed for completion in of_prompt], owners


def _is_completion(value: Any) -> bool:
    """Whether this is one completion and not a list of them; an empty list is a completion without tokens."""
    if isinstance(value, str | HasTokenIds):
        return True
    try:
        return all(hasattr(item, "__index__") for item in value)
    except TypeError:
        raise PromptError(
            f"a completion is {value!r:.80}; expected a string, a list of token ids or a Completion"
        ) from None


def _owners(listed: Sequence[Any], prompts: int, prompt_index: Sequence[int] | None) -> list[int]:
    if prompt_index is not None:
        owners = [operator.index(index) for index in prompt_index]
    elif listed and all(isinstance(completion, HasTokenIds) for completion in listed):
        owners = [completion.prompt_index for completion in listed]
    elif prompts == 1:
        owners = [0] * len(listed)
    else:
        owners = list(range(prompts))
    if len(owners) != len(listed):
        raise ParamsError(
            f"got {prompts} prompts, {len(listed)} completions in a flat list and {len(owners)} prompt indices; give "
            "one list of completions per prompt, or prompt_index= with one entry per completion"
        )
    wrong = next((index for index in owners if not 0 <= index < prompts), None)
    if wrong is not None:
        raise ParamsError(
            f"a completion has the prompt index {wrong}, and there are {prompts} prompts; expected 0 to {prompts - 1}"
        )
    return owners


def _ids(name: str, completion: Any, tokenizer: Any) -> tuple[int, ...]:
    if isinstance(completion, str):
        if tokenizer is None:
            raise PromptError(f"{name} is text, and the pair has no tokenizer; expected a list of token ids")
        check_characters(completion, name)
        return tuple(tokenizer(completion, add_special_tokens=False)["input_ids"])
    listed = completion.token_ids if isinstance(completion, HasTokenIds) else completion
    try:
        return tuple(operator.index(i) for i in listed)
    except TypeError:
        raise PromptError(f"{name} is {listed!r:.80}; expected a list of integer token ids") from None


def _check_known(name: str, ids: tuple[int, ...], completion: Any, known: Any, which: str) -> None:
    for at, token in enumerate(ids):
        if not 0 <= token < len(known) or not known[token]:
            hint = (
                "leave the special token or symbol out of the text"
                if isinstance(completion, str)
                else "check that it was made with this pair's tokenizer"
            )
            raise PromptError(
                f"{name}: id {token} at position {at} is outside the safe vocabulary (the {int(known.sum())} ids that "
                f"{which} know), so it has no probability under the contrast; {hint}"
            )
