"""The entries of a prompt set, whatever it is stored as.

The ending of a file tells its format: `.jsonl`/`.ndjson`, `.json` (an array, or an object with one array in it),
`.csv`/`.tsv`, `.parquet`; everything else is plain text with one prompt per line. A further `.gz` is unpacked.
`hf:ORG/NAME…` and folders of `save_to_disk` are read by `hub_datasets`. A file whose content is of another format than
its ending says is an error: a JSON array must not be taken for one plain prompt.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from eddecode.audit.data.hub_datasets import hub_entries, is_saved_dataset, saved_entries
from eddecode.errors import PromptError
from eddecode.utils.files import decode_text, parse_csv, parse_json, parse_json_lines, read_bytes

HUB = "hf:"
_KIND = "prompt file"
_UNPACKED = 1 << 32  # bytes of a .gz file; more would be a file that was made to fill the memory
_OTHER_FORMATS = (".yaml", ".yml", ".toml", ".xml", ".html", ".htm", ".py", ".ipynb", ".jinja")
_MAGIC = {
    b"PAR1": "a Parquet file; give it the ending .parquet",
    b"\x1f\x8b": "packed by gzip; give it the ending .gz after that of its format, such as .jsonl.gz",
    b"PK\x03\x04": "a ZIP or an Excel file; unpack it, or save the sheet as CSV",
    b"SQLite format 3": "an SQLite database; export the prompts as CSV or JSON Lines",
    b"%PDF": "a PDF; give the prompts as text, CSV or JSON Lines",
    b"ARROW1": "an Arrow file; give the folder that save_to_disk wrote, or write it as Parquet",
}


def entries(source: str | Path) -> Iterator[tuple[str, Any]]:
    """(place, raw entry) of every prompt of a file or a data set.

    Args:
        source: a path, or `hf:ORG/NAME[@REVISION][#[CONFIG/]SPLIT]`.

    Raises:
        PromptError: it cannot be read; the message has the place.
    """
    if str(source).startswith(HUB):
        return hub_entries(str(source).removeprefix(HUB))
    path = Path(source)
    folder, _, split = str(source).partition("#")
    if is_saved_dataset(path):
        return saved_entries(path, "")
    if split and not path.exists() and is_saved_dataset(Path(folder)):
        return saved_entries(Path(folder), split)
    if path.is_dir():
        raise PromptError(
            f"{path} is a folder; expected a file, or a folder that save_to_disk of the library datasets wrote"
        )
    return _file_entries(path)


def _file_entries(path: Path) -> Iterator[tuple[str, Any]]:
    data, endings = read_bytes(path, _KIND, error=PromptError), [ending.lower() for ending in path.suffixes]
    if endings[-1:] == [".gz"]:
        data, endings = _unpacked(path, data), endings[:-1]
    ending = endings[-1] if endings else ""
    if ending == ".parquet":
        return _parquet(path, data)
    for magic, what in _MAGIC.items():
        if data.startswith(magic):
            raise PromptError(f"{_KIND} {path} is {what}")
    text = decode_text(data, path, _KIND, error=PromptError)
    if "\x00" in text:
        line = text.count("\n", 0, text.index("\x00")) + 1
        raise PromptError(
            f"{path}, line {line} has a NUL character; expected text (is it UTF-16, or binary? Convert it, for "
            "example with iconv -f UTF-16 -t UTF-8)"
        )
    if ending in (".jsonl", ".ndjson"):
        return parse_json_lines(text, path, error=PromptError)
    if ending == ".json":
        return _json(path, text)
    if ending in (".csv", ".tsv"):
        if not text.strip():
            raise PromptError(
                f"{path} lacks the column prompt (or another of its names); expected names of columns in its first "
                "line, found none"
            )
        return parse_csv(text, path, error=PromptError, delimiter="\t" if ending == ".tsv" else None)
    if ending in _OTHER_FORMATS:
        raise PromptError(
            f"{path} ends in {ending}, and its lines would be taken for prompts; convert it to .jsonl or .csv, or call "
            "it .txt if it has a prompt a line"
        )
    return _lines(path, text)


def _unpacked(path: Path, data: bytes) -> bytes:
    try:
        engine = zlib.decompressobj(wbits=31)
        found = [engine.decompress(data, _UNPACKED)]
        if engine.eof and not engine.unused_data:
            return found[0]
        if engine.unconsumed_tail:
            raise PromptError(f"{path} unpacks to more than {_UNPACKED >> 30} GiB; split it")
        return gzip.decompress(data)  # of several parts, or cut off
    except (OSError, EOFError, zlib.error) as error:
        raise PromptError(
            f"{path} cannot be unpacked ({error}); expected a file that gzip packed, whole"
        ) from None


def _lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """Plain text, a prompt a line, after a check that it is no JSON."""
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if text.lstrip().startswith(("[", "{", '"')) and (kind := _json_kind(text, [line for _, line in lines])):
        raise PromptError(
            f"{path} holds {kind}, and by its ending it is plain text with a prompt a line; give it the ending "
            + (".json" if kind == "JSON" else ".jsonl")
        )
    return ((f"{path}, line {number}", line) for number, line in lines)


def _json_kind(text: str, lines: list[str]) -> str:
    """`JSON` for a text that is one JSON array or object, `JSON Lines` for one whose every line is JSON, else empty."""
    try:
        if isinstance(json.loads(text), list | dict):
            return "JSON"
    except (ValueError, RecursionError):
        pass
    try:
        whole = all(isinstance(json.loads(line), list | dict | str) for line in lines)
    except (ValueError, RecursionError):
        whole = False
    return "JSON Lines" if whole else ""


def _json(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """An array of entries, or the one array of an object (`{"data": […]}`); a file of JSON Lines is read as that."""
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > 1 and _json_kind(text, lines) == "JSON Lines":
        return parse_json_lines(text, path, error=PromptError)
    value = parse_json(text, path, error=PromptError)
    if isinstance(value, dict):
        arrays = [field for field in value.values() if isinstance(field, list)]
        if len(arrays) != 1 or "messages" in value:
            return iter([(f"{path}, entry 0", value)])
        value = arrays[0]
    if not isinstance(value, list):
        raise PromptError(f"{path} is a JSON {type(value).__name__}; expected an array of prompts")
    if value and all(isinstance(entry, dict) and set(entry) == {"role", "content"} for entry in value):
        return iter([(f"{path}, entry 0", value)])  # one prompt: its chat messages
    return ((f"{path}, entry {i}", entry) for i, entry in enumerate(value))


def _parquet(path: Path, data: bytes) -> Iterator[tuple[str, Any]]:
    try:
        pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise PromptError(f"{path} needs the package pyarrow (pip install 'eddecode[parquet]')") from None
    try:
        rows = parquet.read_table(pyarrow.BufferReader(data)).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PromptError(f"{path} is no Parquet file that can be read ({reason})") from None
    return ((f"{path}, row {i}", row) for i, row in enumerate(rows))
