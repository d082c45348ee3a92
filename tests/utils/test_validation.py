"""pydantic's errors as sentences: what was found, what was expected, what to do."""

from __future__ import annotations

import dataclasses
from itertools import product
from typing import Annotated, Any

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.dataclasses import dataclass

from eddecode.errors import ConfigError, ParamsError
from eddecode.utils.validation import (
    Integer,
    Number,
    did_you_mean,
    explain,
    raises,
    require_unique,
    split_list,
)


@raises(ParamsError, where="point ")
@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Point:
    height: Number = 0.0
    width: Annotated[Integer, Field(ge=0, lt=100)] = 0


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")
    points: list[Point] = Field(default_factory=list)
    mode: str = "a"
    low: int = 0

    @field_validator("mode")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value != "a":
            raise ValueError("expected 'a'; choose that")
        return value

    @model_validator(mode="after")
    def _is_consistent(self) -> Model:
        if self.low > 5:
            raise ValueError("low is above 5; lower it")
        return self


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"height": "1"}, "^point height is '1'; expected a finite number$"),
        ({"height": True}, "^point height is True; expected a finite number$"),
        ({"height": float("nan")}, "^point height is nan; expected a finite number$"),
        ({"height": None}, "^point height is None; expected a finite number$"),
        ({"width": 2.0}, "^point width is 2.0; expected an integer$"),
        ({"width": True}, "^point width is True; expected an integer$"),
        ({"width": -1}, "^point width is -1; expected a value of at least 0$"),
        ({"width": 100}, "^point width is 100; expected a value below 100$"),
        ({"widht": 1}, r"^point widht is unknown; did you mean width\?$"),
        ({"width": -1, "height": "a"}, "^point height .*\npoint width is -1; .*$"),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        Point(**fields)


def test_a_positional_argument_is_named_too() -> None:
    with pytest.raises(ParamsError, match="point width is 'x'; expected an integer"):
        Point(1, "x")  # type: ignore[arg-type]


def test_it_is_an_ordinary_dataclass() -> None:
    point = Point(np.float64(0.5), np.int64(3))
    assert type(point.width) is int
    assert point == Point(0.5, width=3)
    assert hash(point) == hash(Point(0.5, 3))
    assert dataclasses.replace(point, width=4) == Point(0.5, 4)
    with pytest.raises(ParamsError, match="width is -4"):
        dataclasses.replace(point, width=-4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mode": "b"}, "f: mode is 'b'; expected 'a'; choose that"),
        ({"low": 6}, "f: low is above 5; lower it"),
        ({"low": "x" * 500}, "f: low is 'xxxxx"),
        ({"points": [{}, {"width": -1}]}, "f: points[1].width is -1; expected a value of at least 0"),
        ({"points": 3}, "f: points is 3; expected a valid list"),
        ({"points": [{"size": 1}]}, "f: points[0].size is unknown; remove it"),
        ({"mod": "a"}, "f: mod is unknown; did you mean mode?"),
    ],
)
def test_a_model_s_errors_are_explained(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Model(**content)
    text = explain(caught.value, names=list(Model.model_fields), where="f: ")
    assert text.startswith(message)
    assert len(text) < 200


def test_a_hint_names_the_nearest_or_all() -> None:
    assert did_you_mean("modle", ["mode", "points"]) == "did you mean mode?"
    assert did_you_mean("zzz", ["mode", "points"]) == "expected one of mode, points"


def test_a_list_that_is_written_as_text_has_no_empty_entry() -> None:
    assert split_list(" a, b c\n, d ", "name") == ["a", "b c", "d"]
    assert split_list(" a, b  c\n, d ", "name", blanks=True) == ["a", "b", "c", "d"]
    with pytest.raises(
        ConfigError, match=r"^the list of names is empty; expected one name or more, or leave the"
    ):
        split_list(" ", "name")
    with pytest.raises(ConfigError, match=r"^the list of names is empty; expected one name or more"):
        split_list("", "name", blanks=True)
    gap = r"^the list of names is '.*', which has an empty entry; expected one"
    for text, blanks in product((",", " , ", "a,", ",a", "a,,b", "a, ,b"), (False, True)):
        with pytest.raises(ConfigError, match=gap):
            split_list(text, "name", blanks=blanks)
    require_unique(["a", "b"], "name")
    with pytest.raises(ConfigError, match=r"^name a is given twice; expected each once$"):
        require_unique(["a", "b", "a"], "name")
