"""Files are written whole or not at all, and errors in text files name the line."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from eddecode.errors import ConfigError, PromptError, StoreError
from eddecode.utils.files import atomic_path, atomic_write, parse_csv, parse_json_lines, read_text


def test_text_and_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    assert atomic_write(tmp_path / "a", "α\r\n\ud800") == tmp_path / "a"
    assert (tmp_path / "a").read_bytes() == "α\r\n".encode() + b"\xed\xa0\x80"
    atomic_write(tmp_path / "a", b"\x00")
    assert (tmp_path / "a").read_bytes() == b"\x00"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "figure.svg"
    path.write_text("old")
    with pytest.raises(KeyError), atomic_path(path) as scratch:  # noqa: PT012 - the error comes after a part is written
        assert scratch.suffix == ".svg"
        scratch.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["figure.svg"]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no/such/x cannot be written \(No such file or directory\); try y"
    ):
        atomic_write(tmp_path / "no" / "such" / "x", "", error=ConfigError, hint="try y")
    with pytest.raises(StoreError, match="cannot be written"):
        atomic_write(tmp_path, "")


def test_the_database_of_a_run_is_not_replaced(tmp_path: Path) -> None:
    """As by `eddecode report run --out run/run.sqlite`."""
    path = tmp_path / "run.sqlite"
    sqlite3.connect(path).execute("CREATE TABLE kept (a)").connection.close()
    before = path.read_bytes()
    with pytest.raises(
        ConfigError, match="is a database, most often that of a run, and would be lost; choose another"
    ):
        atomic_write(path, "text", error=ConfigError, hint="choose another with --out")
    assert path.read_bytes() == before


def test_a_link_is_followed_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    atomic_write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        atomic_write(pipe, "through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_text_files(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(b"\xef\xbb\xbfa")
    assert read_text(path, "prompt file", error=PromptError) == "a"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(PromptError, match=r"prompt file .*p.txt is not UTF-8 \(byte 0xe9 at offset 3\)"):
        read_text(path, "prompt file", error=PromptError)
    with pytest.raises(PromptError, match="there is no prompt file"):
        read_text(tmp_path / "none", "prompt file", error=PromptError)


def test_json_lines() -> None:
    assert list(parse_json_lines('1\n\n"a\u2028b"', "f", error=ConfigError)) == [
        ("f, line 1", 1),
        ("f, line 3", "a\u2028b"),
    ]
    with pytest.raises(ConfigError, match="f, line 2 is not JSON"):
        list(parse_json_lines("1\n[", "f", error=ConfigError))


def test_csv() -> None:
    text = 'a , b\n1,"x,\ny"\n\n2\n'
    assert list(parse_csv(text, "f", error=ConfigError, required=("a",), pad=True)) == [
        ("f, line 3", {"a": "1", "b": "x,\ny"}),
        ("f, line 5", {"a": "2", "b": ""}),
    ]
    for content, message in (
        (text, "f, line 5 has 1 fields, and the first line names 2 columns"),
        ("a,b\n1,2,3\n", "f, line 2 has 3 fields"),
        ("b\n", "f lacks the column a; expected a in its first line, found b"),
        ('a\n"x\n', "f, line 2 is not CSV"),
    ):
        with pytest.raises(ConfigError, match=message):
            list(parse_csv(content, "f", error=ConfigError, required=("a",)))
