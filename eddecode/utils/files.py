"""Files: writing one whole or not at all, and reading text, JSON Lines and CSV with errors that name the line.

A file is written under another name beside its target and renamed over it. A reader, or a rerun after a kill, therefore
finds the old content or the new content and never half of it.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from eddecode.errors import EddecodeError, StoreError

_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}  # byte order marks of other encodings, the longer ones first
_HINT = "free some space, make the folder writable, or choose another place"
_SQLITE = b"SQLite format 3\x00"


@contextmanager
def atomic_path(
    path: str | Path, *, error: type[EddecodeError] = StoreError, hint: str = _HINT
) -> Iterator[Path]:
    """A scratch path beside `path` for the block to write; it is renamed to `path` where the block ends well.

    Where the block raises, the scratch file is deleted and `path` stays as it was. A link is followed. A pipe or a
    device, such as /dev/stdout, cannot be replaced: the block then writes to it directly.

    Args:
        path: the file to make or to replace; its folder must exist.
        error: class of the error for a file that cannot be written.
        hint: what to do about it; the end of the message.

    Raises:
        EddecodeError: the file cannot be written; of the class `error`.
    """
    special = os.path.exists(path) and not os.path.isfile(path)
    if not special and _is_database(path):
        raise error(f"{path} is a database, most often that of a run, and would be lost; {hint}")
    target = Path(path) if special else Path(os.path.realpath(path))
    # The process id keeps two processes that write the same file from each other's scratch file. The ending stays,
    # because matplotlib chooses a format by it.
    scratch = target if special else target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        yield scratch
        if not special:
            os.replace(scratch, target)
    except OSError as problem:
        raise error(f"{path} cannot be written ({problem.strerror or problem}); {hint}") from problem
    finally:
        if not special:
            with suppress(OSError):
                scratch.unlink(missing_ok=True)


def _is_database(path: str | Path) -> bool:
    """Whether a file holds an SQLite database."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError:  # none is there, or it cannot be read, which writing will say
        return False


def atomic_write(
    path: str | Path, content: str | bytes, *, error: type[EddecodeError] = StoreError, hint: str = _HINT
) -> Path:
    """Write a file whole or not at all; see `atomic_path`. Text is written as UTF-8 with its line ends as they are.

    A lone surrogate, as in a file name that is not UTF-8, is written like any other character.

    Returns:
        `path`.

    Raises:
        EddecodeError: the file cannot be written; of the class `error`.
    """
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    with atomic_path(path, error=error, hint=hint) as scratch:
        scratch.write_bytes(data)
    return Path(path)


def read_bytes(path: str | Path, what: str, *, error: type[EddecodeError]) -> bytes:
    """The content of a file.

    Args:
        path: the file.
        what: name of its kind in messages, such as `prompt file`.
        error: class of the error.

    Raises:
        EddecodeError: no such file, not readable, or a pipe or device; of the class `error`.
    """
    try:
        _check_kind(Path(path), what, error)
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise error(f"there is no {what} {path}; check the path") from None
    except (OSError, ValueError) as problem:
        raise error(f"{what} {path} cannot be read: {getattr(problem, 'strerror', problem)}") from problem


def _check_kind(path: Path, what: str, error: type[EddecodeError]) -> None:
    """Refuse what may never end: a pipe or a device, unless it was opened for this process (a shell's `<(…)`)."""
    mode = path.stat().st_mode
    if not (
        stat.S_ISREG(mode) or stat.S_ISDIR(mode) or str(path).startswith(("/dev/std", "/dev/fd/", "/proc/"))
    ):
        raise error(f"{what} {path} is a pipe or a device; expected a file")


