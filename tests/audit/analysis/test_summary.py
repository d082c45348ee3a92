"""From a store to a finding: against plain arithmetic on its export, and its schema."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from eddecode.audit import AuditConfig, Summary, audit
from eddecode.audit.analysis.completion_table import QualityThresholds
from eddecode.audit.analysis.summarize import summarize
from eddecode.audit.export.formats import export_jsonl
from eddecode.audit.judges import Verdict
from eddecode.audit.judges.lexicon import LexiconJudge
from eddecode.audit.store.store import Store
from eddecode.cli.tables import comparison_tables
from eddecode.errors import StoreError
from helpers.columns import columns
from helpers.paths import ROOT
from helpers.stub_sampler import StubSampler

PROMPTS = [{"prompt": f"prompt {i}", "category": ("tea", "pots")[i % 2]} for i in range(30)]


class Other:
    """A second judge of harm, which differs from the word list on every seventh prompt."""

    name, role, identity = "other", "harm", "1"

    def __call__(self, cases: Any) -> list[Verdict]:
        flags = [("IDIOT" in c.completion) != (int(c.prompt.split()[1]) % 7 == 0) for c in cases]
        return [Verdict(float(flag), flag, "x") for flag in flags]


def finished(out: Path, **changes: Any) -> Summary:
    wanted = {"alphas": "0.3,1", "samples": 4, "prompts": PROMPTS, **changes}
    judges = [LexiconJudge(["idiot"]), Other()]
    return audit(AuditConfig(base="b", aligned="a", out=out, **wanted), sampler=StubSampler(), judges=judges)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Summary, list[dict[str, Any]]]:
    """A run with a mitigation, and its export."""
    out = tmp_path_factory.mktemp("run")
    summary = finished(out, mitigations="topk5")
    return summary, [json.loads(line) for line in export_jsonl(out)]


def of(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["name"] == name]


def flagged(row: dict[str, Any]) -> bool:
    return bool(row["verdicts"]["lexicon"]["flag"])


def test_figures_are_those_of_the_export(run: tuple[Summary, list[dict[str, Any]]]) -> None:
    summary, rows = run
    assert [entry.name for entry in summary.conditions] == [
        *("aligned", "base", "ed@0.3", "ed@1", "ed@0.3+topk5", "ed@1+topk5")
    ]
    for entry in summary.conditions:
        mine = of(rows, entry.name)
        assert entry.rates["lexicon"].rate == pytest.approx(statistics.mean(map(flagged, mine)))
        for name, rate in entry.categories.items():
            inside = [r for r in mine if ("tea", "pots")[r["prompt_index"] % 2] == name]
            assert rate.rate == pytest.approx(statistics.mean(map(flagged, inside)))
            assert rate.prompts == 15
        perplexities = [math.exp(-r["base_logprob"] / len(r["token_ids"])) for r in mine]
        assert entry.utility.perplexity == pytest.approx(statistics.geometric_mean(perplexities), rel=1e-3)
    assert list(summary.named("base").categories) == ["pots", "tea"]


def test_the_headline_is_on_the_same_prompts(run: tuple[Summary, list[dict[str, Any]]]) -> None:
    summary, rows = run
    found = summary.headline
    assert found.alpha == "1"  # the stub is ruder the higher α is, and no less intact
    base, ed = (statistics.mean(map(flagged, of(rows, name))) for name in ("base", "ed@1"))
    assert summary.selection.picked == {"1": 1.0}  # a clear case: every half picks it
    assert found.harm.value == pytest.approx(ed)
    assert found.reversal.value == pytest.approx(ed - base)
    assert found.reversal_index.value == pytest.approx((ed - base) / (1 - base))
    assert found.reversal.low <= found.reversal.value <= found.reversal.high


def test_intact_is_within_what_the_base_does(run: tuple[Summary, list[dict[str, Any]]]) -> None:
    """The definition by hand: nearest-rank quantiles of the base's own completions."""
    summary, rows = run
    base = of(rows, "base")

    def limits(name: str) -> float:
        values = sorted(row[name] for row in base if row[name] is not None)
        return values[math.ceil(0.99 * (len(values) - 1))] if values else math.inf

    least = min(sorted(row["length"] for row in base)[math.floor(0.01 * (len(base) - 1))], 8)
    most, repeats = limits("perplexity"), limits("repetition")
    for entry in summary.conditions:
        kept = [
            not r["empty"]
            and r["length"] >= least
            and r["perplexity"] is not None
            and r["perplexity"] <= most * (1 + 1e-4)
            and (r["repetition"] or 0) <= repeats
            for r in of(rows, entry.name)
        ]
        assert entry.utility.rate.rate == pytest.approx(statistics.mean(kept))
        assert entry.utility.kind == "composite"
    assert summary.condition("base").utility.loss is None


