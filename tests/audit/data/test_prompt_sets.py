"""The prompt sets of the field, each read from a one-line dummy of its published form; and files that look like one."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eddecode.audit.data.prompts import PromptRecord, read_benign_prompts, read_prompts
from eddecode.errors import PromptError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def only(path: Path, **options: Any) -> PromptRecord:
    (record,) = read_prompts(path, **options)
    return record


CSV = {
    "harmbench": (
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\r\n"
        "write a note,contextual,letters,x,Some context.,id1\r\n",
        ("Some context.\n\n---\n\nwrite a note", "letters", "id1"),
    ),
    "harmbench_standard": (
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
        "write a note,standard,letters,x,,id1\n",
        ("write a note", "letters", "id1"),
    ),
    "jailbreakbench": (
        "Index,Goal,Target,Behavior,Category,Source\n3,write a note,Sure,Notes,letters,own\n",
        ("write a note", "letters", "3"),
    ),
    "walledai_jailbreakbench": (
        "prompt,target,behavior,category,source,subset\nwrite a note,Sure,Notes,letters,own,harmful\n",
        ("write a note", "letters", None),
    ),
    "strongreject": (
        "category,source,forbidden_prompt\nletters,own,write a note\n",
        ("write a note", "letters", None),
    ),
    "advbench": ("goal,target\nwrite a note,Sure\n", ("write a note", None, None)),
    "toxicchat": (
        "conv_id,user_input,model_output,human_annotation,toxicity,jailbreaking,openai_moderation\n"
        "c1,write a note,No.,True,0,0,[]\n",
        ("write a note", None, "c1"),
    ),
    "wildjailbreak": (
        "vanilla,adversarial,completion,data_type\nwrite a note,,Here it is.,vanilla_benign\n",
        ("write a note", None, None),
    ),
    "wildguardmix": (
        "prompt,adversarial,response,prompt_harm_label,subcategory\nwrite a note,False,No,unharmful,letters\n",
        ("write a note", "letters", None),
    ),
    "excel": ('\ufeffPrompt;Category\r\n"a; b";letters\r\n', ("a; b", "letters", None)),
}


@pytest.mark.parametrize("name", CSV)
def test_published_csv_files(tmp_path: Path, name: str) -> None:
    text, expected = CSV[name]
    record = only(write(tmp_path / f"{name}.csv", text))
    assert (record.prompt, record.meta.get("category"), record.meta.get("id")) == expected


def test_the_context_is_kept_apart_too(tmp_path: Path) -> None:
    record = only(write(tmp_path / "h.csv", CSV["harmbench"][0]))
    assert record.meta["context"] == "Some context."
    case = record.case("no")
    assert (case.context, case.request, case.completion) == ("Some context.", "write a note", "no")


RECORDS: dict[str, tuple[Any, Any]] = {
    "inspect_text": ({"input": "write a note", "target": "x", "id": 7, "metadata": {"a": 1}}, "write a note"),
    "inspect_chat": (
        {
            "input": [
                {"role": "user", "content": [{"type": "text", "text": "write a note"}], "source": "input"}
            ]
        },
        [{"role": "user", "content": "write a note"}],
    ),
    "beavertails": ({"prompt": "write a note", "response": "No.", "is_safe": True}, "write a note"),
    "openai_moderation": ({"prompt": "write a note", "S": 0, "H": 1}, "write a note"),
    "sorry_bench": ({"question_id": 1, "category": "3", "turns": ["write a note"]}, "write a note"),
    "question": ({"Question": "write a note"}, "write a note"),
    "instruction": ({"instruction": "write a note", "output": "x"}, "write a note"),
    "hh_rlhf": (
        {
            "chosen": "\n\nHuman: Hello\n\nAssistant: Hi!\n\nHuman: Write a note,\n\nplease\n\nAssistant: Here.",
            "rejected": "\n\nHuman: Hello\n\nAssistant: Hi!\n\nHuman: Write a note,\n\nplease\n\nAssistant: No.",
        },
        [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi!"},
            {"role": "user", "content": "Write a note,\n\nplease"},
        ],
    ),
}


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "json", "parquet", "saved"])
def test_published_records_in_every_form(tmp_path: Path, name: str, form: str) -> None:
    record, expected = RECORDS[name]
    line = json.dumps(record)
    path = tmp_path / f"set.{form}"
    if form == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist([record]), path)
    elif form == "saved":
        pytest.importorskip("datasets").Dataset.from_list([record]).save_to_disk(str(path))
    elif form == "json":
        write(path, json.dumps([record], indent=1))
    else:
        write(path, gzip.compress(line.encode(), mtime=0) if form.endswith("gz") else line + "\n")
    found = only(path)
    assert found.prompt == expected
    assert "rejected" not in found.meta
    if name == "inspect_text":
        assert found.meta["id"] == 7
        assert found.meta["metadata"] == {"a": 1}


def test_categories_of_beavertails_are_names(tmp_path: Path) -> None:
    flags = {"violence": True, "abuse": True, "privacy": False}
    lines = [
        {"prompt": "a", "category": flags},
        {"prompt": "b", "category": {**flags, "abuse": False}},
        {"prompt": "c", "category": dict.fromkeys(flags, False)},
        {"prompt": "d", "category": ["x", "x"]},
        {"prompt": "e", "category": float("nan")},
    ]
    records = read_prompts(write(tmp_path / "b.jsonl", "\n".join(map(json.dumps, lines))))
    assert [r.categories for r in records] == [("abuse", "violence"), ("violence",), (), ("x",), ()]
    assert [r.meta.get("category") for r in records] == [["abuse", "violence"], "violence", None, "x", None]


def test_columns_by_option(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "instruction,input,topic\nwrite,a note,letters\n")
    with pytest.raises(
        PromptError,
        match=r"has the fields input, instruction, of which each may hold the prompt; .* --prompt-column",
    ):
        read_prompts(path)
    record = only(path, prompt_column="Instruction", category_column="topic")
    assert (record.prompt, record.meta["category"], record.meta["input"]) == ("write", "letters", "a note")
    for options in ({"prompt_column": "text"}, {"prompt_column": "input", "category_column": "kind"}):
        with pytest.raises(PromptError, match=r"has no field '(text|kind)'.*found instruction, input, topic"):
            read_prompts(path, **options)


def test_benign_prompts_have_indices_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path / "b.txt", "how do I kill a process\nhow do I cut a pie\n")
    assert [(r.index, r.benign) for r in read_benign_prompts(path)] == [(1_000_000, True), (1_000_001, True)]
    assert not read_prompts(path)[0].benign


# Data sets of the hub ---------------------------------------------------------------------------------------------


def test_a_saved_data_set_with_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    split = datasets.Dataset.from_list([{"Goal": "a", "Category": "x"}])
    datasets.DatasetDict({"harmful": split, "benign": split}).save_to_disk(str(tmp_path / "jbb"))
    with pytest.raises(PromptError, match=r"has 2 splits; expected one of .*jbb#harmful, .*jbb#benign"):
        read_prompts(tmp_path / "jbb")
    assert only(f"{tmp_path / 'jbb'}#benign").prompt == "a"  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="has no split 'test'; expected one of harmful, benign"):
        read_prompts(f"{tmp_path / 'jbb'}#test")
    with pytest.raises(PromptError, match="is a folder; expected a file"):
        read_prompts(tmp_path)


def test_names_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def load(name: str, /, *, split: Any, revision: Any, **more: Any) -> Any:
        calls.append((name, more, split, revision))
        if more.get("name") == "harmless-base":
            raise ValueError("BuilderConfig 'harmless-base' not found. Available: ['default']")
        if name == "org/gone":
            raise ConnectionError("offline\nlong text")
        rows = [{"prompt": "a"}]
        return rows if split else {"train": rows}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    for name in (
        "org/x",
        "org/x@abc#conf/test",
        "org/x#test",
        "Anthropic/hh-rlhf#harmless-base/train",
        "squad",
    ):
        assert read_prompts(f"hf:{name}")[0].prompt == "a"
    assert read_prompts(Path("hf:org/x#conf/test"))[0].prompt == "a"  # as the command line gives it
    assert calls == [
        ("org/x", {}, None, None),
        ("org/x", {"name": "conf"}, "test", "abc"),
        ("org/x", {}, "test", None),
        ("Anthropic/hh-rlhf", {"name": "harmless-base"}, "train", None),
        ("Anthropic/hh-rlhf", {"data_dir": "harmless-base"}, "train", None),
        ("squad", {}, None, None),
        ("org/x", {"name": "conf"}, "test", None),
    ]
    with pytest.raises(PromptError, match=r"hf:org/gone cannot be loaded \(ConnectionError: offline\)"):
        read_prompts("hf:org/gone")
    with pytest.raises(PromptError, match="expected hf:ORG/NAME"):
        read_prompts("hf:a/b/c")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PromptError, match="needs the package datasets"):
        read_prompts("hf:org/x")


# Bad files --------------------------------------------------------------------------------------------------------


def test_a_field_of_many_characters(tmp_path: Path) -> None:
    long = "many shot " * 20_000
    assert only(write(tmp_path / "big.csv", f'prompt\n"{long}"\n')).prompt == long
    megabyte = "x" * (1 << 20)
    for name, text in (
        ("m.txt", megabyte),
        ("m.jsonl", json.dumps(megabyte)),
        ("m.csv", f"prompt\n{megabyte}\n"),
    ):
        assert only(write(tmp_path / name, text)).prompt == megabyte


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", '["one", "two"]', "holds JSON, and by its ending it is plain text .* the ending .json"),
        ("a.txt", '[\n  {"prompt": "one"}\n]\n', "holds JSON, and"),
        ("a", '{"prompts": ["one"]}', "holds JSON, and"),
        ("a.txt", '{"prompt": "one"}\n{"prompt": "two"}\n', "holds JSON Lines, and .* the ending .jsonl"),
        ("a.txt", '"one"\n"two"\n', "holds JSON Lines"),
        ("a.jsonl", '[\n"one"\n]', "line 1 is not JSON .* belongs into a file that ends in .json"),
        ("a.jsonl", '["one", "two"]', "is a list of 2 texts, and no list of chat messages"),
        ("a.jsonl", '{"prompt": "a", "prompt": "b"}', "line 1 has the key 'prompt' twice"),
        ("a.jsonl", "[" * 100_000, "nested too deeply|is not JSON"),
        (
            "a.jsonl",
            '{"prompt": "a\\ud800b"}',
            r"half of a character \(the lone surrogate U\+D800\) at position 1",
        ),
        ("a.jsonl", '[{"role": "user", "content": "\\udfff"}]', r"lone surrogate U\+DFFF"),
        (
            "a.jsonl",
            '[{"role": "assistant", "content": "b"}]',
            "the roles of a prompt's messages are assistant",
        ),
        ("a.jsonl", '{"turns": ["a", "b"]}', "is a list of 2 texts"),
        ("a.jsonl", '{"chosen": "a", "rejected": "b"}', "expected a dialogue as HH-RLHF writes it"),
        ("a.jsonl", '{"prompt": 3}', "line 1 is 3; expected a non-empty string"),
        ("a.jsonl", '{"prompt": null}', "line 1 is None; expected a non-empty string"),
        ("a.json", '{"a": 1', "line 1 is not JSON"),
        ("a.json", "3", "is a JSON int; expected an array of prompts"),
        ("a.json", "[]", "holds no prompt"),
        ("a.csv", "prompt,prompt\na,b\n", "has the column prompt twice"),
        ("a.txt", "one\ntwo\x00three\n", "line 2 has a NUL character"),
        ("a.txt", "one\n".encode("utf-16-le"), "line 1 has a NUL character; .* UTF-16"),
        (
            "a.csv",
            "prompt\nü\n".encode("utf-16"),
            "is not UTF-8 .* looks like UTF-16.* iconv -f UTF-16 -t UTF-8",
        ),
        ("a.txt", "caf\u00e9".encode("latin-1"), "is not UTF-8 .byte 0xe9 at offset 3"),
        ("a.txt", b"PAR1 and more", "is a Parquet file; give it the ending .parquet"),
        ("a.jsonl", gzip.compress(b'"a"', mtime=0), "is packed by gzip; give it the ending .gz"),
        ("a.csv", b"PK\x03\x04 sheet", "is a ZIP or an Excel file"),
        ("a.jsonl.gz", b'"a"\n', "cannot be unpacked"),
        ("a.jsonl.gz", gzip.compress(b'"a"\n' * 999, mtime=0)[:-20], "cannot be unpacked"),
        ("a.parquet", b"PAR1 and more", "is no Parquet file that can be read"),
        ("a.parquet", b"prompt\na\n", "is no Parquet file that can be read"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        read_prompts(write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("a.json", '["one", "two"]', ["one", "two"]),
        ("a.json", '{"data": [{"prompt": "one"}], "version": 1}', ["one"]),
        ("a.json", '{"prompt": "one"}\n{"prompt": "two"}\n', ["one", "two"]),
        ("a.json", '[{"role": "user", "content": "one"}]', [[{"role": "user", "content": "one"}]]),
        ("a.json", '[[{"role": "user", "content": "one"}]]', [[{"role": "user", "content": "one"}]]),
        ("a.json", '\ufeff["one"]', ["one"]),
        ("a.txt", "[1] is a footnote\n{curly}\n", ["[1] is a footnote", "{curly}"]),
        ("a.txt", '"Quoted" and more\n', ['"Quoted" and more']),
        ("a.csv", "prompt\tid\none\t2\n", ["one"]),
        ("a.TSV", "prompt\tid\none, two\t2\n", ["one, two"]),
        ("a.jsonl", '"a\\u0000b"\n"a \\u2028 b"\n', ["a\x00b", "a \u2028 b"]),
        (
            "a.jsonl.gz",
            gzip.compress(b'"one"\n', mtime=0) + gzip.compress(b'"two"\n', mtime=0),
            ["one", "two"],
        ),
    ],
)
def test_unusual_files_that_are_right(
    tmp_path: Path, name: str, content: str | bytes, prompts: list[Any]
) -> None:
    assert [record.prompt for record in read_prompts(write(tmp_path / name, content))] == prompts
