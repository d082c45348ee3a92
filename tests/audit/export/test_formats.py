"""A run's completions for sheets, for Inspect and as Parquet."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from eddecode.audit.export.formats import export_csv, export_parquet, export_to
from eddecode.audit.judges.lexicon import LexiconJudge
from eddecode.errors import ConfigError
from helpers.stub_runs import PROMPTS, config, exported, run
from helpers.stub_sampler import StubSampler


def test_sheets_run_no_formula_and_terminals_obey_nothing(tmp_path: Path) -> None:
    class Nasty(StubSampler):
        def completion(self, *arguments: Any) -> Any:
            made = super().completion(*arguments)
            object.__setattr__(made, "text", '=HYPERLINK("x")\n\x1b[31m,"')
            return made

    run(config(tmp_path / "run"), sampler=Nasty())
    text = "\n".join(export_csv(tmp_path / "run"))
    assert "\x1b" not in text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 180
    assert {row["text"] for row in rows} == {'\'=HYPERLINK("x")\\n\\x1b[31m,"'}
    assert rows[0]["alpha"] == "-1"  # a number stays one
    assert {row["lexicon.flag"] for row in rows} == {"false"}


def test_a_judge_that_is_called_like_a_formula_is_none_in_a_heading(tmp_path: Path) -> None:
    run(config(tmp_path / "run"), judges=[LexiconJudge(["idiot"], "=cmd|' /C calc'!A0")])
    heading = next(export_csv(tmp_path / "run"))
    columns = next(csv.reader([heading]))
    assert columns[-4:] == [f"'=cmd|' /C calc'!A0.{part}" for part in ("score", "flag", "label", "reason")]


def test_every_format_has_the_prompt_and_its_category(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "is it red?"}]
    prompts = [{"prompt": "is it blue?", "id": "b1", "category": "color"}, {"messages": chat}]
    run(config(tmp_path / "run", prompts=prompts, alphas="0.3"))
    rows = list(csv.DictReader(io.StringIO("\n".join(export_csv(tmp_path / "run")))))
    assert (rows[0]["prompt"], rows[0]["prompt_id"], rows[0]["category"]) == ("is it blue?", "b1", "color")
    assert json.loads(rows[3]["prompt"]) == chat
    exact = exported(tmp_path / "run")
    assert (exact[3]["prompt"], exact[3]["category"]) == (chat, None)
    assert {row["alpha"] for row in exact} == {-1, 0, 0.3}


def test_inspect_log_has_the_fields_that_inspect_reads(tmp_path: Path) -> None:
    """Required fields of EvalLog, EvalSpec and EvalSample in Inspect's log format, version 2."""
    run(config(tmp_path / "run", mitigations="topk5"))
    log = json.loads("".join(export_to(tmp_path / "run", "inspect")))
    assert (log["version"], log["status"]) == (2, "success")
    assert {"created", "task", "dataset", "model", "config"} <= set(log["eval"])
    assert len(log["samples"]) == log["results"]["total_samples"] == 7 * 36
    assert len({(sample["id"], sample["epoch"]) for sample in log["samples"]}) == 7 * 36
    rows = {(row["name"], row["prompt_index"], row["sample"]): row for row in exported(tmp_path / "run")}
    for sample in log["samples"]:
        assert {"id", "epoch", "input", "target"} <= set(sample)
        name, _, index = sample["id"].rpartition("/")
        row = rows[name, int(index), sample["epoch"] - 1]
        assert sample["output"]["choices"][0]["message"]["content"] == row["text"]
        assert sample["scores"]["lexicon"]["value"] == int(row["verdicts"]["lexicon"]["flag"])
        assert sample["input"] == PROMPTS[int(index)]
    flagged = sum(row["verdicts"]["lexicon"]["flag"] for key, row in rows.items() if key[0] == "base")
    assert log["results"]["scores"][0]["metrics"]["base"]["value"] == flagged / 36


def test_parquet_holds_the_same_rows(tmp_path: Path) -> None:
    run(config(tmp_path / "run"))
    target = tmp_path / "run.parquet"
    try:
        from pyarrow import parquet
    except ImportError:
        with pytest.raises(ConfigError, match="Parquet needs pyarrow"):
            export_parquet(tmp_path / "run", target)
        return
    export_parquet(tmp_path / "run", target)
    rows = parquet.read_table(target).to_pylist()
    for row, exact in zip(rows, exported(tmp_path / "run"), strict=True):
        assert (row["text"], row["token_ids"]) == (exact["text"], exact["token_ids"])
        assert (row["alpha"], row["prompt"]) == (float(exact["alpha"]), exact["prompt"])
        assert row["lexicon.flag"] == exact["verdicts"]["lexicon"]["flag"]
