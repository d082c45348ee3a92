"""Completions that a caller brings to be scored, in whatever form they have them, as token ids with a name each."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from eddecode.errors import ParamsError, PromptError


@runtime_checkable
class Sampled(Protocol):
    """What `eddecode.sampler.Completion` brings along."""

    @property
    def prompt_index(self) -> int:
        """Which prompt it continues."""
        ...

    @property
    def token_ids(self) -> list[int]:
        """Its ids, with the one that ended it."""
        ...


GivenCompletion: TypeAlias = str | Sequence[int] | Sampled
GivenCompletions: TypeAlias = (
    GivenCompletion | Sequence[GivenCompletion] | Sequence[Sequence[GivenCompletion]]
)


@dataclass(frozen=True)
class Given:
    """One completion of one prompt.

    Attributes:
        prompt_index: which prompt.
        sample: the how-manyth completion of that prompt.
        ids: its tokens.
    """

    prompt_index: int
    sample: int
    ids: tuple[int, ...]

    @property
    def name(self) -> str:
        """How errors call it."""
        return f"prompt {self.prompt_index}, completion {self.sample}"


def collect(
    completions: GivenCompletions,
    prompts: int,
    prompt_index: Sequence[int] | None,
    tokenizer: Any,
    vocabulary: Tensor,
) -> list[Given]:
    """Completions in any of the forms that `Sampler.score` takes, in the order they came.

    Args:
        completions: one list per prompt, or a flat list.
        prompts: how many prompts there are.
        prompt_index: for a flat list, the prompt of each.
        tokenizer: turns text into ids; no special tokens are added.
        vocabulary: (V,) bool, ids that may be sampled.

    Raises:
        ParamsError: it cannot be told which prompt a completion belongs to.
        PromptError: text without a tokenizer, ids that are no integers, or ids outside the vocabulary.
    """
    flat, owners = _flat(completions, prompts, prompt_index)
    known = vocabulary.cpu().numpy()
    seen = [0] * prompts
    given = []
    for completion, owner in zip(flat, owners, strict=True):
        text = Given(owner, seen[owner], ())
        seen[owner] += 1
        ids = _ids(text.name, completion, tokenizer)
        _check_known(text.name, ids, completion, known)
        given.append(Given(owner, text.sample, ids))
    return given


def _flat(
    completions: Any, prompts: int, prompt_index: Sequence[int] | None
) -> tuple[list[GivenCompletion], list[int]]:
    """All completions, and the prompt of each."""
    alone = isinstance(completions, str | Sampled) or (len(completions) > 0 and _is_one(completions))
    listed = [completions] if alone else list(completions)
    if all(map(_is_one, listed)):
        return listed, _owners(listed, prompts, prompt_index)
    if prompt_index is not None:
        raise ParamsError(
            "prompt_index goes with a flat list of completions, and these are lists per prompt; drop it"
        )
    if len(listed) != prompts:
        raise ParamsError(
            f"got {prompts} prompts and {len(listed)} lists of completions; give one list per prompt, or a flat list "
            "with prompt_index="
        )
    for index, of_one in enumerate(listed):
        if isinstance(of_one, str | Sampled) or not all(map(_is_one, of_one)):
            raise ParamsError(
                f"completions[{index}] is {of_one!r:.80}; expected a list of completions (strings, lists of token ids, "
                "Completion objects), as for the other prompts"
            )
    owners = [index for index, of_one in enumerate(listed) for _ in of_one]
    return [completion for of_one in listed for completion in of_one], owners


def _is_one(value: Any) -> bool:
    """Whether this is a completion, not a list of them; an empty list counts as one without tokens."""
    if isinstance(value, str | Sampled):
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
    elif listed and all(isinstance(completion, Sampled) for completion in listed):
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
            f"a completion belongs to prompt {wrong}, and there are {prompts}; expected 0 to {prompts - 1}"
        )
    return owners


def _ids(name: str, completion: Any, tokenizer: Any) -> tuple[int, ...]:
    if isinstance(completion, str):
        if tokenizer is None:
            raise PromptError(
                f"{name} is text, and the pair has no tokenizer; give it as a list of token ids"
            )
        return tuple(tokenizer(completion, add_special_tokens=False)["input_ids"])
    listed = completion.token_ids if isinstance(completion, Sampled) else completion
    try:
        return tuple(operator.index(i) for i in listed)
    except TypeError:
        raise PromptError(f"{name} is {listed!r:.80}; expected a list of integer token ids") from None


def _check_known(name: str, ids: tuple[int, ...], completion: Any, known: Any) -> None:
    for at, token in enumerate(ids):
        if not 0 <= token < len(known) or not known[token]:
            way_out = (
                "leave the special token or symbol out of the text"
                if isinstance(completion, str)
                else "check that it was made with this pair's tokenizer"
            )
            raise PromptError(
                f"{name}: id {token} at position {at} is outside the safe vocabulary, the {int(known.sum())} ids that "
                f"both models and the tokenizer know, so no contrast gives it a probability; {way_out}"
            )
