"""What a run keeps through kills, full disks, damage and second thoughts; judges, exports and other models."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import random
import signal
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from stub_sampler import StubSampler
from test_audit_run import PROMPTS, config, exported, judges, run

from eddecode.audit import AuditConfig, audit
from eddecode.audit.export import export_csv, export_jsonl, export_parquet, export_to
from eddecode.audit.judges import Case, Verdict
from eddecode.audit.judges.lexicon import LexiconJudge
from eddecode.audit.run import Progress, rejudge
from eddecode.audit.store import Store
from eddecode.audit.utility import measure
from eddecode.errors import ConfigError, JudgeError, PromptError, StoreError

KILLS = 20


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are drawn after everything is on disk, take longest, and have tests of their own."""
    monkeypatch.setattr("eddecode.audit.run.write_curve", lambda *_: None)


def tables(folder: Path) -> tuple[list[str], str]:
    """Everything that a run says of its completions, and its summary."""
    return list(export_jsonl(folder)), (folder / "summary.json").read_text()


# kills


def forked(folder: Path, target: int | None) -> tuple[int, list[int]]:
    """Run the audit in a child that kills itself with SIGKILL at its target-th call; (exit status, event counts)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # nothing may leave this branch: it is a copy of the whole test process
        events = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal events
            events += 1
            if events == target:
                os.kill(os.getpid(), signal.SIGKILL)

        def note(progress: Progress) -> None:
            os.write(writer, f"{events}\n".encode())

        try:
            sys.setprofile(count)
            run(config(folder), on_progress=note)
            os.write(writer, f"{events}\n".encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as said:
        counts = [int(line) for line in said.read().split()]
    return os.waitpid(child, 0)[1], counts


def test_killed_twenty_times_at_random_moments(tmp_path: Path) -> None:
    """Each kill is at a random call of the program, from its first to its last; each rerun ends in the same bytes.

    The moments are drawn over calls and not over time, so that a busy machine changes nothing.
    """
    run(config(tmp_path / "alone"))
    wanted = tables(tmp_path / "alone")
    status, counts = forked(tmp_path / "counted", None)
    assert status == 0
    judged, last = counts[-2], counts[-1]  # calls until all is judged, and until the end
    rng = random.Random(4)
    moments = [rng.randrange(1, judged) for _ in range(KILLS - 4)] + [
        rng.randrange(judged, last) for _ in range(4)
    ]
    on_disk = []
    for number, moment in enumerate(moments):
        folder = tmp_path / f"killed-{number}"
        status, said = forked(folder, moment)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, (moment, counts)
        if (folder / "run.sqlite").is_file() and said:
            with Store.read(folder) as store:
                on_disk.append(store.count())
        run(config(folder))
        assert tables(folder) == wanted, moment
    assert len(set(on_disk)) >= 3  # they were spread over the run, not all before or after it


# faults


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite says that the disk is full when a page limit is reached: the same error at the same place."""
    from eddecode.audit import schema, store

    reported: list[int] = []

    def prepare(folder: Path, database: sqlite3.Connection) -> None:
        schema.prepare(folder, database)
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        database.execute(f"PRAGMA max_page_count = {pages + 3}")

    with monkeypatch.context() as patch:
        patch.setattr(store, "prepare", prepare)
        with pytest.raises(StoreError, match=r"full; free some space .* nothing that was reported is lost"):
            run(config(tmp_path / "full"), on_progress=lambda p: reported.append(p.done))
    with Store.read(tmp_path / "full") as read:
        assert reported[-1] <= read.count() < 180
    run(config(tmp_path / "full"))
    run(config(tmp_path / "alone"))
    assert tables(tmp_path / "full") == tables(tmp_path / "alone")


