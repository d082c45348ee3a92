"""Which kinds of judge there are, which options each takes, and how a specification becomes a judge.

The kinds are one table: the options' model, the option that is the argument after the colon, and a function that
builds the judge. These functions import their module when they are called, so that a word list does not load torch. The
name of a preset (`presets`) stands in the place of a kind, and fills in the options that are not given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eddecode.audit.judges import options as kinds
from eddecode.audit.judges.base import Judge, JudgeLike
from eddecode.audit.judges.presets import PRESETS, preset_options, served_options
from eddecode.audit.judges.spec import JudgeSpec
from eddecode.errors import JudgeError
from eddecode.utils.validation import did_you_mean, explain


@dataclass(frozen=True)
class Kind:
    """One kind of judge.

    Attributes:
        options: the model of its options.
        build: makes the judge from them.
        argument: the option that stands after the colon; None where there is no argument.
    """

    options: type[kinds.JudgeOptions]
    build: Callable[[Any], Judge]
    argument: str | None = None


def _lexicon(options: kinds.LexiconOptions) -> Judge:
    from eddecode.audit.judges.lexicon import LexiconJudge

    if options.words is None:
        return LexiconJudge.bundled(options.name or "lexicon")
    return LexiconJudge.from_file(options.words, options.name)


def _grammar(options: kinds.JudgeOptions) -> Judge:
    from eddecode.audit.judges.grammar import GrammarJudge

    return GrammarJudge(options.name or "grammar")


def _refusal(options: kinds.RefusalOptions) -> Judge:
    from eddecode.audit.judges.refusal import RefusalJudge

    return RefusalJudge.load(options.phrases, name=options.name)


def _not_refused(options: kinds.RefusalOptions) -> Judge:
    from eddecode.audit.judges.refusal import RefusalJudge

    return RefusalJudge.load(options.phrases, name=options.name, inverted=True)


def _classifier(options: kinds.ClassifierOptions) -> Judge:
    from eddecode.audit.judges.classifier import ClassifierJudge

    return ClassifierJudge(options)


def _guard(options: kinds.GuardOptions) -> Judge:
    from eddecode.audit.judges.guard import GuardJudge

    return GuardJudge(options)


def _yesno(options: kinds.QuestionOptions) -> Judge:
    from eddecode.audit.judges.graded import YesNoJudge

    return YesNoJudge(options)


def _rubric(options: kinds.QuestionOptions) -> Judge:
    from eddecode.audit.judges.graded import RubricJudge

    return RubricJudge(options)


def _reply(options: kinds.ReplyOptions) -> Judge:
    from eddecode.audit.judges.reply import ReplyJudge

    return ReplyJudge(options)


def _chat(options: kinds.ChatOptions) -> Judge:
    from eddecode.audit.judges.chat import ChatJudge

    return ChatJudge(options)


def _moderation(options: kinds.ModerationOptions) -> Judge:
    from eddecode.audit.judges.moderation import ModerationJudge

    return ModerationJudge(options)


def _python(options: kinds.FunctionOptions) -> Judge:
    from eddecode.audit.judges.python_function import FunctionJudge

    return FunctionJudge.load(options.function, options.name, role=options.role, threshold=options.threshold)


KINDS: dict[str, Kind] = {
    "lexicon": Kind(kinds.LexiconOptions, _lexicon, "words"),
    "grammar": Kind(kinds.JudgeOptions, _grammar),
    "refusal": Kind(kinds.RefusalOptions, _refusal, "phrases"),
    "not-refused": Kind(kinds.RefusalOptions, _not_refused, "phrases"),
    "classifier": Kind(kinds.ClassifierOptions, _classifier, "model"),
    "guard": Kind(kinds.GuardOptions, _guard, "model"),
    "yesno": Kind(kinds.QuestionOptions, _yesno, "model"),
    "rubric": Kind(kinds.QuestionOptions, _rubric, "model"),
    "reply": Kind(kinds.ReplyOptions, _reply, "model"),
    "chat": Kind(kinds.ChatOptions, _chat, "model"),
    "moderation": Kind(kinds.ModerationOptions, _moderation, "model"),
    "python": Kind(kinds.FunctionOptions, _python, "function"),
}


def make_judge(spec: JudgeLike) -> Judge:
    """The judge that a specification such as `lexicon:FILE` or `{"kind": "guard", "model": …}` describes.

    Everything that can be checked without loading weights is checked here: a mistake must not be found only after hours
    of decoding. An object that is a judge already is returned as it is; a function from a list of `Case` to one
    verdict, bool or number for each becomes a judge of harm.

    Raises:
        JudgeError: an unknown kind or option, a missing or needless argument, a value out of its range, files that
            cannot be used, an object that is neither a judge nor a function.
    """
    if not isinstance(spec, str | Mapping):
        return _given(spec)
    parsed = JudgeSpec.parse(spec)
    preset = parsed.kind if parsed.kind in PRESETS else None
    name = parsed.kind if preset is None else PRESETS[preset].kind
    if name not in KINDS:
        known = [*KINDS, *PRESETS]
        raise JudgeError(f"there is no judge {name!r}; {did_you_mean(name, known)}")
    kind = KINDS[name]
    given = _with_argument(parsed, kind)
    if preset is not None:
        given = _filled(preset_options(preset), given, preset)
    elif name in _TAKE_PRESETS and "preset" in given:
        asked = str(given.pop("preset"))
        if asked not in PRESETS:
            raise JudgeError(
                f"judge {name}: there is no preset {asked!r}; {did_you_mean(asked, list(PRESETS))}"
            )
        given = _filled(served_options(asked), given, asked)
    return kind.build(_checked_options(parsed.kind, kind, given))


_TAKE_PRESETS = ("reply", "chat")  # kinds with an option preset


def _given(judge: Any) -> Judge:
    """A judge or a function that was given as an object."""
    if isinstance(judge, Judge) and not isinstance(judge, type):
        return judge
    if callable(judge) and not isinstance(judge, type):
        from eddecode.audit.judges.python_function import FunctionJudge

        return FunctionJudge.of(judge)
    raise JudgeError(
        f"a judge is {judge!r:.60}; expected text such as lexicon:FILE, a table with kind = …, a function from a list "
        "of cases to one verdict, bool or number for each, or an object with name, role, identity and __call__(cases)"
    )


def _filled(defaults: Mapping[str, Any], given: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """The options of a preset, replaced by those that are given."""
    from eddecode.audit.judges.sanitize import short_name

    options = {**defaults, **given}
    model = str(options.get("model", ""))
    merged = Path(model).is_dir() and not (Path(model) / "adapter_config.json").is_file()
    if merged and "base" not in given:
        options.pop("base", None)
    options.setdefault("name", f"{preset}:{short_name(model)}")
    return options


def _with_argument(spec: JudgeSpec, kind: Kind) -> dict[str, Any]:
    """The options of a specification, with its argument under its name."""
    given = dict(spec.options)
    if spec.argument is not None:
        if kind.argument is None:
            raise JudgeError(f"judge {spec.kind} takes no argument, but has {spec.argument!r}; remove it")
        if kind.argument in given:
            raise JudgeError(
                f"judge {spec.kind} has {kind.argument} twice: {spec.argument!r} and {given[kind.argument]!r}; "
                "expected it once"
            )
        given[kind.argument] = spec.argument
    return given


def _checked_options(name: str, kind: Kind, given: Mapping[str, Any]) -> kinds.JudgeOptions:
    fields = kind.options.model_fields
    if kind.argument is not None and kind.argument not in given and fields[kind.argument].is_required():
        raise JudgeError(f"judge {name} has no {kind.argument}; expected {name}:{kind.argument.upper()}")
    try:
        return kind.options.model_validate(given)
    except ValidationError as error:
        names = [str(field.validation_alias or name) for name, field in fields.items()]
        raise JudgeError(explain(error, names=names, where=f"judge {name}: ")) from None


def make_judges(specs: Sequence[JudgeLike]) -> list[Judge]:
    """The judges of an audit; the first one judges harm.

    Raises:
        JudgeError: two judges have one name, or the first does not judge harm.
    """
    judges = [make_judge(spec) for spec in specs]
    names = [judge.name for judge in judges]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise JudgeError(
                f"two judges are called {name}; expected a name for each (add ,name=… to one of them)"
            )
    if not judges or judges[0].role != "harm":
        found = f"{judges[0].name}, which judges {judges[0].role}" if judges else "none"
        raise JudgeError(f"the first judge is {found}; expected a judge of harm first, such as lexicon")
    return judges