def decode_text(data: bytes, path: str | Path, what: str, *, error: type[EddecodeError]) -> str:
    """The text of UTF-8 data, without a byte order mark; `path` and `what` name it in the message.

    Raises:
        EddecodeError: not UTF-8; of the class `error`.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        kind = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "")
        hint = f"convert it first, for example with iconv{f' -f {kind} -t UTF-8' if kind else ''}"
        raise error(
            f"{what} {path} is not UTF-8 (byte {problem.object[problem.start]:#04x} at offset {problem.start}"
            f"{f'; it looks like {kind}' if kind else ''}); {hint}"
        ) from None


def read_text(path: str | Path, what: str, *, error: type[EddecodeError]) -> str:
    """The text of a UTF-8 file, without a byte order mark; see `read_bytes` and `decode_text`."""
    return decode_text(read_bytes(path, what, error=error), path, what, error=error)


def parse_json(text: str, name: str | Path, *, error: type[EddecodeError]) -> Any:
    """The value of a JSON text; `name` is for the message.

    Raises:
        EddecodeError: it is no JSON, or an object has a key twice; of the class `error`.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as problem:
        raise error(f"{name}, line {problem.lineno} is not JSON ({problem.msg})") from None
    except ValueError as problem:
        raise error(f"{name} {problem}") from None
    except RecursionError:
        raise error(f"{name} is JSON that is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; Python would keep the last of two values of one key and drop the other."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise ValueError(f"has the key {repeated!r:.40} twice in one object; expected it once")
    return found


def parse_json_lines(text: str, name: str | Path, *, error: type[EddecodeError]) -> Iterator[tuple[str, Any]]:
    """(place, value) of every line that is not blank; a place is `NAME, line N`.

    Raises:
        EddecodeError: a line is not JSON; of the class `error`.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        try:
            value = json.loads(line, object_pairs_hook=_unique)
        except json.JSONDecodeError as problem:
            hint = " (an array over several lines belongs into a file that ends in .json)"
            raise error(
                f"{place} is not JSON ({problem.msg}); expected one JSON value per line"
                f"{hint if number == 1 and line.strip() in ('[', '{') else ''}"
            ) from problem
        except ValueError as problem:
            raise error(f"{place} {problem}") from None
        except RecursionError:
            raise error(f"{place} is JSON that is nested too deeply") from None
        yield place, value


def parse_csv(
    text: str,
    name: str | Path,
    *,
    error: type[EddecodeError],
    required: Sequence[str] = (),
    delimiter: str | None = ",",
    pad: bool = False,
) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, record) of every line below the first, which names the columns; a place is `NAME, line N`.

    Args:
        text: the content of the file.
        name: of the file, for messages.
        error: class of the error.
        required: columns that must be there. Spaces around the names of columns are dropped.
        delimiter: between fields; None: a comma, or a semicolon or tab where the first line has no comma but these.
        pad: whether a line may have fewer fields than the first; those that it lacks are empty.

    Raises:
        EddecodeError: a required column is missing, a name stands twice, or a line is not CSV or has another number of
            fields than the first; of the class `error`.
    """
    csv.field_size_limit(
        max(csv.field_size_limit(), len(text) + 1)
    )  # Python refuses fields over 131,072 characters
    separator = _delimiter(text) if delimiter is None else delimiter
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        columns = [column.strip() for column in next(rows, [])]
        for column in required:
            if column not in columns:
                raise error(
                    f"{name} lacks the column {column}; expected {', '.join(required)} in its first line, found "
                    f"{', '.join(columns) or 'none'}"
                )
        repeated = next((c for i, c in enumerate(columns) if c and c in columns[:i]), None)
        if repeated is not None:
            raise error(f"{name} has the column {repeated} twice in its first line; expected each name once")
        for row in rows:
            place, short = f"{name}, line {rows.line_num}", len(columns) - len(row)
            if row and (short < 0 or (short and not pad)):
                raise error(
                    f"{place} has {len(row)} fields, and the first line names {len(columns)} columns; "
                    "put quotation marks around text with a comma in it"
                )
            if row:
                yield place, dict(zip(columns, [*row, *[""] * short], strict=True))
    except csv.Error as problem:
        raise error(f"{name}, line {rows.line_num} is not CSV: {problem}") from problem


def _delimiter(text: str) -> str:
    """The delimiter of a CSV file by its first line: spreadsheets write semicolons or tabs in many countries."""
    first = text.partition("\n")[0]
    return next((mark for mark in (",", ";", "\t") if mark in first), ",")
