"""Data sets of the `datasets` library as prompt sets: of the hub, `hf:ORG/NAME[@REVISION][#[CONFIG/]SPLIT]`, and local
folders that `save_to_disk` wrote, `FOLDER[#SPLIT]`.

The library is an extra and is imported only when such a set is named. Scripts of a data set are never run. A run
records a digest of the prompts themselves, so that a data set that changes on the hub is noticed; pin the revision to
keep it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from eddecode.errors import PromptError

_MARKS = ("dataset_dict.json", "dataset_info.json")  # what save_to_disk writes


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder is what `save_to_disk` wrote."""
    return path.is_dir() and any((path / mark).is_file() for mark in _MARKS)


def hub_entries(name: str) -> Iterator[tuple[str, Any]]:
    """(place, row) of every row of a data set of the hub.

    Args:
        name: `ORG/NAME`, with `@REVISION` and `#SPLIT` or `#CONFIG/SPLIT` behind it where they are needed.

    Raises:
        PromptError: the library is missing, there is no such data set, or it has several configurations or splits and
            none is named.
    """
    whole, _, part = name.partition("#")
    repository, _, revision = whole.partition("@")
    config, _, split = part.rpartition("/")
    if not repository or repository.count("/") > 1:
        raise PromptError(f"the data set is hf:{name}; expected hf:ORG/NAME[@REVISION][#[CONFIG/]SPLIT]")
    library = _library(f"hf:{name}")
    arguments: dict[str, Any] = {"revision": revision or None, "split": split or None}

    def load(**more: str) -> Any:
        return library.load_dataset(repository, **more, **arguments)

    try:
        try:
            found = load(**({"name": config} if config else {}))
        except ValueError as error:
            if not config or "BuilderConfig" not in str(error):
                raise
            found = load(data_dir=config)  # HH-RLHF has folders in the place of configurations
    except Exception as error:  # no network, no such set, a gated one …: the library raises many kinds
        raise PromptError(
            f"the data set hf:{name} cannot be loaded ({type(error).__name__}: {_first_line(error)}); check its name, "
            "configuration and split, or give a file or a folder that save_to_disk wrote"
        ) from error
    return _rows(f"hf:{name}", found, f"hf:{whole}#{config + '/' if config else ''}")


def saved_entries(folder: Path, split: str) -> Iterator[tuple[str, Any]]:
    """(place, row) of every row of a data set that `save_to_disk` wrote.

    Args:
        folder: of the data set.
        split: of it; empty: its only one.

    Raises:
        PromptError: the library is missing, the folder is damaged, or it has several splits and none is named.
    """
    library = _library(str(folder))
    try:
        found = library.load_from_disk(str(folder))
    except Exception as error:  # the library raises many kinds
        raise PromptError(
            f"{folder} cannot be read as a data set ({type(error).__name__}: {_first_line(error)})"
        ) from error
    if split:
        if not isinstance(found, Mapping) or split not in found:
            names = ", ".join(found) if isinstance(found, Mapping) else "none by name"
            raise PromptError(f"{folder} has no split {split!r}; expected one of {names}")
        found = found[split]
    return _rows(str(folder), found, f"{folder}#")


def _rows(name: str, found: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(found, Mapping):
        if len(found) != 1:
            listed = ", ".join(f"{prefix}{split}" for split in found)
            raise PromptError(f"the data set {name} has {len(found)} splits; expected one of {listed}")
        (found,) = found.values()
    return ((f"{name}, row {i}", dict(row)) for i, row in enumerate(found))


def _library(name: str) -> Any:
    try:
        return import_module("datasets")
    except ImportError:
        raise PromptError(
            f"the data set {name} needs the package datasets (pip install 'eddecode[datasets]')"
        ) from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:200]
