"""The rows of an export: one completion each, of some conditions or of all."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from eddecode.audit.conditions import Condition, canonical_name
from eddecode.audit.data.prompts import PromptRecord
from eddecode.audit.store.queries import REALS
from eddecode.audit.store.store import Store
from eddecode.errors import ConfigError, StoreError

_FIRST = (
    "condition",
    "attack",
    "alpha",
    "name",
    "system",
    "transform",
    "mitigation",
    "model",
)


def run_conditions(store: Store) -> list[Condition]:
    """The conditions of a stored run, in the order of its table.

    Raises:
        StoreError: the run was never started.
    """
    if store.note("identity") is None:
        raise StoreError(f"the run in {store.folder} was not started; start it with eddecode audit")
    return store.conditions()


def chosen_keys(store: Store, names: Sequence[str] = ()) -> list[str]:
    """The keys of the named conditions, in the order of the run's table; without names, of all.

    Raises:
        ConfigError: the run has no condition of that name.
        StoreError: the run was never started.
    """
    keys = [condition.key for condition in run_conditions(store)]
    names = [canonical_name(name) for name in names]
    for name in names:
        if name not in keys:
            raise ConfigError(f"the run has no condition {name!r}; it has {', '.join(keys)}")
    return [key for key in keys if not names or key in names]


def export_rows(store: Store, names: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Completions as data, by condition, prompt and sample; None where a number is not finite.

    Each has its `prompt` as it was given (text, or chat messages), its `prompt_id` and `category` (the fields `id` and
    `category` of its record, None without them), and `alpha` as a number.
    """
    prompts = {record.index: _prompt_fields(record) for record in store.prompts()}
    for shared, rows in store.rows_by_condition(chosen_keys(store, names)):
        first = {name: shared[name] for name in _FIRST}
        # α is text where it is a key; an export has the nearest number.
        first["alpha"] = json.loads(shared["alpha"])
        rest = {name: value for name, value in shared.items() if name not in _FIRST}
        for row in rows:
            index = row.pop("prompt_index")
            for name in REALS:
                value = row[name]
                if value is not None and not math.isfinite(value):
                    row[name] = None
            yield {**first, "prompt_index": index, **prompts[index], **rest, **row}


def _prompt_fields(record: PromptRecord) -> dict[str, Any]:
    return {
        "prompt": record.prompt,
        "prompt_id": _text(record.meta.get("id")),
        "category": ", ".join(record.categories) or None,
    }


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
