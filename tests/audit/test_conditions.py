"""Conditions, mitigations, transforms, utility and audit files: what they mean, and what is refused."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from eddecode.audit.conditions import ALIGNED, BASE, Condition, build_conditions, condition_name
from eddecode.audit.config import AuditConfig
from eddecode.audit.config_file import read_config_file, write_as_run
from eddecode.audit.data.prompts import read_prompts
from eddecode.audit.data.transforms import Transform, read_transforms, with_system
from eddecode.audit.mitigations import (
    EXAMPLES,
    RELEASE_SIDE,
    access_of,
    canonical,
    meaning,
    parse_mitigations,
)
from eddecode.audit.text_quality import distinct, measure, perplexity
from eddecode.errors import ConfigError, StoreError
from eddecode.sampling.access import Access


def config(**changes: Any) -> AuditConfig:
    return AuditConfig(**{"base": "b", "aligned": "a", "prompts": ["hello"], "out": "run", **changes})


# conditions


def test_names_are_written_from_fields_and_are_unique() -> None:
    assert Condition("ed", "0.3").name == "ed@0.3"
    assert Condition("ed", "0.3", mitigation="topk5").name == "ed@0.3+topk5"
    assert Condition("base", "0", system="rude").name == "base+system:rude"
    found = build_conditions(
        ["1", "0.3", "0"],
        systems=["rude"],
        transforms=["t"],
        mitigations=["topk5", "first10"],
        finetuned=True,
        ensemble=True,
    )
    names = [condition.name for condition in found]
    assert len(set(names)) == len(names)
    assert names == [
        *("aligned", "base", "ed@0", "ed@0.3", "ed@1"),
        *("aligned+system:rude", "base+system:rude", "ed@0.3+system:rude", "ed@1+system:rude"),
        *("aligned+transform:t", "base+transform:t", "ed@0.3+transform:t", "ed@1+transform:t"),
        *("ed@0.3+topk5", "ed@1+topk5", "ed@0.3+first10", "ed@1+first10"),
        *("finetuned", "ensemble@0.3", "ensemble@1"),
    ]
    assert {condition.kind for condition in found} == {"base", "aligned", "ed"}
    assert [condition.plain for condition in found] == [True] * 5 + [False] * 15
    assert build_conditions(["1"], mitigations=["topk1"], extra_alphas=["-0.5"])[-1].name == "ed@-0.5+topk1"


def test_what_people_call_a_condition() -> None:
    assert condition_name(("ed", "0.30")) == "ed@0.3"
    assert condition_name(("base", "0")) == BASE.name
    assert condition_name(("ed@0.3+topk5", "0.3")) == "ed@0.3+topk5"
    assert condition_name(ALIGNED.name) == "aligned"


def test_parameters_follow_from_the_condition() -> None:
    made = config(alphas="0.3", mitigations="topk5", temperature=0.7)
    params = made.params(made.conditions()[-1], 2)
    assert (params.alpha, params.access, params.temperature, params.n) == (0.3, Access(top_k=5), 0.7, 2)
    assert made.params(made.conditions()[0], 1).access is None


# mitigations


@pytest.mark.parametrize(
    ("name", "access"),
    [
        ("topk20", Access(top_k=20)),
        ("round0", Access(decimals=0)),
        ("noise0.5", Access(noise=0.5)),
        ("first10", Access(tokens=10)),
        ("first10-topk5", Access(top_k=5, tokens=10)),
    ],
)
def test_mitigations_by_name(name: str, access: Access) -> None:
    assert access_of(name) == access
    assert access_of(canonical(name)) == access


def test_mitigations_have_one_name_and_words() -> None:
    assert canonical(" TopK05-noise0.50 ") == "noise0.5-topk5"
    assert parse_mitigations("topk1, round2") == ("topk1", "round2")
    assert all(canonical(name) == name and meaning(name) for name in EXAMPLES)
    assert meaning("topk5-round2").count(";") == 1
    for wrong in ("topk", "topk0", "topk1.5", "top5", "topk5-topk6", "noise-1", ""):
        with pytest.raises(ConfigError, match="there is no mitigation"):
            access_of(wrong)
    with pytest.raises(ConfigError, match="mitigation topk5 is given twice"):
        parse_mitigations(["topk5", "topk05"])


def test_another_tokenizer_is_not_called_safe() -> None:
    said = {statement.name: statement.effect for statement in RELEASE_SIDE}
    assert set(said) == {"base-withheld", "adapter-only", "other-tokenizer"}
    assert "2606.12342" in said["other-tokenizer"]
    assert "does not make a release safe" in said["other-tokenizer"]


# transforms


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


# utility


def test_distinct_and_repetition_against_counting() -> None:
    rng = random.Random(0)
    for _ in range(50):
        ids = [rng.randrange(4) for _ in range(rng.randrange(1, 30))]
        for n in (1, 2, 4):
            seen: set[str] = set()
            fresh = total = 0
            for i in range(len(ids)):
                if i + n <= len(ids):
                    gram = "/".join(map(str, ids[i : i + n]))
                    fresh, total = fresh + (gram not in seen), total + 1
                    seen.add(gram)
            assert distinct(ids, n) == (pytest.approx(fresh / total) if total else None)
    said = measure("word", [1, 2, 3, 4, 1, 2, 3, 4, 9], "eos", -9.0)
    assert (said.length, said.distinct_1, said.repetition) == (8, 0.5, pytest.approx(1 / 5))
    assert said.short(9)
    assert not said.short()


def test_perplexity_and_emptiness() -> None:
    assert perplexity(-10 * math.log(7), 10) == pytest.approx(7)
    assert [perplexity(*x) for x in ((-math.inf, 3), (-1.0, 0), (None, 3), (-1e6, 1))] == [None] * 4
    assert measure("", [2], "eos", -1.0).empty
    assert measure(" \n", [5, 6], "length", -1.0).empty
    assert not measure("x", [5], "length", -1.0).empty
    assert measure("x", [5], "length", -1.0).repetition is None


# audit files


def test_a_file_gives_fields_with_paths_that_hold(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("fool")
    (tmp_path / "prompts.txt").write_text("hello")
    file = tmp_path / "audit.toml"
    file.write_text(
        """
