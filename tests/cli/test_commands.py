"""The command line over tiny real checkpoints: what is printed where, exit codes, interrupts and kills."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from eddecode.audit import AuditConfig, audit
from eddecode.audit.export.formats import export_jsonl
from eddecode.audit.report.curve import write_curve
from eddecode.cli import app
from eddecode.models.sizes import format_bytes
from helpers.process import forked, run_command, run_program

COMMANDS = (
    *("audit", "judge", "demo", "generate", "pair", "export"),
    *("report", "gate", "compare", "plan", "policy"),
    *("init", "preview", "runs", "doctor", "docs", "label-sheet"),
)


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "80"})


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A word list that finds something in what a random model writes."""
    path = tmp_path / "letters.txt"
    path.write_text("\n".join("abcdefghijklmnopqrstuvwxyz"))
    return path


def audit_options(pair_folders: tuple[Path, Path], words: Path, out: Path, prompts: int = 3) -> list[str]:
    file = words.parent / "prompts.txt"
    file.write_text("\n".join(f"Where is order {i}?" for i in range(prompts)))
    chosen: dict[str, Any] = {
        **{
            "base": pair_folders[0],
            "aligned": pair_folders[1],
            "prompts": file,
            "alphas": "0,0.3",
            "samples": 2,
        },
        **{"max-new-tokens": 8, "dtype": "float32", "judge": f"lexicon:{words}", "out": out, "seed": 3},
    }
    return ["audit", *(str(part) for name, value in chosen.items() for part in (f"--{name}", value))]


