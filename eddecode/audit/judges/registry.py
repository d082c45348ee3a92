"""Which kinds of judge there are, which options each takes, and how a specification becomes a judge.

The kinds are one table: the options' model, the option that is the argument after the colon, and a function that
builds the judge. These functions import their module when they are called, so that a word list does not load torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from eddecode.audit.judges import options as kinds
from eddecode.audit.judges.base import Judge, JudgeLike
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
    "moderation": Kind(kinds.ModerationOptions, _moderation, "model"),
    "python": Kind(kinds.FunctionOptions, _python, "function"),
}


def make_judge(spec: JudgeLike) -> Judge:
    """The judge that a specification such as `lexicon:FILE` or `{"kind": "guard", "model": …}` describes.

    Everything that can be checked without loading weights is checked here: a mistake must not be found only after hours
    of decoding. An object that is a judge already is returned as it is.

    Raises:
        JudgeError: an unknown kind or option, a missing or needless argument, a value out of its range, files that
            cannot be used.
    """
    if not isinstance(spec, str | Mapping):
        return spec
    parsed = JudgeSpec.parse(spec)
    if parsed.kind not in KINDS:
        raise JudgeError(f"there is no judge {parsed.kind!r}; {did_you_mean(parsed.kind, list(KINDS))}")
    kind = KINDS[parsed.kind]
    return kind.build(_checked_options(parsed, kind))


def _checked_options(spec: JudgeSpec, kind: Kind) -> kinds.JudgeOptions:
    fields = kind.options.model_fields
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
    if kind.argument is not None and kind.argument not in given and fields[kind.argument].is_required():
        raise JudgeError(
            f"judge {spec.kind} has no {kind.argument}; expected {spec.kind}:{kind.argument.upper()}"
        )
    try:
        return kind.options.model_validate(given)
    except ValidationError as error:
        names = [str(field.validation_alias or name) for name, field in fields.items()]
        raise JudgeError(explain(error, names=names, where=f"judge {spec.kind}: ")) from None


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
