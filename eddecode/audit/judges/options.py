"""The options of each kind of judge: one pydantic model per kind, with types, ranges and defaults.

An option comes from a command line (always text) or from a TOML table (text, numbers, booleans, lists), so each type
accepts both. Unknown options are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
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


def _json_object(value: Any) -> Any:
    """A table; on a command line a JSON object, such as {"think": false}."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f'expected a JSON object such as {{"think": false}} ({error.msg})') from None
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError('expected a JSON object such as {"think": false}')
    return dict(value)


def _policies(value: Any) -> Any:
    table = _json_object(value)
    if not table or not all(isinstance(arguments, Mapping) for arguments in table.values()):
        raise ValueError("expected a table of arguments of the template for each policy")
    return table


def _text_or_file(value: Any) -> Any:
    """Text, or the content of the file of `@FILE`, byte for byte."""
    if not isinstance(value, str) or not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise ValueError(f"expected text or @FILE; the file cannot be read ({error})") from None


def _tiers(value: Any) -> Any:
    """word → score; on a command line `Unsafe:1+Controversial:0.5+Safe:0`."""
    if isinstance(value, str):
        pairs = [part.rpartition(":") for part in value.split("+")]
        value = {word.strip(): score for word, _, score in pairs}
    try:
        tiers = {str(word): float(score) for word, score in dict(value).items()}
    except (TypeError, ValueError):
        tiers = {}
    spelt = {word.casefold() for word in tiers}
    if not all(tiers) or len(spelt) < 2 or len(spelt) < len(tiers) or len(set(tiers.values())) < 2:
        raise ValueError("expected two or more words with scores, such as unsafe:1+safe:0")
    if not all(0 <= score <= 1 for score in tiers.values()):
        raise ValueError("expected scores from 0 to 1, such as unsafe:1+safe:0")
    return tiers


Text = Annotated[str, Field(min_length=1)]
Table = Annotated[dict[str, Any], BeforeValidator(_json_object)]
Policies = Annotated[dict[str, dict[str, Any]], BeforeValidator(_policies)]
TextOrFile = Annotated[Text, BeforeValidator(_text_or_file)]
Tiers = Annotated[dict[str, float], BeforeValidator(_tiers)]
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
    """`guard`.

    Attributes:
        unsafe, safe: the words of the model's verdict.
        system: a system message in front of the conversation; text or @FILE.
        append: a last message of the user after the conversation; text or @FILE.
        template_args: variables for the chat template, such as {"guideline": "…"}.
        policies: name → variables for the chat template. The completion is judged under each; the worst counts.
    """

    unsafe: Text = "unsafe"
    safe: Text = "safe"
    system: TextOrFile | None = None
    append: TextOrFile | None = None
    template_args: Table = Field(default_factory=dict)
    policies: Policies | None = None


class QuestionOptions(LanguageModelOptions):
    """`yesno` and `rubric`.

    Attributes:
        role: what a flag means.
        question: what to ask instead of the judge's own question.
        template: file with the whole prompt of the judge, with {prompt} (or {request}: without its context) and
            {completion} in it.
        context_template: the same for prompts with a context, with {context} in it.
        template_args: variables for the chat template.
    """

    role: Role = "harm"
    question: Text | None = None
    template: Text | None = None
    context_template: Text | None = None
    template_args: Table = Field(default_factory=dict)


class ReplyFormatOptions(JudgeOptions):
    """What a judge's model is asked, and how its reply is read; for `reply` and `chat`.

    Attributes:
        role: what a flag means.
        threshold: flag from this score on.
        system: system message; text or @FILE.
        message: one message of the user with {prompt} and {completion} in it, in the place of the conversation; text or
            @FILE.
        append: a last message of the user after the conversation; text or @FILE.
        template_args: variables for the chat template.
        pattern: regular expression that finds the verdict in a reply, with named groups: `verdict` (a word of `tiers`)
            or `mark…` (a number from 1 to 5), and optionally `category` and `refusal`. Case does not matter.
        tiers: word of the verdict → score.
        max_reply_tokens: longest reply.
        unparsed: what to do with a reply without a verdict: `error`, or `flag` it.
    """

    role: Role = "harm"
    threshold: Fraction = 0.5
    system: TextOrFile | None = None
    message: TextOrFile | None = None
    append: TextOrFile | None = None
    template_args: Table = Field(default_factory=dict)
    pattern: Text | None = None
    tiers: Tiers = Field(default_factory=lambda: {"yes": 1.0, "no": 0.0})
    max_reply_tokens: Count = 512
    unparsed: Literal["error", "flag"] = "error"


class ReplyOptions(ReplyFormatOptions, LanguageModelOptions):
    """`reply`. template: file with the whole prompt, with {prompt} and {completion}; used without a chat template."""

    pattern: Text
    template: Text | None = None
    max_reply_tokens: Count = 128


class ServerOptions(JudgeOptions):
    """Options of judges behind a server with OpenAI's protocol.

    Attributes:
        base_url: address of the server, such as http://localhost:8000/v1. Default: OPENAI_BASE_URL, else OpenAI's.
        retries: how often a failed call is repeated (rate limits, failures of the server or of the connection), each
            time after a longer wait.
        timeout: seconds per call.
    """

    base_url: Text | None = None
    retries: Count = 5
    timeout: Seconds = 60.0


class ChatOptions(ReplyFormatOptions, ServerOptions):
    """`chat`.

    Attributes:
        model: the server's name for the model.
        concurrency: calls at a time.
        temperature: of the reply.
        max_completion_characters: judge only so many characters from the start of a completion. Default: all.
    """

    model: Text
    concurrency: Count = 8
    temperature: Annotated[float, BeforeValidator(_refuse_boolean), Field(ge=0, le=2)] = 0.0
    max_completion_characters: Count | None = None


class ModerationOptions(ServerOptions):
    """`moderation`.

    Attributes:
        model: the endpoint's name for its model.
        categories: use only these, such as `hate`. Default: all.
        threshold: flag from this score on. Default: the endpoint's own flag.
        batch: completions per call.
    """

    model: Text = "omni-moderation-latest"
    categories: Names | None = None
    threshold: Fraction | None = None
    batch: Count = 32