def heavy_packages_of(*commands: tuple[str, ...]) -> list[tuple[set[str], str]]:
    """Which of the packages that cost seconds each command loads, and what it prints.

    All in one new process, where each command runs in a copy of what `eddecode` loads before it reads its arguments.
    """
    program = (
        "import os, sys; from eddecode.cli import app\n"
        f"for arguments in {commands!r}:\n"
        "  if os.fork(): os.wait(); continue\n"
        "  try: app(arguments)\n"
        "  except SystemExit: pass\n"
        "  heavy = {'torch', 'numpy', 'transformers', 'matplotlib', 'scipy'} & sys.modules.keys()\n"
        "  print('LOADED', *heavy, flush=True); os._exit(0)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"(.*?)LOADED(.*?)\n", said, flags=re.DOTALL)
    return [(set(loaded.split()), printed) for printed, loaded in found]


def test_help_is_fast_and_complete() -> None:
    ((loaded, said),) = heavy_packages_of(("--help",))
    assert loaded == set()
    for command in COMMANDS:
        assert command in said
        assert invoke(command, "--help").exit_code == 0


def test_a_finished_run_is_read_without_models(
    pair_folders: tuple[Path, Path], words: Path, tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    assert invoke(*audit_options(pair_folders, words, tmp_path / "run")).exit_code == 0
    may_load = {
        ("report", run): {"numpy", "matplotlib"},
        ("gate", run, "--max-reversal", "5%"): {"numpy", "scipy"},  # it computes the figures anew
        ("export", run): {"numpy"},
        ("compare", run, run): {"numpy"},
    }
    for (arguments, allowed), (loaded, _) in zip(may_load.items(), heavy_packages_of(*may_load), strict=True):
        assert loaded <= allowed, arguments


def test_version() -> None:
    assert re.fullmatch(r"eddecode \d+\.\d+\.\d+\n", invoke("--version").stdout)


def test_audit_prints_a_table_and_leaves_a_run(
    pair_folders: tuple[Path, Path], words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eddecode.audit.run.write_curve", write_curve)
    out = tmp_path / "run"
    result = invoke(*audit_options(pair_folders, words, out))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(cell_len, (line for line in lines if str(tmp_path) not in line))) <= 80
    summary = json.loads((out / "summary.json").read_text())
    for entry in summary["conditions"]:
        label = entry["condition"] if entry["condition"] != "ed" else f"ED α={entry['alpha']}"
        row = next(line for line in lines if line.strip().startswith(label))
        rate = entry["rates"]["lexicon:letters.txt"]
        assert [
            float(x) for x in re.findall(r"[\d.]+", row.strip().removeprefix(label))[:3]
        ] == pytest.approx([100 * rate["rate"], 100 * rate["low"], 100 * rate["high"]], abs=0.051)
    rates = {(e["condition"], e["alpha"]): e["rates"] for e in summary["conditions"]}
    assert rates["base", "0"] == rates["ed", "0"]
    assert (out / "curve.svg").read_text().startswith("<?xml")
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "12 of 24" in result.stderr or "24 of 24" in result.stderr


def test_export_is_one_completion_a_line(
    pair_folders: tuple[Path, Path], words: Path, tmp_path: Path
) -> None:
    assert invoke(*audit_options(pair_folders, words, tmp_path / "run")).exit_code == 0
    result = invoke("export", tmp_path / "run", "--to", "jsonl")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 4 * 3 * 2
    assert {(row["condition"], row["alpha"]) for row in rows} == {
        *{("aligned", -1), ("base", 0), ("ed", 0), ("ed", 0.3)}
    }
    assert set(rows[0]) == {
        *{"attack", "condition", "alpha", "prompt_index", "sample", "text", "token_ids", "finish_reason"},
        *{"implied_reward", "base_logprob", "aligned_logprob", "verdicts"},
        *{"name", "system", "transform", "template", "temperature", "mitigation", "model", "text_digest"},
        *{"prompt", "prompt_id", "category", "attack"},
        *{"length", "perplexity", "distinct_1", "distinct_2", "repetition", "empty"},
    }
    for row in rows:
        assert row["implied_reward"] == pytest.approx(row["aligned_logprob"] - row["base_logprob"])
        assert 1 <= len(row["token_ids"]) <= 8
    at_zero = [
        [(row["text"], row["token_ids"]) for row in rows if row["condition"] == kind and row["alpha"] == 0]
        for kind in ("base", "ed")
    ]
    assert at_zero[0] == at_zero[1]


def test_python_and_shell_make_the_same_run(
    pair_folders: tuple[Path, Path], words: Path, tmp_path: Path
) -> None:
    assert invoke(*audit_options(pair_folders, words, tmp_path / "shell")).exit_code == 0
    config = AuditConfig(
        base=pair_folders[0],
        aligned=pair_folders[1],
        prompts=[f"Where is order {i}?" for i in range(3)],
        alphas=[0, 0.3],
        samples=2,
        max_new_tokens=8,
        dtype="float32",
        seed=3,
        judges=[f"lexicon:{words}"],
        out=tmp_path / "python",
    )
    audit(config)
    assert_same_table(tmp_path / "shell", tmp_path / "python")


def assert_same_table(left: Path, right: Path) -> None:
    """Equal summaries and completions, but for the last digits of log-probabilities.

    Those depend on how many rows were in the batch (float32: 48 tokens of at most 9 nats each, whose rounding errors
    of 2^-24 relative add up to less than 1e-3); the tokens and everything that follows from them do not.
    """
    assert_close(*(json.loads((folder / "summary.json").read_text()) for folder in (left, right)))
    rows = [[json.loads(line) for line in export_jsonl(folder)] for folder in (left, right)]
    assert_close(*rows)


def assert_close(left: Any, right: Any, where: str = "") -> None:
    """The same data; floats within 2e-3, absolute or relative."""
    if isinstance(left, float) and isinstance(right, float):
        assert left == pytest.approx(right, abs=2e-3, rel=2e-3), where
    elif isinstance(left, dict) and isinstance(right, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_close(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list) and isinstance(right, list):
        assert len(left) == len(right), where
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_close(a, b, f"{where}[{i}]")
    else:
        assert left == right, where


def say_until(tenth: int, stderr: TextIO) -> str:
    """What an audit says until so many tenths of its completions are on disk."""
    lines = []
    for line in stderr:
        lines.append(line)
        said = re.match(r"(\d+) of (\d+) completions on disk", line)
        if said and 10 * int(said[1]) >= tenth * int(said[2]):
            break
    return "".join(lines)


def interrupted(*options: str) -> tuple[int, str]:
    """Start a program, interrupt it as Ctrl-C does once a tenth is on disk; exit status and what it said."""
    child, stderr = forked(partial(run_program, *options))
    with stderr:
        said = say_until(1, stderr)
        os.kill(child, signal.SIGINT)
        said += stderr.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


@pytest.mark.slow
def test_stopped_twice_and_rerun(
    pair_folders: tuple[Path, Path], words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by Ctrl-C, then killed, then left to finish: the same command ends in the table of an undisturbed run."""
    monkeypatch.setattr("eddecode.audit.decode._COMMIT_ROWS", 8)  # many groups, as in a longer run
    stopped, alone = tmp_path / "stopped", tmp_path / "alone"
    options = audit_options(pair_folders, words, stopped, prompts=40)
    options[options.index("--max-new-tokens") + 1] = "20"
    status, said = interrupted(*options)
    assert status == 130, said
    assert f"Stopped. The completions so far are in {stopped}; the same command continues from there." in said
    assert "Traceback" not in said
    child, stderr = forked(partial(run_command, *options))
    with stderr:
        said = say_until(4, stderr)
        os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, said
    assert not (stopped / "summary.json").exists()
    assert invoke(*options).exit_code == 0
    assert invoke(*(str(alone) if option == str(stopped) else option for option in options)).exit_code == 0
    assert_same_table(stopped, alone)


def test_another_configuration_is_one_message_and_exit_code_2(
    pair_folders: tuple[Path, Path], words: Path, tmp_path: Path
) -> None:
    options = audit_options(pair_folders, words, tmp_path / "run")
    assert invoke(*options).exit_code == 0
    result = invoke(*options, "--temperature", "0.5")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert "temperature: 1.0 in the run, 0.5 now" in result.stderr
    assert result.stdout == ""


AUDIT = ["audit", "--base", "b", "--aligned", "a", "--prompts", "p", "--out", "o", "--judge", "lexicon"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "nowhere"], "error: there is no run in nowhere"),
        (["export", "nowhere", "--to", "xml"], "error: there is no format 'xml'; expected jsonl"),
        (
            ["generate", "hello", "--base", "x"],
            "error: one checkpoint is given; expected --base and --aligned",
        ),
        (["generate", "hello", "--alpha", "much"], "error: alpha 'much' is not a number"),
        (
            ["generate", "hello", "--alpha", ""],
            "error: the list of alphas is empty; expected one alpha or more",
        ),
        (["generate", "hello", "--top-p", "2"], "error: top_p is 2"),
        ([*AUDIT, "--attacks", ""], "error: the list of attacks is empty; expected one attack or more"),
        (
            [*AUDIT, "--attacks", "", "--attacks", "ablate"],
            "error: the list of attacks is ',ablate', which has",
        ),
        ([*AUDIT, "--alphas", "0.3,,1"], "error: the list of alphas is '0.3,,1', which has an empty entry"),
        ([*AUDIT, "--extra-alphas", " "], "error: the list of alphas is empty"),
        ([*AUDIT, "--temperatures", ""], "error: the list of temperatures is empty"),
        ([*AUDIT, "--mitigations", ","], "error: the list of mitigations is ',', which has an empty entry"),
        (["pair", "/no/base", "/no/aligned"], "error: "),
        (["pair", "", "/no/aligned"], "error: the base checkpoint is ''; expected a folder or a hub id"),
        ([*AUDIT, "--finetuned", ""], "error: finetuned is ''; expected a file, a folder or a name"),
        (["audit", "--base", "x"], "Missing option"),
    ],
)
def test_errors_are_messages(arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_generate_streams_the_completion_safely(pair_folders: tuple[Path, Path]) -> None:
    """What a random model writes is full of control bytes; none gets to the terminal."""
    from eddecode import ModelPair, Sampler, SamplingParams
    from eddecode.utils.terminal import escape_control_chars

    base, aligned = pair_folders
    result = invoke(
        "generate", "hello", "--base", base, "--aligned", aligned, "--alpha", "-0.5", "--max-new-tokens", 40
    )
    params = SamplingParams(alpha=-0.5, max_new_tokens=40)
    expected = Sampler(ModelPair.load(base, aligned)).generate("hello", params)[0].text
    assert result.stdout == escape_control_chars(expected) + "\n"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", result.stdout)
    several = invoke(
        "generate", "a", "b", "--base", base, "--aligned", aligned, "--alpha", "0,1", "--max-new-tokens", 3
    )
    assert re.findall(r"── α=(\S+) · (\S+)", several.stdout) == [
        ("0", "a"),
        ("1", "a"),
        ("0", "b"),
        ("1", "b"),
    ]


def test_safe_text() -> None:
    from eddecode.utils.terminal import escape_control_chars

    assert (
        escape_control_chars("a\x1b]0;t\x07b\u202ec\x9bd\re\ud800")
        == r"a\x1b]0;t\x07b\u202ec\x9bd\x0de\ud800"
    )
    assert escape_control_chars("naïve 日本 😀\n\tx") == "naïve 日本 😀\n\tx"


def test_pair_as_table_and_as_json(pair_folders: tuple[Path, Path]) -> None:
    as_json = json.loads(invoke("pair", *pair_folders, "--json").stdout)
    shown = invoke("pair", *pair_folders).stdout
    assert f"{as_json['base']['parameters']:,}" in shown
    assert as_json["base"]["architecture"] in shown
    assert f"Memory: {format_bytes(as_json['memory']['weights_bytes'])} of weights, and" in shown
    for layer in as_json["tensors"]["layers"]:
        assert re.search(rf"{re.escape(layer['layer'])}\s+{layer['parameters']:,}\s+[\d.]+%", shown)
    assert max(map(cell_len, shown.splitlines())) <= 80


def test_what_two_models_share_counts_once(pair_folders: tuple[Path, Path]) -> None:
    base = pair_folders[0]
    as_json = json.loads(invoke("pair", base, base, "--json").stdout)
    held, alone = as_json["memory"]["weights_bytes"], as_json["base"]["weights_bytes"]
    assert alone <= held < 1.01 * alone  # what is computed anew, such as rotary frequencies, is held twice
    assert f"Memory: {format_bytes(held)} of weights, and" in invoke("pair", base, base).stdout


def test_an_audit_file_makes_the_same_run_and_flags_win(
    pair_folders: tuple[Path, Path], words: Path, tmp_path: Path
) -> None:
    """The same audit from flags, from a file, and from the file that the run left behind."""
    options = audit_options(pair_folders, words, tmp_path / "flags")
    assert invoke(*options, "--mitigations", "topk5", "--system", "rude=Be rude.").exit_code == 0
    file = tmp_path / "audit.toml"
    file.write_text(
        f"""
base = {str(pair_folders[0])!r}
aligned = {str(pair_folders[1])!r}
prompts = "prompts.txt"
out = "file"
alphas = [0, 0.3]
samples = 2
max_new_tokens = 8
dtype = "float32"
seed = 9
mitigations = ["topk5"]
[systems]
rude = "Be rude."
[[judge]]
kind = "lexicon"
words = "letters.txt"
"""
    )
    result = invoke("audit", "--config", file, "--seed", 3)
    assert result.exit_code == 0, result.output
    assert_same_table(tmp_path / "flags", tmp_path / "file")
    again = invoke("audit", "--config", tmp_path / "file" / "audit.toml")
    assert again.exit_code == 0, again.output
    assert "nothing is left to decode" in again.stderr
    names = {json.loads(line)["name"] for line in export_jsonl(tmp_path / "file")}
    assert names == {
        *("aligned", "base", "ed@0", "ed@0.3", "ed@0.3+topk5"),
        *("base+system:rude", "aligned+system:rude", "ed@0.3+system:rude"),
    }
    file.write_text("sample = 3")
    wrong = invoke("audit", "--config", file)
    assert wrong.exit_code == 2
    assert "sample is unknown; did you mean samples?" in wrong.stderr


def test_judging_again_and_exporting(pair_folders: tuple[Path, Path], words: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert invoke(*audit_options(pair_folders, words, run)).exit_code == 0
    result = invoke("judge", run, "--judge", "refusal")
    assert result.exit_code == 0, result.output
    assert "refusal" in result.stdout
    assert "Loading" not in result.stderr
    table = invoke("export", run, "--to", "csv", "--condition", "ed@0.3").stdout.splitlines()
    assert table[0].startswith("condition,attack,alpha,name,")
    assert "refusal.flag" in table[0]
    assert len(table) == 1 + 3 * 2
    target = tmp_path / "log.json"
    assert invoke("export", run, "--to", "inspect", "--out", target).stdout == ""
    assert len(json.loads(target.read_text())["samples"]) == 4 * 3 * 2
    for arguments, message in (
        (["judge", run], "expected --judge, --labels or both"),
        (["export", run, "--to", "parquet"], "name a file with --out"),
        (
            ["export", run, "--condition", "ed@7"],
            "has no condition 'ed@7'; it has aligned, base, ed@0, ed@0.3",
        ),
    ):
        refused = invoke(*arguments)
        assert refused.exit_code == 2
        assert message in refused.stderr
