"""What a report takes from the run's store beside its summary: the sessions, and completions if they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from eddecode.audit.analysis.summary import Summary
from eddecode.audit.store.schema import FILE
from eddecode.audit.store.store import Store


def run_sessions(summary: Summary) -> list[dict[str, Any]]:
    """When the run was worked on, and on what: `started`, versions and hardware of each session.

    Empty for a summary without its store.

    Raises:
        StoreError: the store cannot be read.
    """
    if not (summary.folder / FILE).is_file():
        return []
    with Store.read(summary.folder) as store:
        return store.sessions()


def sampled_completions(summary: Summary, names: Sequence[str], prompts: int) -> Iterator[dict[str, Any]]:
    """The first sample of the first prompts under the named conditions: the store's rows, with `label` and `prompt`.

    Raises:
        StoreError: the store is missing or cannot be read.
    """
    with Store.read(summary.folder) as store:
        texts = {record.index: record.text for record in store.prompts()[:prompts]}
        for name in names:
            entry = summary.find(name)
            if entry is None:
                continue
            for row in store.rows([entry.name]):
                if row["prompt_index"] not in texts:
                    break  # rows come in the order of the prompts
                if row["sample"] == 0:
                    yield {**row, "label": entry.label, "prompt": texts[row["prompt_index"]]}
