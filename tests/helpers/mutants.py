"""Mutated tiny checkpoints, generated from a seed: what arrives on disks after bad downloads, edits and conversions.

A mutant is a folder that was copied from a sound checkpoint and changed in one way. Some stay sound (a link in place of
a file, another valid number in config.json), most do not. The test decides which by an independent reading of the
folder, not by what the mutation was meant to do.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.mutants_weights import header_changes, index_changes, relabelling, tensor_changes
from helpers.mutation import WEIGHTS, Change, edit, with_bytes, with_header, write_bytes


@dataclass(frozen=True)
class Mutant:
    """One mutated checkpoint.

    Attributes:
        name: what was changed, for messages.
        kind: of the change ("config", "header", …).
        source: which sound checkpoint is copied: "plain", "sharded", "bfloat16" or "adapter".
        change: what is done to the copy.
        seed: of the random choices within the change.
        keeps_tokens: whether a folder that is accepted must decode as the sound one did (else as it says itself).
    """

    name: str
    kind: str
    source: str
    change: Change
    seed: str
    keeps_tokens: bool = False

    def make(self, sound: Path, folder: Path) -> Path:
        """Copy the sound checkpoint and change the copy."""
        path = Path(shutil.copytree(sound, folder))
        self.change(path, random.Random(self.seed))
        return path


def mutants(seed: int = 0) -> Iterator[Mutant]:
    """All mutants of a seed, in a fixed order; other seeds choose other values, bytes and tensors."""
    for kind, source, count, table in (
        ("config", "plain", 110, _config_changes),
        ("header", "plain", 60, header_changes),
        ("tensors", "plain", 40, tensor_changes),
        ("relabelled", "bfloat16", 12, relabelling),
        ("index", "sharded", 30, index_changes),
        ("tokenizer", "plain", 40, _tokenizer_changes),
        ("generation", "plain", 20, _generation_changes),
        ("adapter", "adapter", 45, _adapter_changes),
        ("files", "plain", 40, _file_changes),
    ):
        choices = random.Random(f"{seed} {kind}")
        changes = table()
        for i in range(count):
            name, change = changes[i] if i < len(changes) else choices.choice(changes)
            yield Mutant(
                f"{kind} {i}: {name}",
                kind,
                source,
                change,
                f"{seed} {kind} {i}",
                keeps_tokens=kind == "relabelled",
            )


# JSON files ------------------------------------------------------------------------------------------------------

_VALUES: tuple[Any, ...] = (
    *(None, 0, -1, 1, 2, 3, 7, 64, 2**31, 10**12, 1e308, -0.5, float("nan"), float("inf"), "", "x", "1"),
    *(True, False, [], [1], [None], {}, {"a": 1}),
)


def _set(field: str, value: Any) -> tuple[str, Callable[[dict[str, Any], random.Random], None]]:
    return f"{field} = {str(value)[:40]!r}", lambda config, _: config.update({field: value})


def _any_field(config: dict[str, Any], rng: random.Random) -> None:
    config[rng.choice(sorted(config))] = rng.choice(_VALUES)


def _drop_field(config: dict[str, Any], rng: random.Random) -> None:
    del config[rng.choice(sorted(config))]


def _config_changes() -> list[tuple[str, Change]]:
    sets = [
        *(_set("num_hidden_layers", value) for value in (0, -1, 1, 3, 10**9, 2.0, True, "2")),
        *(_set("hidden_size", value) for value in (0, 33, 64, -32)),
        *(_set("num_attention_heads", value) for value in (0, 3, 8, -4, 2)),
        *(_set("num_key_value_heads", value) for value in (0, 3, 4, None)),
        *(_set("vocab_size", value) for value in (0, 10, 299, 301, 10**12)),
        *(
            _set("model_type", value)
            for value in ("gemma", "mistral", "qwen2", "bert", "t5", "nothing", 7, None)
        ),
        *(_set("architectures", value) for value in (None, [], "LlamaForCausalLM", ["BertForMaskedLM"], [7])),
        *(_set("rms_norm_eps", value) for value in (0, -1, 1e30, "1e-6", 1e-5)),
        *(_set("rope_parameters", value) for value in (None, [], {"rope_type": "x"}, {"rope_theta": -1})),
        *(_set("max_position_embeddings", value) for value in (0, -1, 16, 10**15, "256")),
        *(
            _set("quantization_config", value)
            for value in ({}, [], "fp8", {"quant_method": "x"}, {"quant_method": []})
        ),
        *(_set("dtype", value) for value in ("float8", "bfloat16", 7, "int8", ["float32"])),
        *(_set("hidden_act", value) for value in ("gelu", "nothing", None)),
        *(_set("tie_word_embeddings", value) for value in (True, "yes")),
        _set("auto_map", {"AutoConfig": "configuration_x.X"}),
        _set("sliding_window", 4),
        _set("attention_bias", True),
        _set("pad_token_id", 10**6),
    ]
    changes = [(name, edit("config.json", change)) for name, change in sets]
    return [
        *changes,
        ("a field with another value", edit("config.json", _any_field)),
        ("a field less", edit("config.json", _drop_field)),
    ]


def _generation_changes() -> list[tuple[str, Change]]:
    file = "generation_config.json"
    sets = [
        *(
            _set("eos_token_id", value)
            for value in ("2", [2, "x"], [[2]], {}, 10**6, -5, 1.5, None, [], True)
        ),
        *(_set("pad_token_id", value) for value in (-1, "x")),
    ]
    return [
        *((name, edit(file, change)) for name, change in sets),
        ("a field with another value", edit(file, _any_field)),
        ("not JSON", write_bytes(file, b"{")),
        ("an array", write_bytes(file, b"[]")),
        ("binary", write_bytes(file, bytes(range(256)))),
        ("empty", write_bytes(file, b"")),
    ]


# Tokenizer, adapter, files ---------------------------------------------------------------------------------------


def _tokenizer_changes() -> list[tuple[str, Change]]:
    main, settings = "tokenizer.json", "tokenizer_config.json"

    def vocabulary(change: Callable[[dict[str, int], random.Random], None]) -> Change:
        return edit(main, lambda content, rng: change(content["model"]["vocab"], rng))

    def swap(table: dict[str, int], rng: random.Random) -> None:
        a, b = rng.sample(sorted(table)[10:], 2)
        table[a], table[b] = table[b], table[a]

    def shift(table: dict[str, int], _: random.Random) -> None:
        for token in table:
            table[token] += 1

    def cut(raw: bytes, rng: random.Random) -> bytes:
        return raw[: rng.randrange(len(raw))]

    return [
        ("truncated", with_bytes(cut, main)),
        ("settings truncated", with_bytes(cut, settings)),
        ("missing", lambda path, _: (path / main).unlink()),
        ("settings missing", lambda path, _: (path / settings).unlink()),
        ("template missing", lambda path, _: (path / "chat_template.jinja").unlink()),
        ("a broken template", write_bytes("chat_template.jinja", b"{% for %}")),
        ("a template of bytes", write_bytes("chat_template.jinja", b"\xff\xfe")),
        ("empty", write_bytes(main, b"")),
        ("an array", write_bytes(main, b"[]")),
        ("an object without content", write_bytes(main, b"{}")),
        ("settings that are an array", write_bytes(settings, b"[]")),
        ("settings that are a string", write_bytes(settings, b'"x"')),
        ("two tokens exchanged", vocabulary(swap)),
        (
            "a token less",
            vocabulary(lambda table, rng: [table.pop(t) for t in rng.sample(sorted(table)[10:], 1)][:0]),
        ),
        ("a token beyond the model", vocabulary(lambda table, _: table.update({"beyond": 100_000}))),
        ("ids of another order", vocabulary(shift)),
        ("an id twice", vocabulary(lambda table, _: table.update({"twice": 50}))),
        ("a negative id", vocabulary(lambda table, _: table.update({"negative": -1}))),
        ("a field of the settings with another value", edit(settings, _any_field)),
        ("a field of the tokenizer with another value", edit(main, _any_field)),
        (
            "another class",
            edit(settings, lambda content, _: content.update({"tokenizer_class": "NoTokenizer"})),
        ),
        (
            "own code",
            edit(settings, lambda content, _: content.update({"auto_map": {"AutoTokenizer": "x.X"}})),
        ),
    ]


def _adapter_changes() -> list[tuple[str, Change]]:
    config, weights = "adapter_config.json", "adapter_model.safetensors"
    sets = [
        *(_set("r", value) for value in (0, -1, 3, 8, "4", None, 10**9)),
        *(_set("lora_alpha", value) for value in (0, 16, -8, "x", float("nan"), None)),
        *(
            _set("target_modules", value)
            for value in ([], ["q_proj"], ["nothing"], None, "all-linear", 7, ".*q_proj")
        ),
        *(_set("peft_type", value) for value in ("X", None, "IA3", 7)),
        *(_set("bias", value) for value in ("all", "x")),
        *(_set(name, True) for name in ("use_dora", "use_rslora", "fan_in_fan_out")),
        *(_set("rank_pattern", value) for value in ({"q_proj": 2}, [], "x")),
        _set("modules_to_save", ["lm_head"]),
        _set("layers_to_transform", [0]),
        _set("trainable_token_indices", [10**6]),
        _set("base_model_name_or_path", 7),
        _set("task_type", "SEQ_CLS"),
    ]

    def rename(header: dict[str, Any], name: str, _: random.Random) -> None:
        header[f"{name}x"] = header.pop(name)

    return [
        *((name, edit(config, change)) for name, change in sets),
        ("a field with another value", edit(config, _any_field)),
        ("a field less", edit(config, _drop_field)),
        ("not JSON", write_bytes(config, b"{")),
        ("weights truncated", with_bytes(lambda raw, rng: raw[: rng.randrange(len(raw))], weights)),
        ("a tensor renamed", with_header(rename, weights)),
        (
            "another dtype",
            with_header(lambda h, n, rng: h[n].update({"dtype": rng.choice(["I32", "F16"])}), weights),
        ),
        ("another shape", with_header(lambda h, n, _: h[n].update({"shape": h[n]["shape"][::-1]}), weights)),
    ]


def _file_changes() -> list[tuple[str, Change]]:
    files = ("config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json", "generation_config.json")

    def put(name: str, make: Callable[[Path], None]) -> Change:
        def changed(path: Path, _: random.Random) -> None:
            (path / name).unlink()
            make(path / name)

        return changed

    def link(path: Path, _: random.Random) -> None:
        for file in list(path.iterdir()):
            moved = path.parent / f"{path.name}-{file.name}"
            shutil.move(file, moved)
            file.symlink_to(moved)

    def text(encode: Callable[[str], bytes]) -> Change:
        return lambda path, _: (
            (path / "config.json").write_bytes(encode((path / "config.json").read_text())) and None
        )

    return [
        *((f"{name} is a folder", put(name, Path.mkdir)) for name in files),
        *((f"{name} is a pipe", put(name, os.mkfifo)) for name in files),
        *(
            (f"{name} is a link to nothing", put(name, lambda path: path.symlink_to("nowhere")))
            for name in files
        ),
        *(
            (f"{name} is a link to itself", put(name, lambda path: path.symlink_to(path.name)))
            for name in files[:3]
        ),
        *((f"{name} is not there", put(name, lambda path: None)) for name in files),
        ("every file is a link", link),
        ("nothing is there", lambda path, _: [file.unlink() for file in path.iterdir()][:0] and None),
        ("config.json with a byte order mark", text(lambda content: content.encode("utf-8-sig"))),
        ("config.json in UTF-16", text(lambda content: content.encode("utf-16"))),
        ("config.json with CRLF", text(lambda content: content.replace("\n", "\r\n").encode())),
        (
            "config.json with a number of 5,000 digits",
            text(lambda c: c.replace("{", '{"x": ' + "9" * 5000 + ",", 1).encode()),
        ),
        ("config.json nested 100,000 deep", text(lambda _: b'{"a":' * 100_000 + b"1" + b"}" * 100_000)),
        (
            "config.json with a key twice",
            text(lambda c: c.replace("{", '{"num_hidden_layers": 7,', 1).encode()),
        ),
        ("config.json with half a character", text(lambda c: c.replace("{", '{"x": "\\ud800",', 1).encode())),
        (
            "an adapter's configuration beside",
            lambda path, _: (path / "adapter_config.json").write_text("{}") and None,
        ),
        ("a folder in the place of the adapter's", lambda path, _: (path / "adapter_config.json").mkdir()),
    ]
