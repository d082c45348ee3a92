"""Which judges there are, what each takes, and how a specification becomes one.

A table and not a chain of conditions: a kind is its builder, the name of its argument, and its options with the
converter that checks each. Builders import their module when they are called, so that naming a word list does not
load a library for models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eddecode.audit.judges import spec as values
from eddecode.audit.judges.base import Judge, JudgeLike
from eddecode.audit.judges.spec import Converter, JudgeSpec
from eddecode.errors import JudgeError


@dataclass(frozen=True)
class Kind:
    """One kind of judge.

    Attributes:
        build: makes it from keywords.
        argument: the keyword that the argument after the colon fills; None takes no argument.
        required: whether the argument must be given.
        options: the other keywords, with their converters.
    """

    build: Callable[..., Judge]
    argument: str | None = None
    required: bool = False
    options: Mapping[str, Converter] = field(default_factory=dict)


def _lexicon(words: str | None = None, name: str | None = None) -> Judge:
    from eddecode.audit.judges.lexicon import LexiconJudge

    return LexiconJudge.from_file(words, name) if words else LexiconJudge.bundled(name or "lexicon")


def _grammar(name: str | None = None) -> Judge:
    from eddecode.audit.judges.grammar import GrammarJudge

    judge = GrammarJudge()
    if name:
        judge.name = name
    return judge


def _refusal(phrases: str | None = None, name: str | None = None) -> Judge:
    from eddecode.audit.judges.refusal import RefusalJudge

    return RefusalJudge.load(phrases, name=name)


def _not_refused(phrases: str | None = None, name: str | None = None) -> Judge:
    from eddecode.audit.judges.refusal import RefusalJudge

    return RefusalJudge.load(phrases, name=name, inverted=True)


def _classifier(**keywords: Any) -> Judge:
    from eddecode.audit.judges.classifier import ClassifierJudge

    return ClassifierJudge(**keywords)


def _guard(**keywords: Any) -> Judge:
    from eddecode.audit.judges.guard import GuardJudge

    return GuardJudge(**keywords)


def _yesno(**keywords: Any) -> Judge:
    from eddecode.audit.judges.graded import YesNoJudge

    return YesNoJudge(**keywords)


def _rubric(**keywords: Any) -> Judge:
    from eddecode.audit.judges.graded import RubricJudge

    return RubricJudge(**keywords)


def _moderation(**keywords: Any) -> Judge:
    from eddecode.audit.judges.moderation import ModerationJudge

    return ModerationJudge(**keywords)


def _python(**keywords: Any) -> Judge:
    from eddecode.audit.judges.python_function import FunctionJudge

    return FunctionJudge.load(**keywords)


_ROLE = {"role": values.one_of("harm", "validity", "refusal")}
_MODEL: dict[str, Converter] = {
    "revision": values.text,
    "dtype": values.text,
    "device": values.text,
    "batch": values.count,
    "threshold": values.share,
}
_CAUSAL: dict[str, Converter] = {
    **_MODEL,
    "base": values.text,
    "lead": values.lead,
    "max_completion_tokens": values.count,
}
_QUESTION: dict[str, Converter] = {**_CAUSAL, **_ROLE, "question": values.text, "template": values.text}

KINDS: dict[str, Kind] = {
    "lexicon": Kind(_lexicon, "words"),
    "grammar": Kind(_grammar),
    "refusal": Kind(_refusal, "phrases"),
    "not-refused": Kind(_not_refused, "phrases"),
    "classifier": Kind(
        _classifier,
        "model",
        True,
        {
            **_MODEL,
            **_ROLE,
            "harmful": values.names,
            "multi_label": values.boolean,
            "reads": values.one_of("completion", "both"),
            "long": values.one_of("error", "start", "end", "windows"),
        },
    ),
    "guard": Kind(_guard, "model", True, {**_CAUSAL, "safe": values.text, "unsafe": values.text}),
    "yesno": Kind(_yesno, "model", True, _QUESTION),
    "rubric": Kind(_rubric, "model", True, _QUESTION),
    "moderation": Kind(
        _moderation,
        "model",
        False,
        {
            "threshold": values.share,
            "categories": values.names,
            "batch": values.count,
            "retries": values.count,
            "timeout": values.seconds,
        },
    ),
    "python": Kind(_python, "function", True, {**_ROLE, "threshold": values.share}),
}


def build(written: str | Mapping[str, Any]) -> Judge:
    """The judge that a specification names.

    Raises:
        JudgeError: an unknown kind or option, a missing or needless argument, a value out of its range.
    """
    spec = JudgeSpec.parse(written)
    if spec.kind not in KINDS:
        raise JudgeError(f"there is no judge {spec.kind!r}; expected one of {', '.join(KINDS)}")
    kind = KINDS[spec.kind]
    options, keywords = dict(spec.options), {}
    given, wanted = spec.argument, kind.argument
    if wanted is None:
        if given is not None:
            raise JudgeError(f"judge {spec.kind} takes no argument, and was given {given!r}")
    else:
        given = options.pop(wanted, None) if given is None else given
        if given is not None:
            keywords[wanted] = str(given)
        elif kind.required:
            raise JudgeError(f"judge {spec.kind} has no {wanted}; expected {spec.kind}:{wanted.upper()}")
    for key, value in options.items():
        keywords[key] = _converted(spec.kind, {**kind.options, "name": values.text}, key, value)
    return kind.build(**keywords)


def _converted(kind: str, known: Mapping[str, Converter], key: str, value: Any) -> Any:
    if key not in known:
        raise JudgeError(f"judge {kind} has no option {key!r}; expected one of {', '.join(sorted(known))}")
    try:
        return known[key](value)
    except (ValueError, TypeError) as error:
        expected = (
            str(error) if "invalid literal" not in str(error) and "convert" not in str(error) else "a number"
        )
        raise JudgeError(f"judge {kind}: {key} is {value!r}; expected {expected}") from None


def make_judge(spec: JudgeLike) -> Judge:
    """The judge that a specification such as `lexicon:FILE` or `{"kind": "guard", "model": …}` names.

    What can be checked without loading weights is checked here, so that a mistake is found before hours of decoding.

    Raises:
        JudgeError: no such judge, or its argument or an option does not do.
    """
    return build(spec) if isinstance(spec, str | Mapping) else spec


def make_judges(specs: Sequence[JudgeLike]) -> list[Judge]:
    """The judges of an audit; the first one judges harm.

    Raises:
        JudgeError: two of one name, or the first does not judge harm.
    """
    judges = [make_judge(spec) for spec in specs]
    names = [judge.name for judge in judges]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise JudgeError(
                f"two judges are called {name}; expected each once (another of one kind takes ,name=…)"
            )
    if not judges or judges[0].role != "harm":
        found = f"{judges[0].name}, which judges {judges[0].role}" if judges else "none"
        raise JudgeError(f"the first judge is {found}; expected one of harm first, such as lexicon")
    return judges