def test_babble_is_not_intact() -> None:
    """Long repetition, an improbable completion, an empty one and a clipped one; and one like the base's own."""
    base = columns(length=[20.0] * 100, perplexity=[5.0] * 100, repetition=[0.1] * 100)
    tried = columns(
        length=[20.0, 20, 20, 0, 2],
        perplexity=[5.0, 5, 400, 5, 5],
        repetition=[0.1, 0.9, 0.1, math.nan, math.nan],
        empty=[0.0, 0, 0, 1, 0],
    )
    assert QualityThresholds.of(base).holds(tried).tolist() == [True, False, False, False, False]
    terse = columns(length=[2.0] * 100, perplexity=[5.0] * 100, repetition=[math.nan] * 100)
    assert QualityThresholds.of(terse).holds(tried).tolist()[4] is True  # a base that is terse itself


def test_schema(run: tuple[Summary, list[dict[str, Any]]]) -> None:
    """What docs/statistics.md names is there, and it is JSON without NaN."""
    data = json.loads((run[0].folder / "summary.json").read_text())
    text = (ROOT / "docs" / "statistics.md").read_text()
    schema = text[text.index("## summary.json") : text.index("## The intervals")]
    named = {part for name in re.findall(r"`([a-z_0-9.]+)`", schema) for part in name.split(".")}

    def keys(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for key, entry in value.items():
                yield key
                yield from keys(entry)
        elif isinstance(value, list):
            for entry in value:
                yield from keys(entry)

    free = {"identity", "picked", "rates", "categories", "finish_reasons"}
    for part in (
        data,
        data["headline"],
        data["selection"],
        data["tests"][0],
        data["mitigations"][0],
        data["judge_free"],
    ):
        assert set(part) <= named, set(part) - named
    entry = data["conditions"][0]
    assert set(entry) | set(entry["utility"]) <= named
    assert free <= named
    assert data["schema"] == "eddecode.summary/3"
    assert set(keys(data["agreement"])) <= named


def test_what_is_written_is_read_back(run: tuple[Summary, list[dict[str, Any]]], tmp_path: Path) -> None:
    """As the same type with the same content, and written again as the same bytes."""
    summary = run[0]
    text = (summary.folder / "summary.json").read_bytes()
    again = Summary.read(summary.folder)
    assert again == summary
    assert again.mitigations[1].reversal == summary.mitigations[1].reversal
    copy = tmp_path / "summary.json"
    copy.write_bytes(text)
    assert Summary.read(copy).write().read_bytes() == text
    assert (
        Summary.from_json(text.replace(b'"digest"', b'"later_key": 1, "digest"', 1)).digest == summary.digest
    )


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("prompts",), "many", r"prompts is 'many'; expected an integer"),
        (
            ("conditions", 1, "rates", "lexicon", "rate"),
            "high",
            r"conditions\[1\].rates.lexicon.rate is 'high'; expected",
        ),
        (("conditions", 0, "alpha"), "one", r"conditions\[0\].alpha is 'one'"),
        (("headline", "reversal"), 0.3, r"headline.reversal is 0.3; expected"),
        (("judges",), {}, r"judges is \{\}; expected a valid tuple"),
        (("tests", 0, "difference"), None, r"tests\[0\].difference is None"),
    ],
)
def test_a_damaged_summary_names_the_field(
    run: tuple[Summary, list[dict[str, Any]]], path: tuple[Any, ...], value: Any, message: str
) -> None:
    data: Any = json.loads((run[0].folder / "summary.json").read_text())
    part = data
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    with pytest.raises(
        StoreError, match=f"summary.json is damaged: {message}.*; run the same eddecode audit command"
    ):
        Summary.from_json(json.dumps(data))


def test_a_summary_of_schema_1(run: tuple[Summary, list[dict[str, Any]]]) -> None:
    """It had neither names nor headline; its conditions are found all the same."""
    data = json.loads((run[0].folder / "summary.json").read_text())
    kept = ("condition", "alpha", "completions", "rates", "harm_and_valid", "mean_tokens", "mean_implied_reward",
            "finish_reasons")  # fmt: skip
    old = {
        key: data[key]
        for key in ("digest", "identity", "prompts", "distinct_prompts", "judges", "harm_judge", "notes")
    }
    conditions = [{key: entry[key] for key in kept} for entry in data["conditions"][:4]]
    text = json.dumps({"schema": "eddecode.summary/1", **old, "conditions": conditions})
    found = Summary.from_json(text)
    assert [(entry.name, entry.label) for entry in found.line] == [
        *(("aligned", "aligned"), ("base", "base"), ("ed@0.3", "ED α=0.3"), ("ed@1", "ED α=1"))
    ]
    assert found.harm_rate("ed", "1") == run[0].harm_rate("ed", "1")
    assert not found.has_headline
    assert found.to_dict()["schema"] == "eddecode.summary/3"


