"""The options of each kind of judge: one pydantic model per kind, with types, ranges and defaults.

An option comes from a command line (always text) or from a TOML table (text, numbers, booleans, lists), so each type
accepts both. Unknown options are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from eddecode.audit.judges.base import Role


def _refuse_boolean(value: Any) -> Any:
    """pydantic would take true as the number 1."""
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


def _split_names(value: Any) -> tuple[str, ...]:
    names = value.split("+") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) and n for n in names):
        raise ValueError("expected names joined by +, or a list of names")
    return tuple(names)


Text = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split_names)]
Count = Annotated[int, BeforeValidator(_refuse_boolean), Field(ge=1)]
Fraction = Annotated[float, BeforeValidator(_refuse_boolean), Field(ge=0, le=1)]
Seconds = Annotated[float, BeforeValidator(_refuse_boolean), Field(gt=0, allow_inf_nan=False)]
AnswerPrefix = Annotated[Text, AfterValidator(lambda text: text.replace("\\n", "\n"))]
"""Text in which the two characters `\\n` stand for a line break: a command line has no line breaks."""


class JudgeOptions(BaseModel):
    """What every kind takes.

    Attributes:
        name: what the judge is called in the store, the summary and the table. Default: made from the kind and its
            argument.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    name: Text | None = None


class LexiconOptions(JudgeOptions):
    """`lexicon`. words: file with one word or phrase per line. Default: the bundled list."""

    words: Text | None = None


class RefusalOptions(JudgeOptions):
    """`refusal` and `not-refused`. phrases: file with one phrase per line. Default: the bundled list."""

    phrases: Text | None = None


class FunctionOptions(JudgeOptions):
    """`python`.

    Attributes:
        function: `module:function`.
        role: what a flag means.
        threshold: flag from this score on, where the function returns a number.
    """

    function: Text
    role: Role = "harm"
    threshold: Fraction = 0.5


class ModerationOptions(JudgeOptions):
    """`moderation`.

    Attributes:
        model: the endpoint's name for its model.
        categories: use only these, such as `hate`. Default: all.
        threshold: flag from this score on. Default: the endpoint's own flag.
        batch: completions per call.
        retries: how often a failed call is repeated (rate limits, failures of the server or of the connection), each
            time after a longer wait.
        timeout: seconds per call.
    """

    model: Text = "omni-moderation-latest"
    categories: Names | None = None
    threshold: Fraction | None = None
    batch: Count = 32
    retries: Count = 5
    timeout: Seconds = 60.0


class ModelOptions(JudgeOptions):
    """Options of every judge that runs a model itself.

    Attributes:
        model: folder or hub id of the checkpoint.
        revision: branch, tag or commit of a hub id.
        dtype, device: as in `ModelPair.load`.
        batch: texts per forward pass.
        threshold: flag from this score on.
    """

    model: Text
    revision: Text | None = None
    dtype: Text = "auto"
    device: Text | None = None
    batch: Count = 16
    threshold: Fraction = 0.5


class ClassifierOptions(ModelOptions):
    """`classifier`.

    Attributes:
        role: what a flag means: `harm`, `validity` or `refusal` (`harmful` then names the labels that flag).
        harmful: the labels that flag; case, spaces and hyphens do not matter. Default: judged by the labels' names.
        multi_label: whether several labels can hold at once. Default: as `problem_type` in config.json states, else
            false.
        reads: `completion`, or `both`: prompt and completion as a pair of texts.
        long: what to do with a text over the window: `error`, judge its `start` or its `end`, or all of it in
            `windows`.
    """

    batch: Count = 32
    role: Role = "harm"
    harmful: Names | None = None
    multi_label: bool | None = None
    reads: Literal["completion", "both"] = "completion"
    long: Literal["error", "start", "end", "windows"] = "error"


class LanguageModelOptions(ModelOptions):
    """Options of every judge that is a causal language model.

    Attributes:
        base: the checkpoint that an adapter is merged into.
        answer_prefix: text between the question and the model's answer; the option is called `lead`.
        max_completion_tokens: judge only so many tokens from the start of a completion. Default: all.
    """

    base: Text | None = None
    answer_prefix: AnswerPrefix = Field(default="", validation_alias="lead")
    max_completion_tokens: Count | None = None


class GuardOptions(LanguageModelOptions):
    """`guard`. unsafe, safe: the words of the model's verdict."""

    unsafe: Text = "unsafe"
    safe: Text = "safe"


class QuestionOptions(LanguageModelOptions):
    """`yesno` and `rubric`.

    Attributes:
        role: what a flag means.
        question: what to ask instead of the judge's own question.
        template: file with the whole prompt of the judge, with {prompt} and {completion} in it.
    """

    role: Role = "harm"
    question: Text | None = None
    template: Text | None = None
