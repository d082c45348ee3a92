"""Mutations of weight files: headers, tensors, labels of dtypes, and the index of the shards."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from helpers.mutation import WEIGHTS, Change, edit, with_bytes, with_header, write_bytes


def _flip_in_header(raw: bytes, rng: random.Random) -> bytes:
    at = 8 + rng.randrange(int.from_bytes(raw[:8], "little"))
    return raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(7))]) + raw[at + 1 :]


def header_changes() -> list[tuple[str, Change]]:
    def entry(field: str, value: Callable[[Any, random.Random], Any]) -> Change:
        return with_header(lambda h, n, rng: h[n].update({field: value(h[n][field], rng)}))

    def rename(header: dict[str, Any], name: str, rng: random.Random) -> None:
        header[rng.choice([f"{name}2", name.replace("layers.1", "layers.9") + "_", "x"])] = header.pop(name)

    def shift(offsets: list[int], rng: random.Random) -> list[int]:
        by = rng.choice([-8, -1, 1, 4, 10**9])
        return [offsets[0] + by, offsets[1] + by]

    return [
        ("a bit of the header flipped", with_bytes(_flip_in_header)),
        ("truncated", with_bytes(lambda raw, rng: raw[: rng.randrange(len(raw))])),
        ("one byte short", with_bytes(lambda raw, _: raw[:-1])),
        ("garbage at the end", with_bytes(lambda raw, _: raw + b"x")),
        ("empty", with_bytes(lambda *_: b"")),
        ("zeros", with_bytes(lambda raw, _: bytes(len(raw)))),
        ("a length of 2⁶³", with_bytes(lambda raw, _: (2**63).to_bytes(8, "little") + raw[8:])),
        (
            "a git-lfs pointer",
            write_bytes(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        ),
        ("a header that is an array", write_bytes(WEIGHTS, (2).to_bytes(8, "little") + b"[]")),
        ("a pickle", write_bytes(WEIGHTS, b"\x80\x04}\x94.")),
        (
            "another dtype",
            entry("dtype", lambda _, rng: rng.choice(["I32", "U32", "F16", "F64", "BOOL", "X", 7, None])),
        ),
        (
            "another shape",
            entry("shape", lambda s, rng: rng.choice([[], s[::-1], [2, *s], [-1], [*s, 1], "x", None])),
        ),
        ("other offsets", entry("data_offsets", shift)),
        (
            "offsets of another kind",
            entry("data_offsets", lambda o, rng: rng.choice([None, [0], [o[0], -1], "x", {}])),
        ),
        ("another name", with_header(rename)),
        ("a tensor less", with_header(lambda header, name, _: header.pop(name))),
        ("a tensor twice", with_header(lambda header, name, _: header.update({"twin": header[name]}))),
        (
            "an entry of another kind",
            with_header(lambda h, n, rng: h.update({n: rng.choice([None, 1, [], "x"])})),
        ),
    ]


def tensor_changes() -> list[tuple[str, Change]]:
    Tensors = dict[str, Any]

    def tensors(change: Callable[[Tensors, str, random.Random], Any]) -> Change:
        def changed(path: Path, rng: random.Random) -> None:
            content = load_file(path / WEIGHTS)
            change(content, rng.choice(sorted(content)), rng)
            save_file(content, path / WEIGHTS, metadata={"format": "pt"})

        return changed

    def put(value: Callable[[Any], Any]) -> Change:
        return tensors(
            lambda content, name, _: content.update({name: np.ascontiguousarray(value(content[name]))})
        )

    zeros = np.zeros((4, 4), dtype=np.float32)
    return [
        ("a tensor less", tensors(lambda content, name, _: content.pop(name))),
        ("a tensor more", tensors(lambda content, *_: content.update({"model.extra.weight": zeros}))),
        (
            "a layer more",
            tensors(
                lambda c, *_: c.update({n.replace("layers.1", "layers.2"): t for n, t in list(c.items())})
            ),
        ),
        ("a bias more", tensors(lambda content, *_: content.update({"lm_head.bias": zeros[0]}))),
        ("a value head", tensors(lambda content, *_: content.update({"v_head.summary.weight": zeros}))),
        ("a prefix", tensors(lambda c, *_: [c.update({f"module.{n}": c.pop(n)}) for n in list(c)])),
        ("transposed", put(lambda tensor: tensor.T)),
        ("as a row", put(lambda tensor: tensor.reshape(1, -1))),
        ("a row less", put(lambda tensor: tensor[:-1])),
        ("as integers", put(lambda tensor: tensor.astype(np.int64))),
        ("as booleans", put(lambda tensor: tensor > 0)),
        ("as float64", put(lambda tensor: tensor.astype(np.float64))),
        ("as float16", put(lambda tensor: tensor.astype(np.float16))),
        (
            "NaN",
            put(lambda tensor: np.where(np.arange(tensor.size).reshape(tensor.shape) == 3, np.nan, tensor)),
        ),
        ("all NaN", put(lambda tensor: np.full_like(tensor, np.nan))),
        ("infinite", put(lambda tensor: np.full_like(tensor, np.inf))),
        ("zeros", put(np.zeros_like)),
        ("empty", put(lambda tensor: tensor[:0])),
    ]


def relabelling() -> list[tuple[str, Change]]:
    """bfloat16 bits under another label of the same size."""

    def label(dtype: str, part: str) -> Change:
        def change(header: dict[str, Any], *_: Any) -> None:
            for name, entry in header.items():
                if part in name and name != "__metadata__":
                    entry["dtype"] = dtype

        return with_header(change)

    parts = ("", "q_proj", "norm", "embed_tokens", "lm_head", "layers.0.mlp.up_proj")
    return [(f"{part or 'all'} as {dtype}", label(dtype, part)) for dtype in ("F16", "I16") for part in parts]


INDEX = "model.safetensors.index.json"


def index_changes() -> list[tuple[str, Change]]:
    def table(change: Callable[[dict[str, Any], str, random.Random], Any]) -> Change:
        return edit(
            INDEX,
            lambda index, rng: change(index["weight_map"], rng.choice(sorted(index["weight_map"])), rng),
        )

    def whole(value: Any) -> Change:
        return edit(INDEX, lambda index, _: index.update({"weight_map": value}))

    def shards(path: Path) -> list[Path]:
        return sorted(path.glob("model-*.safetensors"))

    def drop_shard(path: Path, rng: random.Random) -> None:
        rng.choice(shards(path)).unlink()

    def swap_shards(path: Path, _: random.Random) -> None:
        first, second = shards(path)[:2]
        content = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)

    def same_tensor_twice(path: Path, _: random.Random) -> None:
        first, second = (load_file(shard) for shard in shards(path)[:2])
        name = sorted(first)[0]
        save_file({**second, name: first[name] + 1}, shards(path)[1], metadata={"format": "pt"})

    def both_kinds(path: Path, _: random.Random) -> None:
        content = {name: tensor for shard in shards(path) for name, tensor in load_file(shard).items()}
        save_file(content, path / WEIGHTS, metadata={"format": "pt"})

    return [
        ("a shard less", drop_shard),
        ("two shards exchanged", swap_shards),
        ("a tensor in two shards", same_tensor_twice),
        ("all weights in one file, too", both_kinds),
        (
            "another shard for a tensor",
            table(lambda t, n, rng: t.update({n: rng.choice(sorted(set(t.values())))})),
        ),
        ("a shard that is not there", table(lambda t, n, _: t.update({n: "model-9.safetensors"}))),
        ("a shard outside", table(lambda t, n, _: t.update({n: "../plain/model.safetensors"}))),
        (
            "a name of another kind",
            table(lambda t, n, rng: t.update({n: rng.choice([None, 1, [], {}, True])})),
        ),
        ("a tensor that is not there", table(lambda t, n, _: t.update({"model.more": t[n]}))),
        ("a tensor not listed", table(lambda t, n, _: t.pop(n))),
        *((f"a table that is {value!r}", whole(value)) for value in (None, {}, [], "x", 1)),
        ("no table", edit(INDEX, lambda index, _: index.pop("weight_map"))),
        ("not JSON", write_bytes(INDEX, b"{")),
        ("an array", write_bytes(INDEX, b"[]")),
        ("empty", write_bytes(INDEX, b"")),
    ]
