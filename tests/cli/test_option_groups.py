"""A group of options is an option per field; and groups hand on what was given, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from eddecode.audit.config import AuditConfig
from eddecode.cli.audit_options import ConditionOptions, EvidenceOptions, PromptOptions
from eddecode.cli.option_groups import with_option_groups
from eddecode.cli.options import EndOptions, FilterOptions, PlacementOptions, RenderingOptions
from eddecode.errors import ConfigError


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option(help="How wide.")] = 3
    deep: Annotated[bool, typer.Option("--deep", help="Not flat.")] = False


def test_a_group_is_an_option_for_each_field() -> None:
    app, seen = typer.Typer(), []

    def make(name: str, *, size: Size, color: str = "red") -> None:
        seen.append((name, size, color))

    app.command()(with_option_groups(make))
    for arguments in (["a"], ["b", "--deep", "--color", "blue", "--width", "7"]):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert seen == [("a", Size(), "red"), ("b", Size(7, True), "blue")]
    assert "--size" not in CliRunner().invoke(app, ["--help"]).output
    plain = with_option_groups(print)
    assert plain is print


@pytest.mark.parametrize(
    "group",
    [
        *(FilterOptions, EndOptions, PlacementOptions, RenderingOptions),
        *(PromptOptions, ConditionOptions, EvidenceOptions),
    ],
)
def test_nothing_given_is_nothing(group: Any) -> None:
    assert group().given() == {}


def test_what_is_given_are_fields_of_an_audit() -> None:
    groups = (
        FilterOptions(0, 0.0, 1.0, 0.0, 0.0),
        EndOptions(True, True, True, ["x"]),
        PlacementOptions("cpu", '{"base": "cpu"}', "8bit", 4, "off"),
        RenderingOptions("{prompt}", "chat", ["deep=false", "level=low"], True, "", False),
        PromptOptions(Path("p.csv"), "", "kind", Path("benign.csv"), True, 0),
        EvidenceOptions(True, 0, 0.0, Path("c.jsonl"), Path("policy.toml")),
        ConditionOptions(
            *("0.7", ["a=chat"], ["a={prompt}"], "topk5", ["calm=be calm"], Path("t.csv")),
            *(["prefill:5", "ablate"], Path("h.txt"), Path("ok.txt"), "w", "v", "1", "f", ["e"]),
        ),
    )
    given = {name: value for group in groups for name, value in group.given().items()}
    assert set(given) <= {field.name for field in fields(AuditConfig)}
    two = 1  # the options for both sides of a template are one field
    assert len(given) == sum(len(fields(group)) for group in groups) - two  # also those that are 0 or empty
    assert given["device_map"] == {"base": "cpu"}
    assert given["template_variables"] == {"deep": False, "level": "low"}
    assert (given["escape_specials"], given["keep_text"]) == (False, False)
    assert (given["attacks"], given["systems"]) == ("prefill:5,ablate", {"calm": "be calm"})
    assert given["templates"] == {"a": {"base": "chat", "aligned": "{prompt}"}}
    with pytest.raises(ConfigError, match="expected auto, or an object"):
        PlacementOptions(device_map="{base").given()
    with pytest.raises(ConfigError, match="expected NAME=VALUE"):
        RenderingOptions(template_var=["deep"]).given()
