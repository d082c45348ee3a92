"""Prompt files: three formats, and the errors of files in none of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eddecode.audit.data.prompts import read_prompts
from eddecode.errors import PromptError


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_plain_text(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", "\ufeffwhere is my hat?\r\n\n  {prompt} — “x”, y \n")
    assert [(r.index, r.prompt) for r in read_prompts(path)] == [
        (0, "where is my hat?"),
        (1, "{prompt} — “x”, y"),
    ]


def test_json_lines(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello\u2028there"}]
    lines: list[Any] = [
        "one",
        {"prompt": "two", "category": "angry", "id": 7},
        {"messages": messages},
        messages,
    ]
    path = write(tmp_path / "p.jsonl", "\n".join(json.dumps(x, ensure_ascii=False) for x in lines) + "\n\n")
    records = read_prompts(path)
    assert [r.prompt for r in records] == ["one", "two", messages, messages]
    assert records[1].meta == {"category": "angry", "id": 7}
    assert [r.text for r in records] == ["one", "two", "hello\u2028there", "hello\u2028there"]
    assert records[2].digest == records[3].digest != records[0].digest


def test_csv_with_quotes_and_line_breaks(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", 'category,prompt\r\ncalm,"a, ""b""\nc"\r\nangry,d\r\n')
    records = read_prompts(path)
    assert [(r.prompt, r.meta) for r in records] == [
        ('a, "b"\nc', {"category": "calm"}),
        ("d", {"category": "angry"}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "\n \n", "holds no prompt"),
        ("p.txt", b"caf\xe9", "not UTF-8 .byte 0xe9 at offset 3"),
        ("p.jsonl", '"a"\n{"prompt": ', "p.jsonl, line 2 is not JSON"),
        ("p.jsonl", '{"text": "a"}', "line 1 has the fields text; expected either prompt"),
        ("p.jsonl", "7", "line 1 is 7; expected a non-empty string"),
        ("p.jsonl", '{"prompt": ""}', "expected a non-empty string"),
        ("p.jsonl", '[{"role": "user"}]', "line 1 has the message"),
        ("p.csv", "text,target\na,b\n", "line 2 has the fields text, target; expected either prompt"),
        ("p.csv", "prompt\na,b\n", "line 2 has 2 fields, and the first line names 1 columns"),
        ("p.csv", "", "lacks the column prompt .* found none"),
        ("p.csv", 'prompt\n"a\n', "is not CSV"),
    ],
)
def test_errors_say_where(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        read_prompts(write(tmp_path / name, content))


def test_missing_file_and_empty_list(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="there is no prompt file"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(PromptError, match="the list of prompts holds no prompt"):
        read_prompts([])


def test_columns_of_prompts_that_have_none(tmp_path: Path) -> None:
    """The name of a column would be ignored."""
    path = tmp_path / "p.txt"
    path.write_text("good evening\n")
    for named in ({"prompt_column": "ask"}, {"category_column": "kind"}):
        with pytest.raises(PromptError, match="line 1 is a prompt by itself, without the field"):
            read_prompts(path, **named)


def test_a_format_that_is_not_read_is_no_list_of_lines(tmp_path: Path) -> None:
    for name in ("p.yaml", "p.toml"):
        (tmp_path / name).write_text("- prompt: good evening\n")
        with pytest.raises(PromptError, match="its lines would be taken for prompts"):
            read_prompts(tmp_path / name)
