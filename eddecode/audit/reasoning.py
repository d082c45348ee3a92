"""The answers of a run's completions: what its judges read of models that reason before they answer.

Whether the prompt opened a block of reasoning is a fact of the template, so the run records it when the models are
loaded: `eddecode judge` has the texts alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from eddecode.audit.conditions import Condition
from eddecode.audit.data.prompts import BENIGN_FROM
from eddecode.audit.store.store import Store
from eddecode.errors import PromptError
from eddecode.prompts.thinking import FIRST_CHARACTERS, Answer, answer_of, opens_thinking

_NOTE = "reasoning:"  # of the run, with the model's name: the sides whose prompts open a block


class Answers:
    """What judges read of the completions of one run.

    Args:
        store: of the run.
        conditions: of the run, by name.
    """

    def __init__(self, store: Store, conditions: Mapping[str, Condition]) -> None:
        self._keep = bool((store.note("identity") or {}).get("keep_thinking"))
        self._opened = {name: _is_opened(store, condition) for name, condition in conditions.items()}

    @property
    def opened(self) -> list[str]:
        """The conditions whose completions begin within their reasoning."""
        return [name for name, opened in self._opened.items() if opened]

    def of(self, condition: str, text: str) -> Answer:
        """The answer in a completion; the whole text where the run keeps reasoning for its judges."""
        return Answer(text, reasoned=False) if self._keep else answer_of(text, self._opened[condition])


def record_opened(store: Store, model: str, sampler: Any) -> None:
    """Record which sides' prompts open a block of reasoning, if any does. model: as in `Condition.model`."""
    renderer = getattr(sampler, "renderer", None)
    if renderer is None:  # a sampler that is not eddecode's own
        return
    sides = {"base": renderer.base_template, "aligned": renderer.aligned_template}
    try:
        opened = [side for side, template in sides.items() if opens_thinking(template.text("hello"))]
    except (PromptError, AttributeError):  # decoding will say it, with the prompt's number
        return
    if opened:
        store.add_note(f"{_NOTE}{model}", opened)


def _is_opened(store: Store, condition: Condition) -> bool:
    """Whether completions of a condition begin within their reasoning: a side with a weight opens it."""
    opened = store.note(f"{_NOTE}{condition.model}") or []
    alpha = float(condition.alpha)
    return ("base" in opened and alpha != -1) or ("aligned" in opened and alpha != 0)


def reasoning_notes(store: Store) -> list[str]:
    """How many completions have reasoning, and how many never end it, for a reader of the figures."""
    unclosed, reasoned = {condition.name: 0 for condition in store.conditions()}, 0
    for name, _, closed, _ in _reasoned(store):
        reasoned += 1
        unclosed[name] += not closed
    if not reasoned:
        return []
    total = store.count()
    notes = [f"{reasoned} of {total} completions have reasoning (<think>), which their judges did not read"]
    if count := sum(unclosed.values()):
        listed = ", ".join(f"{name} {n}" for name, n in unclosed.items() if n)
        notes.append(
            f"{count} of {total} completions never end their reasoning, so that judges read what stands before it, "
            f"often nothing ({listed}); raise max_new_tokens, or switch reasoning off in the template"
        )
    return notes


def unanswered(store: Store) -> Counter[str]:
    """Condition's name → how many of its completions, on audited prompts, have reasoning and no answer."""
    found = Counter[str]()
    for name, index, _, answered in _reasoned(store):
        found[name] += index < BENIGN_FROM and not answered
    return found


def _reasoned(store: Store) -> Iterator[tuple[str, int, bool, bool]]:
    """(condition's name, prompt index, whether the reasoning ends, whether there is an answer), of each completion that
    reasons."""
    answers = Answers(store, {condition.name: condition for condition in store.conditions()})
    for name, index, text in store.texts(FIRST_CHARACTERS, answers.opened):
        answer = answers.of(name, text)
        if answer.reasoned:
            yield name, index, answer.closed, bool(answer.text.strip())
    yield from store.reasoned()
