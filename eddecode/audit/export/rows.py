"""The rows of an export: one completion each, of some conditions or of all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from eddecode.audit.conditions import Condition
from eddecode.audit.store.store import Store
from eddecode.errors import ConfigError, StoreError


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
    for name in names:
        if name not in keys:
            raise ConfigError(f"the run has no condition {name!r}; it has {', '.join(keys)}")
    return [key for key in keys if not names or key in names]


def export_rows(store: Store, names: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Completions as data, by condition, prompt and sample; None where a number is not finite."""
    for row in store.rows(chosen_keys(store, names)):
        yield {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
