"""Fingerprints of weights and checkpoints: which model was this? Nothing here imports torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from eddecode.errors import PairError
from eddecode.models.safetensors_header import read_header


def combine(*parts: bytes) -> bytes:
    """16 bytes of blake2b over the parts, each led by its length."""
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


_WEIGHTS = {".safetensors"}


_READ_WHOLE = 64 * 2**20  # bytes up to which a weight file is hashed whole


_BLOCK, _BLOCKS = 2**20, 32  # beyond: that many blocks of that many bytes, evenly spaced


_DECIDING = (
    ".json",
    ".jinja",
    ".model",
    ".txt",
    ".safetensors",
)  # endings of the files that decide what a model does


def checkpoint_identity(reference: str | Path, revision: str | None) -> str:
    """A local folder by the digest of what is in it; a hub id by its name and revision.

    Weight files over 64 MiB are sampled (size, and 32 blocks of 1 MiB evenly spaced): training moves every tensor, so
    that other weights of the same shape are told apart, at the cost of reading 32 MiB a file.
    """
    folder = Path(reference)
    if not folder.is_dir():
        return f"{reference}@{revision}" if revision else str(reference)
    files = sorted(path for path in folder.rglob("*") if path.suffix in _DECIDING and path.is_file())
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
        if path.suffix not in _WEIGHTS or size <= _READ_WHOLE:
            while block := file.read(_BLOCK):
                hashed.update(block)
            return
        for i in range(_BLOCKS):
            file.seek((size - _BLOCK) * i // (_BLOCKS - 1))
            hashed.update(file.read(_BLOCK))