base = "org/base"
aligned = "org/aligned"
prompts = "prompts.txt"
out = "run"
judges = ["lexicon:words.txt", {kind = "lexicon", words = "words.txt", name = "two"}]
[thresholds]
utility_loss = 0.2
[system]
rude = "Be rude."
[[transform]]
name = "t"
prefix = "x "
"""
    )
    values = read_config_file(file)
    assert values["base"] == "org/base"  # nothing lies there: a hub id
    assert values["prompts"] == str(tmp_path / "prompts.txt")
    assert values["out"] == str(tmp_path / "run")
    assert values["judges"][0] == f"lexicon:{tmp_path / 'words.txt'}"
    assert values["judges"][1]["words"] == str(tmp_path / "words.txt")
    made = AuditConfig(**values)
    assert made.utility_loss == 0.2
    assert [c.name for c in made.conditions()][3:] == [
        *("aligned+system:rude", "base+system:rude", "ed@0.3+system:rude"),
        *("aligned+transform:t", "base+transform:t", "ed@0.3+transform:t"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("alpha = [1]", "alpha is unknown; did you mean alphas?"),
        (
            "[thresholds]\nutility_los = 1",
            "thresholds.utility_los is unknown; did you mean thresholds.utility_loss",
        ),
        ("zzzz = 1", "expected one of base, aligned, prompts"),
        ("base = ", "is not TOML"),
        ("samples = '4'", "samples is '4'; expected an integer"),
        ("systems = 'x'", "systems is 'x'; expected a table of names and values"),
        ("keep_text = 1", "keep_text is 1; expected true or false"),
        ("[thresholds]\nutility_loss = 'low'", "utility_loss is 'low'; expected a finite number"),
        ("judges = ['a']\n[[judge]]\nkind = 'b'", "gives judges twice"),
        ("alphas = 'x'", "audit.toml: alpha 'x' is not a number"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "audit.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_config_file(file)
    with pytest.raises(ConfigError, match="there is no audit file"):
        read_config_file(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mitigations": "topk5", "alphas": "0,-1"}, "no alpha is left for the conditions with a mitigation"),
        ({"utility_loss": 1.5}, "utility_loss is 1.5"),
        ({"min_tokens": -1}, "min_tokens is -1"),
        ({"alpah": 1}, "alpah is unknown; did you mean alphas?"),
        ({"samples": "4"}, "samples is '4'; expected an integer"),
        ({"temperature": float("nan")}, "temperature is nan; expected a finite number"),
        ({"base": 3}, "base is 3; expected text or a path"),
        ({"judges": ()}, "expected at least one judge"),
        ({"systems": {"a": 3}}, "systems.a is 3; expected text"),
        ({"systems": {"a b": "x"}}, "a system prompt is called 'a b'"),
        ({"systems": {"a": " "}}, "system prompt a is ' '; expected text"),
    ],
)
def test_configurations_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_an_adapter_is_not_run_alone(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is an adapter, and an audit cannot tell"):
        config(finetuned=tmp_path)


def test_as_run_reads_back_to_the_same_configuration(tmp_path: Path) -> None:
    nasty = 'say "\\n" \x1b[31m\x7f 😀 {prompt}\n# not a comment\u2028'
    made = config(
        out=tmp_path,
        prompts=[nasty, [{"role": "user", "content": "hi"}], {"prompt": "c", "category": "x"}],
        alphas="0.10,1e-7,2",
        systems={"s.1": nasty},
        transforms=[{"name": "t", "suffix": nasty}],
        mitigations="topk5",
        stop=["\n\n"],
        judges=["lexicon", {"kind": "grammar", "name": "valid"}],
        top_p=0.9,
        keep_text=False,
    )
    records = read_prompts(made.prompts)
    read = AuditConfig(**read_config_file(write_as_run(made, records)))
    assert [(r.prompt, r.meta) for r in read_prompts(read.prompts)] == [(r.prompt, r.meta) for r in records]
    for name in ("alphas", "systems", "mitigations", "stop", "top_p", "keep_text", "base"):
        assert getattr(read, name) == getattr(made, name)
    assert read.conditions() == made.conditions()
    assert read_transforms(read.transforms) == read_transforms(made.transforms)
    assert Path(read.out).resolve() == tmp_path.resolve()
    with pytest.raises(StoreError, match=r"audit.toml cannot be written .*nothing reported is lost"):
        write_as_run(config(out=tmp_path / "none", prompts="p.txt"), records)
