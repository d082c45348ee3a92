"""Audit files: paths, refusals, and the file of a run that reads back to its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eddecode.audit.config import AuditConfig
from eddecode.audit.config_file import read_config_file, write_as_run
from eddecode.audit.data.prompts import read_prompts
from eddecode.audit.data.transforms import read_transforms
from eddecode.errors import ConfigError, StoreError


def config(**changes: Any) -> AuditConfig:
    return AuditConfig(**{"base": "b", "aligned": "a", "prompts": ["hello"], "out": "run", **changes})


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
        template_variables={"enable_thinking": False, "level": [1, "x"]},
        prefill="Sure, ",
        fold_system=True,
        escape_specials=False,
        mask_ids="differing",
    )
    records = read_prompts(made.prompts)
    read = AuditConfig(**read_config_file(write_as_run(made, records)))
    assert [(r.prompt, r.meta) for r in read_prompts(read.prompts)] == [(r.prompt, r.meta) for r in records]
    rendering = ("template_variables", "prefill", "fold_system", "escape_specials", "mask_ids")
    for name in ("alphas", "systems", "mitigations", "stop", "top_p", "keep_text", "base", *rendering):
        assert getattr(read, name) == getattr(made, name)
    assert read.conditions() == made.conditions()
    assert read_transforms(read.transforms) == read_transforms(made.transforms)
    assert Path(read.out).resolve() == tmp_path.resolve()
    with pytest.raises(StoreError, match=r"audit.toml cannot be written .*nothing reported is lost"):
        write_as_run(config(out=tmp_path / "none", prompts="p.txt"), records)