def test_a_damaged_file_is_left_as_it_is(tmp_path: Path) -> None:
    run(config(tmp_path / "run"))
    path = tmp_path / "run" / "run.sqlite"
    content = bytearray(path.read_bytes())
    content[4096:] = bytes(random.Random(0).randbytes(len(content) - 4096))
    path.write_bytes(content)
    with pytest.raises(StoreError, match="the file is damaged: it was left as it is"):
        run(config(tmp_path / "run"))
    with pytest.raises(StoreError, match="the file is damaged"):
        list(export_jsonl(tmp_path / "run"))
    assert path.read_bytes() == bytes(content)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config(tmp_path / "run"))
    before = (tmp_path / "run" / "run.sqlite").read_bytes()
    opened = Path.open

    def refuse(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode not in {"r", "rb"}:
            raise PermissionError(13, "Permission denied")
        return opened(path, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(
            StoreError, match=r"cannot be written \(Permission denied\); choose another with --out"
        ):
            run(config(tmp_path / "run"))
        with pytest.raises(StoreError, match="the run is untouched"):
            list(export_to(tmp_path / "run", "jsonl", tmp_path / "x.jsonl"))
    assert (tmp_path / "run" / "run.sqlite").read_bytes() == before
    monkeypatch.setattr(os, "access", lambda *_: False)  # and one that can only be read can be read
    assert len(list(export_jsonl(tmp_path / "run"))) == 180


def test_an_older_run_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    run(config(tmp_path / "run"))
    with sqlite3.connect(tmp_path / "run" / "run.sqlite") as database:
        database.execute("PRAGMA user_version = 1")
    with pytest.raises(StoreError, match=r"is of an older eddecode: .* version 1, and this eddecode reads 2"):
        run(config(tmp_path / "run"))


# without text


def test_no_text_keeps_digests_and_verdicts(tmp_path: Path) -> None:
    whole = run(config(tmp_path / "whole"))
    bare = run(config(tmp_path / "bare", keep_text=False))
    assert [entry.rates for entry in bare.conditions] == [entry.rates for entry in whole.conditions]
    for kept, left in zip(exported(tmp_path / "whole"), exported(tmp_path / "bare"), strict=True):
        assert left["text"] is left["token_ids"] is None
        assert left["text_digest"] == kept["text_digest"]
        assert kept["text_digest"] == hashlib.blake2b(kept["text"].encode(), digest_size=16).hexdigest()
        assert left["verdicts"]["lexicon"] == {**kept["verdicts"]["lexicon"], "reason": ""}
        assert [left[name] for name in ("length", "perplexity")] == [
            kept[name] for name in ("length", "perplexity")
        ]
    content = b"".join(path.read_bytes() for path in (tmp_path / "bare").iterdir())
    assert b"glassy" not in content
    assert b"IDIOT" not in content
    with pytest.raises(ConfigError, match="keeps no completion text"):
        rejudge(tmp_path / "bare", [LexiconJudge(["fool"])])


def test_no_text_stopped_and_resumed_is_judged_whole(tmp_path: Path) -> None:
    class Stopped(StubSampler):
        def as_completed(self, prompts: Any, params: Any) -> Iterator[Any]:
            for count, completion in enumerate(super().as_completed(prompts, params)):
                if count == 100:
                    raise KeyboardInterrupt
                yield completion

    with pytest.raises(KeyboardInterrupt):
        run(config(tmp_path / "run", keep_text=False), sampler=Stopped())
    rows = exported(tmp_path / "run")
    assert len(rows) == 100
    assert all(row["verdicts"] for row in rows)
    run(config(tmp_path / "run", keep_text=False))
    run(config(tmp_path / "alone", keep_text=False))
    assert tables(tmp_path / "run") == tables(tmp_path / "alone")


# judges again


class Refusing:
    """A judge of refusals that counts its calls."""

    name, role, identity = "refusal", "refusal", "1"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        self.seen += len(cases)
        return [Verdict(0.0, False, "not-refused") for _ in cases]


def test_judging_again_adds_and_never_overwrites(tmp_path: Path) -> None:
    first = run(config(tmp_path / "run"))
    before = {
        row["name"] + str(row["prompt_index"]) + str(row["sample"]): row for row in exported(tmp_path / "run")
    }
    refusing = Refusing()
    both = rejudge(tmp_path / "run", [refusing])
    assert [judge["name"] for judge in both.judges] == ["lexicon", "refusal"]
    assert both.harm_rate("base") == first.harm_rate("base")
    assert both.validity_judge is None
    assert refusing.seen == 180
    rejudge(tmp_path / "run", [refusing])
    assert refusing.seen == 180  # nothing was left to judge
    changed = LexiconJudge(["glassy"])
    after = rejudge(tmp_path / "run", [changed])
    assert after.harm_rate("base").flagged == 36 - first.harm_rate("base").flagged
    former = f"lexicon#{judges()[0].identity}"
    for row in exported(tmp_path / "run"):
        old = before[row["name"] + str(row["prompt_index"]) + str(row["sample"])]["verdicts"]["lexicon"]
        assert row["verdicts"][former] == old
        assert row["verdicts"]["lexicon"]["flag"] != old["flag"]
    again = run(config(tmp_path / "run"))  # the audit's own judge sits again: its verdicts are still there
    assert again.harm_rate("base") == first.harm_rate("base")


def test_what_cannot_be_judged_again(tmp_path: Path) -> None:
    class Stopped(StubSampler):
        def as_completed(self, prompts: Any, params: Any) -> Iterator[Any]:
            yield next(iter(super().as_completed(prompts, params)))
            raise KeyboardInterrupt

    with pytest.raises(StoreError, match="there is no run in"):
        rejudge(tmp_path / "none", [Refusing()])
    with pytest.raises(KeyboardInterrupt):
        run(config(tmp_path / "run"), sampler=Stopped())
    with pytest.raises(ConfigError, match="is not finished: 1 of 180 completions are there"):
        rejudge(tmp_path / "run", [Refusing()])
    run(config(tmp_path / "run"))
    with pytest.raises(JudgeError, match="expected each name once"):
        rejudge(tmp_path / "run", [Refusing(), Refusing()])
    with pytest.raises(JudgeError, match="the name human is for labels of people"):
        rejudge(tmp_path / "run", [LexiconJudge(["x"], name="human")])

    class Short:
        name, role, identity = "short", "harm", "1"

        def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
            return [Verdict(2.0, True, "x")]

    with pytest.raises(JudgeError, match="judge short gave 1 verdicts on 180 completions"):
        rejudge(tmp_path / "run", [Short()])


def test_people_correct_the_rates(tmp_path: Path) -> None:
    """Labels that the judge always meets leave its rates where they are; they stay in the run."""
    run(config(tmp_path / "run"))
    rows = exported(tmp_path / "run")
    labels = tmp_path / "labels.csv"
    named = [(row["name"] if row["sample"] else row["condition"], row) for row in rows]
    lines = [
        f"{name},{r['alpha']},{r['prompt_index']},{r['sample']},{'IDIOT' in r['text']}" for name, r in named
    ]
    labels.write_text("condition,alpha,prompt_index,sample,harmful\n" + "\n".join(lines[::2]))
    summary = rejudge(tmp_path / "run", labels=labels)
    corrected = summary.to_dict()["conditions"][1]["corrected"]["lexicon"]
    assert corrected["rate"] == pytest.approx(summary.harm_rate("base").rate)
    with Store.read(tmp_path / "run") as store:
        assert len(store.labels()) == 90
        assert [judge.name for judge in store.judges()] == ["lexicon"]
    assert run(config(tmp_path / "run")).to_dict() == summary.to_dict()
    labels.write_text("condition,alpha,prompt_index,sample,harmful\nbase,0,99,0,yes")
    with pytest.raises(
        StoreError, match="a label is of condition base, prompt 99, sample 0, and the run has no such"
    ):
        rejudge(tmp_path / "run", labels=labels)


# what is kept beside


def test_figures_of_completions_and_short_ones(tmp_path: Path) -> None:
    summary = run(config(tmp_path / "run", min_tokens=4))
    rows = exported(tmp_path / "run")
    assert len(rows) == 180
    for row in rows:
        said = measure(row["text"], row["token_ids"], row["finish_reason"], row["base_logprob"])
        assert (row["length"], row["perplexity"]) == (said.length, said.perplexity)
        assert (row["distinct_2"], row["empty"]) == (said.distinct_2, said.empty)
    long = [row for row in rows if row["name"] == "base" and row["length"] >= 4]
    assert 0 < len(long) < 36
    rate = summary.harm_rate("base")
    assert (rate.total, rate.flagged) == (len(long), sum("IDIOT" in row["text"] for row in long))
    with Store.read(tmp_path / "run") as store:
        assert store.facts("base")["dropped"] == 36 - len(long)


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
        assert row["lexicon.flag"] == exact["verdicts"]["lexicon"]["flag"]


# conditions


def test_every_condition_asks_what_it_says(tmp_path: Path) -> None:
    class Watching(StubSampler):
        def as_completed(self, prompts: Any, params: Any) -> Iterator[Any]:
            self.asked = [(prompt, p.alpha, p.access) for prompt, p in zip(prompts, params, strict=True)]
            return super().as_completed(prompts, params)

    samplers = {name: Watching() for name in ("", "finetuned", "ensemble")}
    settings = config(
        tmp_path / "run",
        prompts=["ask"],
        alphas="1",
        mitigations="topk5",
        systems={"s": "Be rude."},
        transforms=[{"name": "t", "prefix": "x "}],
        finetuned="org/tuned",
        ensemble=["org/other"],
    )
    run(settings, sampler=samplers)
    asked, chat = (
        samplers[""].asked,
        [{"role": "system", "content": "Be rude."}, {"role": "user", "content": "ask"}],
    )
    assert [(prompt, alpha) for prompt, alpha, _ in asked] == [
        *(("ask", -1.0), ("ask", 0.0), ("ask", 1.0)),
        *((chat, -1.0), (chat, 0.0), (chat, 1.0)),
        *(("x ask", -1.0), ("x ask", 0.0), ("x ask", 1.0)),
        ("ask", 1.0),
    ]
    with Store.read(tmp_path / "run") as store:
        assert store.note("transforms") == [{"name": "t", "prefix": "x "}]
        assert store.note("systems") == {"s": "Be rude."}
    assert [access.top_k if access else None for _, _, access in asked] == [None] * 9 + [5]
    assert [(p, a) for p, a, _ in samplers["finetuned"].asked] == [("ask", -1.0)]
    assert [(p, a) for p, a, _ in samplers["ensemble"].asked] == [("ask", 1.0)]
    with pytest.raises(ConfigError, match="a sampler was given for the pair and none for the finetuned"):
        run(config(tmp_path / "other", finetuned="org/tuned"))
    with pytest.raises(
        ConfigError, match=r"mitigations: \['?topk5.* in the run|mitigations: topk5 in the run"
    ):
        run(config(tmp_path / "run", prompts=["ask"], alphas="1"))


def test_an_error_names_the_prompt_of_the_file_and_the_condition(tmp_path: Path) -> None:
    """A sampler counts requests, of which there are many per prompt."""

    class Refusing(StubSampler):
        def as_completed(self, prompts: Any, params: Any) -> Iterator[Any]:
            raise PromptError("prompt 13: too long")

    message = r"^prompt 2 under condition ed@0.3: too long$"  # five conditions a prompt, of which ed@0.3 is the fourth
    with pytest.raises(PromptError, match=message):
        run(config(tmp_path / "run"), sampler=Refusing())


def test_other_models_on_real_checkpoints(pair_folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Where the answer is known: the aligned model stands for the fine-tuned one, and twice in the ensemble."""
    base, aligned = pair_folders
    settings = AuditConfig(
        base=base,
        aligned=aligned,
        prompts=["Where is my order?", "Hello"],
        alphas="0.5",
        samples=2,
        max_new_tokens=6,
        dtype="float32",
        out=tmp_path / "run",
        finetuned=aligned,
        ensemble=[aligned],
        mitigations=["first999", "topk1"],
    )
    audit(settings)
    said: dict[str, list[Any]] = {}
    for row in exported(tmp_path / "run"):
        said.setdefault(row["name"], []).append((row["token_ids"], row["text"]))
    assert said["finetuned"] == said["aligned"]
    assert said["ensemble@0.5"] == said["ed@0.5"] == said["ed@0.5+first999"]
    assert said["ed@0.5+topk1"] != said["ed@0.5"]
    with Store.read(tmp_path / "run") as store:
        rewards = [sum(values) for values in store.rewards("ed@0.5")]
        kept = [row["implied_reward"] for row in store.rows(["ed@0.5"])]
        assert rewards == pytest.approx(kept, abs=1e-3)
