"""Checkpoints as files: located, checked before any library opens them, and fingerprinted by their content.

Only safetensors are read, since a pickle can run code when it is opened, and code that comes with a checkpoint is never
run. A truncated file, a missing shard, a git-lfs pointer in place of the weights: each is an error here that names the
file, instead of an exception from deep inside a loader.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eddecode.errors import PairError
from eddecode.models.fingerprint import combine, tensor_digests
from eddecode.models.safetensors_header import read_header

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_MAX_JSON = 64 * 2**20  # bytes; the index of the largest releases has a tenth of that
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
# Settings that change from save to save, or between machines, and do not affect what a model computes.
_VOLATILE = {
    *("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"),
    *("base_model_name_or_path", "revision", "inference_mode", "peft_version"),  # of an adapter
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder with its configuration; no weight is read yet.

    Attributes:
        source: what the user named.
        path: the local folder.
        side: the name of the model in messages.
        config: config.json (of an adapter: adapter_config.json).
        files: the safetensors files with the weights, in order.
        generation: generation_config.json, or {}.
        long_context: whether texts of every length are read by the rotary angles for long ones (`rotary`).
    """

    source: str
    path: Path
    side: str
    config: dict[str, Any]
    files: tuple[Path, ...]
    is_adapter: bool = False
    has_tokenizer: bool = False
    revision: str | None = None
    generation: dict[str, Any] = field(default_factory=dict)
    long_context: bool = False

    @property
    def is_sharded(self) -> bool:
        """Whether the weights are in several files, which an index lists."""
        return not self.is_adapter and not (self.path / WEIGHTS).is_file()

    @property
    def where(self) -> str:
        """The checkpoint in messages."""
        return f"the {self.side} checkpoint {self.source!r}"

    def leftovers(self) -> list[str]:
        """Files beside full weights that are not used although they look as if they were."""
        if self.is_adapter:
            return []
        names = [ADAPTER_CONFIG] if (self.path / ADAPTER_CONFIG).exists() else []
        return names + ([INDEX] if not self.is_sharded and (self.path / INDEX).exists() else [])

    def tensors(self) -> dict[str, tuple[Path, dict[str, Any]]]:
        """Name → (file, its entry in the header with "dtype" and "shape") of every tensor in the files.

        PairError if two files hold a tensor of the same name.
        """
        found: dict[str, tuple[Path, dict[str, Any]]] = {}
        for file in self.files:
            for name, entry in read_header(file)[0].items():
                if name in found:
                    raise PairError(
                        f"{self.where} has the tensor {name} in {found[name][0].name} and in {file.name}; the shards "
                        "are from different saves. Fetch the checkpoint again"
                    )
                found[name] = file, entry
        return found

    def digest(self, base: bytes = b"") -> bytes:
        """16 bytes that identify settings and tensors, whatever the sharding and the file names.

        base: for an adapter, the digest of the checkpoint that it is merged into.
        Reads every weight once (about a second per gigabyte).
        """
        settings = {key: value for key, value in self.config.items() if key not in _VOLATILE}
        further = ["long context"] if self.long_context else []
        head = json.dumps([settings, self.generation.get("eos_token_id"), *further], sort_keys=True).encode()
        with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases the interpreter's lock
            tensors = sorted(digest for part in pool.map(tensor_digests, self.files) for digest in part)
        return combine(base, head, *tensors)


# Opening ---------------------------------------------------------------------------------------------------------


