"""Fingerprints of weights and checkpoints, by which a run records its models. Nothing here imports torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from eddecode.errors import PairError
from eddecode.models.safetensors_header import read_header


def combine(*parts: bytes) -> bytes:
    """16 bytes of blake2b over the parts, each preceded by its length."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def tensor_digest(name: str, dtype: str, shape: Iterable[int], chunks: Iterable[Any]) -> bytes:
    """16 bytes of blake2b over a tensor's name, dtype, shape and bytes (given as buffers, in order)."""
    digest = hashlib.blake2b(f"{name}|{dtype}|{tuple(shape)}|".encode(), digest_size=16)
    for chunk in chunks:
        digest.update(chunk)
    return digest.digest()


def tensor_digests(path: Path) -> list[bytes]:
    """One digest per tensor of a safetensors file, see `tensor_digest`."""
    header, start = read_header(path)
    with path.open("rb") as file:
        return [
            tensor_digest(name, entry["dtype"], entry["shape"], _chunks(file, start, entry["data_offsets"]))
            for name, entry in header.items()
        ]


def _chunks(file: BinaryIO, start: int, offsets: tuple[int, int]) -> Iterator[bytes]:
    position, end = (start + offset for offset in offsets)
    while position < end:
        file.seek(position)
        chunk = file.read(min(end - position, 1 << 24))
        if not chunk:
            raise PairError(f"{file.name} ended while it was read; was it replaced? Load the pair again")
        yield chunk
        position += len(chunk)


_WHOLE_FILE_LIMIT = 64 * 2**20  # bytes up to which a weight file is hashed completely
_BLOCK_BYTES, _BLOCKS = 2**20, 32  # of a larger one: that many blocks of that many bytes, evenly spaced
_HASHED_SUFFIXES = (
    ".json",
    ".jinja",
    ".model",
    ".txt",
    ".safetensors",
)  # files that decide what a model computes


def checkpoint_identity(reference: str | Path, revision: str | None) -> str:
    """How a run records a checkpoint: a local folder by a digest of its files, a hub id by its name and revision.

    Weight files over 64 MiB are sampled (their size, and 32 evenly spaced blocks of 1 MiB): training changes every
    tensor, so this distinguishes other weights of the same shape, and reads 32 MiB per file.
    """
    folder = Path(reference)
    if not folder.is_dir():
        return f"{reference}@{revision}" if revision else str(reference)
    files = sorted(path for path in folder.rglob("*") if path.suffix in _HASHED_SUFFIXES and path.is_file())
    hashed = hashlib.blake2b(digest_size=8)
    for path in files:
        hashed.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        _hash_file(path, hashed)
    return f"{folder.name}, digest {hashed.hexdigest()}"


def short_digest(content: bytes) -> str:
    """16 hexadecimal digits that identify some content."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _hash_file(path: Path, hashed: hashlib.blake2b) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if path.suffix != ".safetensors" or size <= _WHOLE_FILE_LIMIT:
            while block := file.read(_BLOCK_BYTES):
                hashed.update(block)
            return
        for i in range(_BLOCKS):
            file.seek((size - _BLOCK_BYTES) * i // (_BLOCKS - 1))
            hashed.update(file.read(_BLOCK_BYTES))
