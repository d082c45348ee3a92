"""A run's completions for other tools: JSON Lines, CSV, Parquet, and a log that Inspect reads.

JSON Lines is exact: plain ASCII, so that every reader splits it into the same lines and a terminal executes nothing in
it; `null` where a number is not finite. CSV is for spreadsheets: control characters are escaped, and a cell that a
spreadsheet would run as a formula gets an apostrophe in front.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from eddecode.audit.export.inspect_log import export_inspect
from eddecode.audit.export.rows import export_rows
from eddecode.audit.export.spreadsheet import begins_as_formula, csv_line
from eddecode.audit.store.store import Store
from eddecode.errors import ConfigError
from eddecode.utils.files import atomic_path
from eddecode.utils.terminal import escape_control_chars

FORMATS = ("jsonl", "csv", "parquet", "inspect")
_UNTOUCHED = "choose another place with --out; the run is untouched"
_encode = json.JSONEncoder(ensure_ascii=True, allow_nan=False, check_circular=False).encode
_VERDICT = ("score", "flag", "label", "reason")


def export_jsonl(folder: str | Path, names: Sequence[str] = ()) -> Iterator[str]:
    """One line per completion on disk, by condition, prompt and sample.

    Args:
        folder: of the run.
        names: of the conditions to export; none: all.

    Raises:
        StoreError: there is no run in the folder.
        ConfigError: the run has no such condition.
    """
    with Store.read(folder) as store:
        for row in export_rows(store, names):
            yield _encode(row)


def export_csv(folder: str | Path, names: Sequence[str] = ()) -> Iterator[str]:
    """A first line of column names, then one record per completion; verdicts are `judge.score`, `judge.flag` …

    Raises:
        StoreError, ConfigError: as `export_jsonl`.
    """
    with Store.read(folder) as store:
        columns: list[str] = []
        for row in _flat_rows(store, names):
            if not columns:
                columns = list(row)
                yield csv_line([_cell(column) for column in columns])  # a judge's name is in some
            yield csv_line([_cell(row[column]) for column in columns])


def export_parquet(folder: str | Path, out: str | Path, names: Sequence[str] = ()) -> None:
    """Write the columns of the CSV with types, token ids as lists; in groups of rows, which bounds memory.

    Raises:
        ConfigError: pyarrow is not installed, or as `export_jsonl`.
        StoreError: the file cannot be written, or as `export_jsonl`.
    """
    try:
        pa, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigError(
            "Parquet needs pyarrow; install it (pip install pyarrow), or export to jsonl"
        ) from None
    with Store.read(folder) as store:
        judges = _judge_columns(store)
        schema = _parquet_schema(pa, judges)
        rows: list[dict[str, Any]] = []
        with (
            atomic_path(out, hint=_UNTOUCHED) as scratch,
            parquet.ParquetWriter(scratch, schema) as writer,
        ):
            for row in _flat_rows(store, names, lists=True):
                rows.append(row)
                if len(rows) == 4096:
                    writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                    rows = []
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def to_frame(folder: str | Path, names: Sequence[str] = ()) -> Any:
    """The columns of the Parquet file as a pandas.DataFrame, a row per completion.

    Raises:
        ConfigError: pandas is not installed, or as `export_jsonl`.
        StoreError: there is no run in the folder.
    """
    try:
        pandas = import_module("pandas")
    except ImportError:
        raise ConfigError(
            "a data frame needs pandas; install it (pip install pandas), or export to jsonl"
        ) from None
    with Store.read(folder) as store:
        return pandas.DataFrame.from_records(list(_flat_rows(store, names, lists=True)))


_TEXT_FORMATS: dict[str, Callable[[str | Path, Sequence[str]], Iterator[str]]] = {
    "jsonl": export_jsonl,
    "csv": export_csv,
    "inspect": export_inspect,
}


def export_to(
    folder: str | Path, to: str, out: str | Path | None = None, names: Sequence[str] = ()
) -> Iterator[str]:
    """The lines of an export for standard output; none where it goes into a file.

    Args:
        folder: of the run.
        to: one of `FORMATS`.
        out: a file, written whole or not at all; None: the lines are yielded.
        names: of the conditions to export; none: all.

    Raises:
        ConfigError: no such format or condition, or Parquet without a file.
        StoreError: there is no run, or the file cannot be written.
    """
    if to not in FORMATS:
        raise ConfigError(f"there is no format {to!r}; expected {', '.join(FORMATS)}")
    if to == "parquet":
        Store.read(folder).close()  # a folder without a run is the first error to report
        if out is None:
            raise ConfigError("Parquet is a binary format; name a file with --out")
        return export_parquet(folder, out, names)
    lines = _TEXT_FORMATS[to](folder, names)
    if out is None:
        yield from lines
        return None
    with (
        atomic_path(out, hint=_UNTOUCHED) as scratch,
        scratch.open("w", encoding="utf-8", newline="\n") as file,
    ):
        file.writelines(f"{line}\n" for line in lines)
    return None


# Columns ---------------------------------------------------------------------------------------------------------


def _judge_columns(store: Store) -> list[str]:
    """Names of the judges in an export; a replaced judge has its identity behind its name."""
    names = [
        record.name if record.active else f"{record.name}#{record.identity}"
        for record in store.judges(include_replaced=True)
    ]
    return [*names, *(["human"] if store.labels() else [])]


def _flat_rows(store: Store, names: Sequence[str], lists: bool = False) -> Iterator[dict[str, Any]]:
    judges = _judge_columns(store)
    for row in export_rows(store, names):
        verdicts = row.pop("verdicts")
        for judge in judges:
            verdict = verdicts.get(judge, {})
            row |= {f"{judge}.{part}": verdict.get(part) for part in _VERDICT}
        if not isinstance(row["prompt"], str):
            row["prompt"] = json.dumps(row["prompt"], ensure_ascii=True)
        if not lists and row["token_ids"] is not None:
            row["token_ids"] = json.dumps(row["token_ids"])
        yield row


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return value
    text = escape_control_chars(value).replace("\n", "\\n").replace("\t", "\\t")
    return f"'{text}" if begins_as_formula(value) and not _is_number(value) else text


def _is_number(value: str) -> bool:
    with suppress(ValueError):
        return math.isfinite(float(value))
    return False


def _parquet_schema(pa: Any, judges: Sequence[str]) -> Any:
    text = ("name", "system", "transform", "template", "mitigation", "model")
    kinds: dict[str, Any] = {
        **{"condition": pa.string(), "attack": pa.string(), "alpha": pa.float64()},
        **dict.fromkeys(text, pa.string()),
        "temperature": pa.float64(),
        **{"prompt_index": pa.int64(), **dict.fromkeys(("prompt", "prompt_id", "category"), pa.string())},
        **{"sample": pa.int64(), "text": pa.string(), "text_digest": pa.string()},
        **{"token_ids": pa.list_(pa.int32()), "finish_reason": pa.string()},
        **dict.fromkeys(("implied_reward", "base_logprob", "aligned_logprob"), pa.float64()),
        "length": pa.int64(),
        **dict.fromkeys(("perplexity", "distinct_1", "distinct_2", "repetition"), pa.float64()),
        "empty": pa.bool_(),
    }
    verdict = {"score": pa.float64(), "flag": pa.bool_(), "label": pa.string(), "reason": pa.string()}
    kinds |= {f"{judge}.{part}": kind for judge in judges for part, kind in verdict.items()}
    return pa.schema(list(kinds.items()))
