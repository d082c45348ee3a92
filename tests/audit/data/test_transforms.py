"""Transforms are inserted literally, and their files are checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from eddecode.audit.data.transforms import Transform, read_transforms, with_system
from eddecode.errors import ConfigError


def test_transforms_are_literal() -> None:
    transform = Transform("t", prefix="{prompt} %s ", suffix=r" \1", document="doc")
    assert transform("ask") == "doc\n\n{prompt} %s ask \\1"
    chat = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    changed = transform(chat)
    assert changed[:2] == chat[:2]
    assert changed[2] == {"role": "user", "content": "doc\n\n{prompt} %s three \\1"}
    assert chat[2]["content"] == "three"


def test_a_system_prompt_goes_first() -> None:
    assert with_system("ask", "S") == [{"role": "system", "content": "S"}, {"role": "user", "content": "ask"}]
    kept = with_system([{"role": "system", "content": "T"}, {"role": "user", "content": "ask"}], "S")
    assert [message["content"] for message in kept] == ["S\n\nT", "ask"]


def test_transform_files(tmp_path: Path) -> None:
    lines = tmp_path / "t.jsonl"
    lines.write_text(
        '{"name": "a", "prefix": "x "}\n\n{"name": "b", "suffix": "!", "found_for": "aligned"}\n'
    )
    table = tmp_path / "t.csv"
    table.write_text("name,prefix,suffix,found_for\na,x ,,\nb,,!,aligned\n")
    assert read_transforms(lines) == read_transforms(table)
    assert read_transforms(lines)[1].found_for == "aligned"
    for content, message in (
        ('{"name": "a"}', "transform a changes nothing"),
        ('{"name": "a b", "prefix": "x"}', "a transform is called 'a b'"),
        (
            '{"name": "a", "postfix": "x"}',
            "has the fields name, postfix; expected name and one or more of prefix",
        ),
        ('{"name": "a", "prefix": "x"}\n{"name": "a", "prefix": "y"}', "two transforms are called a"),
        ("[1", "line 1 is not JSON"),
        ("", "holds no transform"),
    ):
        lines.write_text(content)
        with pytest.raises(ConfigError, match=message):
            read_transforms(lines)
