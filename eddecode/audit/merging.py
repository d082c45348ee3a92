"""Join the shards of an audit to the run that one process would have made, with its summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eddecode.audit.analysis.summarize import summarize
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.config_file import copy_as_run
from eddecode.audit.report.curve import write_curve
from eddecode.audit.run import unjudged
from eddecode.audit.store.merge import merge_stores
from eddecode.audit.store.store import Store
from eddecode.errors import ConfigError


def merge(parts: Sequence[str | Path], out: str | Path, *, title: str | None = None) -> Summary:
    """Join all shards of an audit to the run that one process would have made.

    Args:
        parts: folders of the shards, in any order.
        out: folder of the run.
        title: of the picture.

    Raises:
        StoreError: a shard is missing, doubled, unfinished or of another audit; or `out` holds a run.
    """
    folders, folder = [Path(part) for part in parts], Path(out)
    if not folders:
        raise ConfigError("there is nothing to merge; expected the folders of all shards")
    merge_stores(folders, folder)
    copy_as_run(folders[0], folder)
    with Store.open(folder) as store:
        if not store.judges():
            return unjudged(store)
        summary = summarize(store, store.conditions(), store.judges())
    summary.write()
    write_curve(summary, title)
    return summary
