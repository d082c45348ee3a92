"""A sheet on which people label completions: drawn at random, in random order, without what would give them away.

A line has the completion with its prompt and an opaque id, and nothing about its condition or a judge's verdict. The id
is a digest of the completion and its place in the run, by which `completion_ids` finds it again. A condition's
completions are drawn in the order of another keyed digest: the same seed draws the same ones, and a larger sheet has
those of a smaller one.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

from eddecode.audit.data.labels import ID_COLUMN, LABEL_COLUMN, RATER_COLUMN, CompletionKey
from eddecode.audit.export.rows import chosen_keys
from eddecode.audit.export.spreadsheet import begins_as_formula, csv_line
from eddecode.audit.reasoning import Answers
from eddecode.audit.store.store import Store
from eddecode.errors import ConfigError
from eddecode.utils.terminal import escape_control_chars


def label_sheet(
    folder: str | Path, per_condition: int = 50, names: Sequence[str] = (), *, seed: int = 0
) -> Iterator[str]:
    """The lines of a CSV file with the columns `id`, `prompt`, `completion`, `harmful` (to be filled in), `rater`.

    What a judge of the run reads is shown: the answer, without the reasoning of a model that thinks first.

    Args:
        folder: of the run.
        per_condition: how many completions are drawn from each condition, or all of them if it has fewer.
        names: of conditions; none: all.
        seed: of the draw and of the order.

    Raises:
        ConfigError: the run keeps no text, has no such condition or no completion; or a wrong number.
        StoreError: there is no run in the folder.
    """
    if per_condition < 1:
        raise ConfigError(
            f"{per_condition} completions of each condition are to be drawn; expected 1 or more"
        )
    with Store.read(folder) as store:
        if (store.note("identity") or {}).get("no_text"):
            raise ConfigError(f"{folder} keeps no completion text (--no-text), so there is nothing to label")
        drawn = _drawn(store, per_condition, chosen_keys(store, names), seed)
        if not drawn:
            raise ConfigError(
                f"the run in {folder} has no completion yet; run its eddecode audit command first"
            )
        answers = Answers(store, {condition.name: condition for condition in store.conditions()})
        prompts = {record.index: record for record in store.prompts()}
        yield csv_line((ID_COLUMN, "prompt", "completion", LABEL_COLUMN, RATER_COLUMN))
        for name, condition, index, number in drawn:
            case = prompts[index].case(answers.of(condition, store.text(number)).text)
            yield csv_line((name, _cell(case.prompt), _cell(case.completion), "", ""))


def completion_ids(store: Store) -> dict[str, CompletionKey]:
    """id on a sheet → completion, of all completions of a run."""
    alphas = {condition.name: condition.alpha for condition in store.conditions()}
    return {
        _id(condition, index, sample, digest): (condition, alphas[condition], index, sample)
        for _, condition, index, sample, digest in store.places()
    }


def _drawn(store: Store, count: int, keys: Sequence[str], seed: int) -> list[tuple[str, str, int, int]]:
    """(id on the sheet, condition's name, prompt index, id in the store), in the order of the sheet."""
    order: Mapping[str, list[tuple[bytes, tuple[str, str, int, int]]]] = {key: [] for key in keys}
    for number, condition, index, sample, digest in store.places():
        if condition in order:
            name = _id(condition, index, sample, digest)
            order[condition].append((_digest(f"draw {seed}", name), (name, condition, index, number)))
    drawn = [entry for own in order.values() for _, entry in heapq.nsmallest(count, own)]
    return sorted(drawn, key=lambda entry: _digest(f"order {seed}", entry[0]))


def _id(condition: str, index: int, sample: int, text_digest: str) -> str:
    # The letter keeps a spreadsheet from reading digits, or digits with an e among them, as a number.
    return "c" + _digest("completion", f"{condition}\n{index}\n{sample}\n{text_digest}").hex()


def _digest(purpose: str, text: str) -> bytes:
    return blake2b(f"{purpose}\n{text}".encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _cell(text: str) -> str:
    """Text that a spreadsheet shows as it is: with its line breaks, never as a formula."""
    shown = escape_control_chars(text)
    return f"'{shown}" if begins_as_formula(shown) else shown
