"""A folder that shows a library only the files of a checkpoint that were checked.

transformers looks for more than configuration and weights in a folder: an adapter_config.json that was left there is
applied on top of the full weights, or makes it load another model. What it sees is therefore a temporary folder of
links to the files that `eddecode.models.checkpoint` found and read.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eddecode.models.checkpoint import INDEX, Checkpoint

_SMALL_FILES = ("config.json", "generation_config.json")


@contextmanager
def checkpoint_view(checkpoint: Checkpoint, keep_in: Path | None = None) -> Iterator[Path]:
    """Within the block: a folder with only config.json, generation_config.json and the weights of a full checkpoint.

    It is the checkpoint's own folder where that holds nothing else that a library would use.

    keep_in: a folder where the links stay after the block, for weights that are read again later (offloading).
    """
    if not checkpoint.leftovers():
        yield checkpoint.path
        return
    with tempfile.TemporaryDirectory(prefix="eddecode-") as temporary:
        view = (
            Path(temporary) if keep_in is None else Path(tempfile.mkdtemp(prefix="checkpoint-", dir=keep_in))
        )
        names = [*_SMALL_FILES, *([INDEX] if checkpoint.is_sharded else [])]
        small = [checkpoint.path / name for name in names]
        for path in [*(path for path in small if path.is_file()), *checkpoint.files]:
            _link(path, view / path.name)
        yield view


def _link(source: Path, target: Path) -> None:
    """A link without a copy; a small file is copied where links need a privilege (Windows)."""
    try:
        target.symlink_to(source.resolve())
    except OSError:
        try:
            target.hardlink_to(source.resolve())
        except OSError:
            shutil.copyfile(source, target)
