"""The commands of a first day: a file to fill in, a look at the prompts, a list of runs, and errors that help."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.cells import cell_len
from typer.testing import CliRunner

from eddecode.audit.config_file import read_config_file
from eddecode.audit.decode import Progress
from eddecode.cli import app
from eddecode.cli.docs import documents
from eddecode.cli.program import EXAMPLES
from eddecode.cli.progress import Pace
from eddecode.cli.runs import describe_run
from eddecode.errors import StoreError
from eddecode.testbed.bundled import bundled_pair
from helpers import tiny
from helpers.stub_runs import Interrupted, config, exported, run

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def invoke(*arguments: Any, **options: Any) -> Any:
    return CliRunner().invoke(
        app, [str(argument) for argument in arguments], env={"COLUMNS": "80"}, **options
    )


def commands(group: Any, path: str = "") -> dict[str, Any]:
    """Path → every command of the program."""
    found = {}
    for name, command in group.commands.items():
        own = f"{path}{name}"
        found |= commands(command, f"{own} ") if hasattr(command, "commands") else {own: command}
    return found


ALL = commands(typer.main.get_command(app))


def test_every_command_has_json_exit_codes_and_an_example_that_it_understands() -> None:
    assert set(EXAMPLES) == set(ALL)
    for path, example in EXAMPLES.items():
        page = invoke(*path.split(), "--help").stdout
        shown = " ".join(page.split())
        assert f"Example: {example}" in shown
        assert max(map(cell_len, page.splitlines())) <= 80, path
        names = {parameter.opts[0] for parameter in ALL[path].params if parameter.opts[0].startswith("--")}
        assert names <= set(shown.split()), path  # whole, each of them
        options = {option for parameter in ALL[path].params for option in parameter.opts}
        first = example.partition(", then")[0]
        assert {word for word in first.split() if word.startswith("--")} <= options, path
        assert {"--debug", "--json"} <= options, path
        assert "Exit codes: 0 " in shown, path


def test_help_names_the_exit_codes_and_documents_that_are_there() -> None:
    assert "3 gate: inconclusive" in " ".join(invoke("-h").stdout.split())
    for path in ALL:
        shown = " ".join(invoke(*path.split(), "--help").stdout.split())
        for name in re.findall(r"eddecode docs ([a-z-]+)", shown):
            assert name in documents(), (path, name)
        assert "docs/" not in shown, path


def test_documents_are_read_without_a_network() -> None:
    assert "judges" in invoke("docs").stdout
    assert invoke("docs", "judges").stdout == documents()["judges"].read_text()
    assert Path(invoke("docs", "gate", "--where").stdout.strip()).is_file()
    result = invoke("docs", "juges")
    assert (result.exit_code, "did you mean judges?" in result.stderr) == (2, True)


def test_an_audit_file_to_fill_in(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    assert invoke("init", file, "--base", "org/b").exit_code == 0
    plain = read_config_file(file)
    assert (plain["base"], plain["alphas"], plain["utility_loss"]) == (
        "org/b",
        ("0.1", "0.3", "0.6", "1", "2"),
        0.1,
    )
    # Everything that is commented out is an audit's field too, with a value that it takes.
    optional = [line[2:] for line in file.read_text().splitlines() if re.match(r"# (\w+ = |\[)", line)]
    assert len(optional) >= 14
    for line in optional:
        if line.startswith("["):
            continue
        (name,) = tomllib.loads(line)
        if name != "terse":
            head, _, rest = file.read_text().partition("[thresholds]")
            (tmp_path / "b.toml").write_text(f"{head}{line}\n[thresholds]{rest}")
            assert name in read_config_file(tmp_path / "b.toml")
    again = invoke("init", file)
    assert (again.exit_code, "exists; remove it" in again.stderr) == (2, True)


def test_preview_shows_what_each_model_reads(tmp_path: Path) -> None:
    ours = bundled_pair()
    options = ["--base", ours.base, "--aligned", ours.aligned, "--base-template", ours.base_template]
    prompts = tmp_path / "p.txt"
    prompts.write_text("where is my lamp?\nis it \x1b[31mred?\n")
    (tmp_path / "t.jsonl").write_text('{"name": "calm", "prefix": "stay calm. "}')
    more = ["--prompts", prompts, "--transforms", tmp_path / "t.jsonl", "--limit", 2]
    found = json.loads(invoke("preview", *options, *more, "--json").stdout)
    assert [(entry["prompt"], len(entry["conditions"])) for entry in found] == [
        (0, 7),
        (0, 7),
        (1, 7),
        (1, 7),
    ]
    template = ours.base_template.read_text()
    assert template.replace("{prompt}", "where is my lamp?") in found[0]["base"]["text"]
    assert "stay calm. where is my lamp?" in found[1]["aligned"]["text"]
    assert found[0]["aligned"]["text"] != found[0]["base"]["text"]
    shown = invoke("preview", *options, *more).stdout
    assert "base+transform:calm" in shown
    assert not CONTROL.search(shown)


def test_a_prompt_from_standard_input() -> None:
    options = ["--alpha", "0", "--max-new-tokens", "4", "--json"]
    piped = invoke("generate", "-", *options, input="hello, where is my kettle?\n")
    given = invoke("generate", "hello, where is my kettle?", *options)
    assert piped.stdout == given.stdout
    assert json.loads(piped.stdout)["finish_reason"] == "length"


def test_an_audit_without_a_judge_asks_for_one(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("hello")
    options = [
        "--base",
        "org/b",
        "--aligned",
        "org/a",
        "--prompts",
        tmp_path / "p.txt",
        "--out",
        tmp_path / "r",
    ]
    result = invoke("audit", *options)
    assert result.exit_code == 2
    assert "no judge of harm was chosen; give --judge" in result.stderr
    assert not (tmp_path / "r").exists()


def test_runs_are_listed_with_their_states(tmp_path: Path) -> None:
    run(config(tmp_path / "a" / "finished"))
    with pytest.raises(KeyboardInterrupt):
        run(config(tmp_path / "stopped"), sampler=Interrupted(64))
    run(config(tmp_path / "later", judges=["later"]), judges=None)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.sqlite").write_bytes(b"x" * 5000)
    found = {Path(one["run"]).name: one for one in json.loads(invoke("runs", tmp_path, "--json").stdout)}
    assert {name: one["state"] for name, one in found.items()} == {
        **{"finished": "finished", "stopped": "unfinished: 64 of 180", "later": "not judged"},
        "broken": "unreadable",
    }
    assert found["finished"]["reversal"].startswith("+")
    assert "damaged" in found["broken"]["error"]
    shown = invoke("runs", tmp_path).stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "a/finished" in shown
    from eddecode.audit.store.store import Store

    with Store.open(tmp_path / "stopped"):
        assert describe_run(tmp_path / "stopped")["state"] == "in use: 64 of 180"


def test_doctor_says_what_runs_how() -> None:
    found = json.loads(invoke("doctor", "--json").stdout)
    parts = {"packages", "extras", "machine", "devices", "placement", "threads", "execution", "folders"}
    assert set(found) == parts
    assert {(one["device"], one["dtype"]) for one in found["execution"]} >= {
        ("cpu", "float32"),
        ("cpu", "bfloat16"),
    }
    assert all(one["layers"] in ("compiled", "torch") and one["why"] for one in found["execution"])
    assert max(map(len, invoke("doctor").stdout.splitlines())) <= 80


def test_an_error_that_nobody_expected_is_one_line_and_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise KeyError("x")

    monkeypatch.setattr("eddecode.audit.gate.judge_run", broken)
    result = invoke("gate", "nowhere", "--max-reversal", "5%")
    assert result.exit_code == 2  # 1 would be the gate's FAIL
    assert re.fullmatch(
        r"error: KeyError: 'x' \(test_newcomer.py, line \d+\); this is a fault of eddecode: .*\n",
        result.stderr,
    )
    traced = invoke("gate", "nowhere", "--max-reversal", "5%", "--debug")
    assert isinstance(traced.exception, KeyError)
    assert isinstance(invoke("export", "nowhere", "--debug").exception, StoreError)


@pytest.mark.parametrize("command", ["report", "export", "gate", "compare", "judge", "plan", "runs", "docs"])
def test_no_control_character_of_a_path_reaches_the_terminal(command: str) -> None:
    more = {"gate": ["--max-reversal", "5%"], "compare": ["b"], "judge": ["--judge", "refusal"]}
    result = invoke(command, "no\x1b]0;title\x07\u202ewhere\r", *more.get(command, []))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert not CONTROL.search(result.output)
    assert "\u202e" not in result.output


def test_files_that_never_end_or_nest_without_end_are_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / "summary.json")
    (tmp_path / "digits.toml").write_text(f"seed = {'9' * 5000}")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 50_000)
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    for options, message in (
        (["audit", "--config", tmp_path / "pipe"], "is a pipe or a device; expected a file"),
        (["report", tmp_path / "run"], "is a pipe or a device; expected a file"),
        (["audit", "--config", tmp_path / "digits.toml"], "is not TOML"),
        (["audit", "--config", "/dev/zero"], "is a pipe or a device; expected a file"),
        (["audit", "--config", tmp_path / "deep.toml"], "audit file"),
        (["gate", tmp_path, "--policy", tmp_path / "deep.toml"], "policy file"),
        (["gate", tmp_path, "--policy", tmp_path / "pipe"], "is a pipe"),
        (
            ["preview", "--base", "b", "--aligned", "a", "--prompts", tmp_path / "deep.jsonl"],
            "nested too deeply",
        ),
    ):
        result = invoke(*options)
        assert (result.exit_code, message in result.stderr) == (2, True), (options, result.output)


def test_time_left_counts_from_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("eddecode.cli.progress.time.monotonic", lambda: clock[0])
    pace = Pace()
    pace.see(Progress("decode", 600, 1000))
    assert pace.left_text(Progress("decode", 600, 1000)) == ""
    clock[0] = 110.0
    pace.see(Progress("decode", 620, 1000))
    assert pace.left_text(Progress("decode", 620, 1000)) == " (2/s, 3 min left)"
    pace.see(Progress("judge", 0, 1000))
    assert pace.rate_text() == ""


def test_a_condition_is_found_however_its_alpha_is_written(tmp_path: Path) -> None:
    summary = run(config(tmp_path / "run"))
    lines = invoke("export", tmp_path / "run", "--condition", "ed@0.30").stdout.splitlines()
    assert len(lines) == 36
    assert summary.named("ed@.3").alpha == "0.3"
    assert (
        "the run has no condition 'ed@0.4'"
        in invoke("export", tmp_path / "run", "--condition", "ed@0.4").stderr
    )


def test_a_run_as_a_data_frame_and_as_text(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    prompts = [{"prompt": "is it blue?", "id": 7, "category": "color"}, "is it red?"]
    summary = run(config(tmp_path / "run", prompts=prompts))
    frame = summary.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.alpha.dtype == float
    first = frame[frame.prompt_index == 0].iloc[0]
    assert (first.prompt, first.prompt_id, first.category) == ("is it blue?", "7", "color")
    assert frame["lexicon.flag"].sum() == sum(
        r["verdicts"]["lexicon"]["flag"] for r in exported(tmp_path / "run")
    )
    lines = str(summary).splitlines()
    assert [line.split("  ")[0].strip() for line in lines[1:4]] == ["aligned", "base", "ED α=0"]
    assert f"{100 * summary.harm_rate('base').rate:.1f} [" in lines[2]


def test_machine_readable_results(tmp_path: Path) -> None:
    run(config(tmp_path / "run"))
    (tmp_path / "other").symlink_to(tmp_path / "run")
    gate = json.loads(invoke("gate", tmp_path / "run", "--max-reversal", "5%", "--json", "-").stdout)
    assert gate["schema"].startswith("eddecode.gate/")
    assert json.loads(invoke("report", tmp_path / "run", "--json").stdout)["schema"] == "eddecode.report/1"
    assert json.loads(invoke("plan", tmp_path / "run", "--json").stdout)["conditions"] == 5


def test_options_of_the_rendering(tmp_path: Path) -> None:
    """A chat template from a file, its variables, a prefill, and a system text that it has no role for."""
    base, aligned = tiny.save_pair(tmp_path)
    template = tmp_path / "own.jinja"
    template.write_text(
        "{% for m in messages if m.role != 'system' %}[{{ m.content }}]{% endfor %}{{ enable_thinking }}{{ level }}"
    )
    (tmp_path / "prompts.txt").write_text("what is </s>?")
    options = (
        *("preview", "--base", base, "--aligned", aligned, "--prompts", tmp_path / "prompts.txt", "--json"),
        *("--aligned-template", template, "--system", "s=Be kind.", "--prefill", "Sure, "),
        *("--template-var", "enable_thinking=false", "--template-var", "level=low"),
    )
    refused = invoke(*options)
    assert refused.exit_code == 2
    assert "--fold-system" in refused.output
    found = json.loads(invoke(*options, "--fold-system").stdout)
    texts = {entry["conditions"][0]: entry["aligned"]["text"] for entry in found}
    assert texts["aligned"] == "[what is </s>?]FalselowSure, "
    assert texts["aligned+system:s"] == "[Be kind.\n\nwhat is </s>?]FalselowSure, "
    for wrong in ("enable_thinking", "a b=1"):
        assert "expected NAME=VALUE" in invoke(*options, "--template-var", wrong).output
    assert "no chat template reads it" in invoke(*options, "--fold-system", "--template-var", "x=1").output