def open_checkpoint(source: str | Path, side: str, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint (a folder, or a hub id that is downloaded) and check its files; no weight is read yet.

    side: the name of the model in messages.
    PairError if files are missing, damaged or not in safetensors.
    """
    if not isinstance(source, str | Path) or not str(source).strip():  # which would be the current folder
        raise PairError(f"the {side} checkpoint is {source!r}; expected a folder or a hub id")
    path = Path(source).expanduser()
    if not path.is_dir():
        path = _download(str(source), side, revision)
    is_adapter = (path / ADAPTER_CONFIG).is_file() and not _has_weights(path)
    config = _read_json(path / (ADAPTER_CONFIG if is_adapter else "config.json"), side, source)
    generation = path / "generation_config.json"
    checkpoint = Checkpoint(
        source=str(source),
        path=path,
        side=side,
        config=config,
        files=_weight_files(path, side, is_adapter),
        is_adapter=is_adapter,
        has_tokenizer=any((path / name).is_file() for name in _TOKENIZER_FILES),
        revision=revision,
        generation=_read_json(generation, side, source) if _is_there(generation) else {},
    )
    if not checkpoint.tensors():
        raise PairError(f"{checkpoint.where} has weight files without a tensor; fetch it again")
    return checkpoint


def _is_there(path: Path) -> bool:
    """Whether something has this name; a link to nothing counts, so that reading it is an error."""
    return path.exists() or path.is_symlink()


def _has_weights(path: Path) -> bool:
    return (path / WEIGHTS).is_file() or (path / INDEX).is_file()


def _read_json(path: Path, side: str, source: str | Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait forever
            raise OSError("no regular file")
        if path.exists() and path.stat().st_size > _MAX_JSON:
            raise OSError(f"{path.stat().st_size} bytes")
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except FileNotFoundError as error:
        raise PairError(
            f"the {side} checkpoint {str(source)!r} has no {path.name}; expected a folder as save_pretrained writes "
            "it (config.json, *.safetensors, tokenizer files), or an adapter's (adapter_config.json)"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise PairError(
            f"{path} is not readable JSON ({error}); fetch the {side} checkpoint again"
        ) from error
    if not isinstance(content, dict):
        raise PairError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON file, in which no name has two values: readers differ in which one counts."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found and found[name] != value:
            raise ValueError(f"{name!r:.60} is there twice, as {found[name]!r:.60} and as {value!r:.60}")
        found[name] = value
    return found


def _weight_files(path: Path, side: str, is_adapter: bool) -> tuple[Path, ...]:
    single = path / (ADAPTER_WEIGHTS if is_adapter else WEIGHTS)
    if single.is_file():
        return (single,)
    if (path / INDEX).is_file() and not is_adapter:
        return _shards(path, side)
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise PairError(
            f"the {side} checkpoint {path} has its weights as {', '.join(pickles[:3])} only; expected "
            f"{single.name}. Such files can run code when opened and are not read. Convert them where that is safe: "
            "load with transformers and call save_pretrained, which writes safetensors"
        )
    found = ", ".join(sorted(file.name for file in path.iterdir())[:8])
    raise PairError(
        f"the {side} checkpoint {path} has no weights; expected {single.name}"
        f"{'' if is_adapter else ' or ' + INDEX}, found {found or 'an empty folder'}"
    )


def _shards(path: Path, side: str) -> tuple[Path, ...]:
    """The files that the index lists; each must exist and contain the tensors that the index assigns to it."""
    table = _read_json(path / INDEX, side, path).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise PairError(f"{path / INDEX} has no weight_map; fetch the {side} checkpoint again")
    names = sorted({str(name) for name in table.values()})
    for name in names:
        if Path(name).name != name:
            raise PairError(
                f"{path / INDEX} names the shard {name!r}; expected a file name in the same folder"
            )
        if not (path / name).is_file():
            raise PairError(
                f"the {side} checkpoint {path} lacks the shard {name} (its index names {len(names)}); fetch it again"
            )
    for name in names:
        header, _ = read_header(path / name)
        missing = sorted(key for key, shard in table.items() if shard == name and key not in header)
        if missing:
            raise PairError(
                f"{path / name} lacks {len(missing)} tensors that the index lists for it, such as {missing[0]}; the "
                "shards are from different saves. Fetch the checkpoint again"
            )
    return tuple(path / name for name in names)


def _download(source: str, side: str, revision: str | None) -> Path:
    """Download a hub checkpoint: the small files first, then only the weight files that they list."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if Path(source).exists():
        raise PairError(f"the {side} checkpoint {source!r} is a file; expected a folder or a hub id")
    small = ["*.json", "*.jinja", "*.model", "*.txt"]
    nested = ["*/*"]  # subfolders contain other formats and original releases
    try:
        path = Path(
            snapshot_download(source, revision=revision, allow_patterns=small, ignore_patterns=nested)
        )
        if (path / INDEX).is_file():
            weights = sorted(set(_read_json(path / INDEX, side, source).get("weight_map", {}).values()))
        else:
            weights = [WEIGHTS, ADAPTER_WEIGHTS]
        return Path(
            snapshot_download(
                source, revision=revision, allow_patterns=small + weights, ignore_patterns=nested
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PairError(
            f"the {side} checkpoint {source!r} is no local folder, and as a hub id"
            f"{f' at revision {revision!r}' if revision else ''} it could not be downloaded: {reason}. Check the "
            "spelling, the network, and that you are logged in where the repository is gated"
        ) from error