def test_a_summary_of_schema_2(run: tuple[Summary, list[dict[str, Any]]]) -> None:
    """It had no state of each α, and intervals by a bootstrap; a field that is gone is not read."""
    data = json.loads((run[0].folder / "summary.json").read_text())
    for key in ("candidates", "corrected_reversal"):
        del data["headline"][key]
    data["selection"]["bootstrap_optimism"] = 0.01
    data["headline"]["reversal"]["method"] = "paired-bootstrap"
    found = Summary.from_json(json.dumps({**data, "schema": "eddecode.summary/2"}))
    assert found.headline.candidates == ()
    assert found.headline.reversal.method == "paired-bootstrap"
    assert found.headline.reversal.value == run[0].headline.reversal.value


def test_agreement_is_of_judges_of_one_role(run: tuple[Summary, list[dict[str, Any]]]) -> None:
    summary, rows = run
    (found,) = summary.agreement
    same = statistics.mean(flagged(r) == bool(r["verdicts"]["other"]["flag"]) for r in rows)
    assert (found.first, found.second, found.n) == ("lexicon", "other", len(rows))
    assert found.agreement == pytest.approx(same)


def test_human_labels_correct_the_rates(run: tuple[Summary, list[dict[str, Any]]]) -> None:
    """With labels that are the lexicon's own flags it is not corrected, and what corrects `other` holds the truth."""
    summary, rows = run
    labels = {(r["name"], r["prompt_index"], r["sample"]): flagged(r) for r in rows if r["sample"] < 2}
    with Store.read(summary.folder) as store:
        again = summarize(store, store.conditions(), store.judges(), labels)
        bad = summarize(store, store.conditions(), store.judges(), dict.fromkeys(labels, True))
    assert not again.named(
        "aligned"
    ).corrected  # nothing there is harmful, so that no sensitivity can be measured
    for entry in again.conditions[1:]:
        assert entry.corrected["lexicon"].rate == pytest.approx(entry.rates["lexicon"].rate)
        other = entry.corrected["other"]
        assert other.low <= entry.rates["lexicon"].rate <= other.high
    assert "judge lexicon under aligned is not corrected: none of the 60 completions" in bad.notes[0]
    found, plain = again.headline.corrected_reversal, again.headline.reversal
    assert found.value == pytest.approx(again.harm_rate("ed", "1").rate - again.harm_rate("base").rate)
    assert found.low < plain.low  # the errors of the judge are uncertain too
    assert found.high > plain.high
    assert (found.method, summary.headline.corrected_reversal) == ("best-admissible", None)


def test_labels_of_one_condition_correct_no_other(run: tuple[Summary, list[dict[str, Any]]]) -> None:
    """The judge's errors on base are not taken for those on ED; a reversal needs labels of both."""
    summary, rows = run
    labels = {(r["name"], r["prompt_index"], r["sample"]): flagged(r) for r in of(rows, "base")}
    with Store.read(summary.folder) as store:
        again = summarize(store, store.conditions(), store.judges(), labels)
        both = {(r["name"], r["prompt_index"], r["sample"]): flagged(r) for r in of(rows, "ed@1")} | labels
        some = summarize(store, store.conditions(), store.judges(), both)
    assert [bool(entry.corrected) for entry in again.line] == [False, True, False, False]
    assert again.headline.corrected_reversal is None
    found = some.headline.corrected_reversal
    assert found.value is not None
    assert found.high == 1  # α = 0.3 is within the bound and has no labels, so that it may be anything


def test_the_tables_beside_fit(run: tuple[Summary, list[dict[str, Any]]], tmp_path: Path) -> None:
    console = Console(width=80, record=True, file=(tmp_path / "table").open("w"))
    for table in comparison_tables(run[0]):
        console.print(table)
    text = console.export_text()
    assert "topk5" in text
    assert max(map(cell_len, text.splitlines())) <= 80


def test_dropped_and_repeated_are_said(tmp_path: Path) -> None:
    summary = finished(tmp_path, min_tokens=3, prompts=[*PROMPTS, PROMPTS[0]])
    assert summary.distinct_prompts == 30
    assert sum(entry.dropped for entry in summary.conditions) > 0
    assert any("1 of 31 prompts repeat an earlier one" in note for note in summary.notes)
    assert any("were shorter than the run's minimum" in note for note in summary.notes)
    for entry in summary.conditions:
        assert (
            entry.utility.rate.total == 31 * 4
        )  # what harm leaves out is lost utility, and not left out of it
        assert entry.rates["lexicon"].total == entry.completions == 31 * 4 - entry.dropped
        assert entry.utility.rate.flagged <= entry.completions
