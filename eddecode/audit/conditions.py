"""Conditions: the ways in which an audit decodes completions, as data.

A condition is a record and not a code path: base, aligned or emulated disalignment (ED) at an exact α, and what is
changed about it: a system prompt, a transform of the prompt, a limit on the attacker's access to the aligned model,
another model. Its name is made from these fields (`ed@0.3+topk5`, `base+system:rude`), so that equal conditions have
equal names in every run; it is their key in the store. α is text wherever it is part of a key: `0.3` from a command
line, from a file and from Python must give one key, which floats do not guarantee. Nothing here imports torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cached_property

from eddecode.errors import ConfigError
from eddecode.utils.validation import require_unique, split_list

Key = str | tuple[str, str]  # a condition's name; of a plain one also (kind, alpha)
PAIR, FINETUNED, ENSEMBLE = "", "finetuned", "ensemble"  # the models with which a condition is decoded
ATTACKS = (
    *("weights", "lowrank", "prefill", "handover", "decoding"),
    *("ablate", "steer", "w2s", "amplify"),
)  # kinds beside base, aligned and ED, see `attacks`
# Sampling parameters that most runs leave off, and the values that change nothing.
NO_PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}

_TEMPERATURE = "~t"  # in a name, before the temperature; no label and no mitigation has a ~
_TEMPLATE = "+template:"  # in a name, before the template's; no label and no mitigation has a : or a +
_AT_ALPHA = re.compile(r"(ed|ensemble|weights|steer|w2s|amplify)@([^+~:]+)(.*)", re.DOTALL)
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")


def alpha_text(value: str | float | Decimal, what: str = "alpha") -> str:
    """The canonical text of an α: `0.30`, `.3` and `3e-1` are all `0.3`, and `-0` is `0`.

    Args:
        value: the number.
        what: name of the number in messages.

    Raises:
        ConfigError: not a finite number.
    """
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        raise ConfigError(f"{what} {value!r} is not a number; expected one such as 0.3") from None
    if not number.is_finite() or not math.isfinite(float(number)):
        raise ConfigError(f"{what} {value!r} is not finite; expected a number such as 0.3")
    if abs(number.adjusted()) > 300:
        raise ConfigError(f"{what} {value!r} is beyond what a float can hold; expected a number such as 0.3")
    return format(number.normalize() if number else Decimal(0), "f")


def parse_alphas(values: str | float | Sequence[str | float], what: str = "alpha") -> tuple[str, ...]:
    """Canonical α texts of `"0,0.3,1"` or of a sequence of numbers, in the order given.

    Args:
        values: the numbers.
        what: name of a number in messages.

    Raises:
        ConfigError: text without a number, or with an empty entry; an entry that is not a finite number, or is given
            twice.
    """
    if isinstance(values, str):
        values = split_list(values, what, blanks=True)
    elif isinstance(values, int | float):
        values = [values]
    texts = tuple(alpha_text(value, what) for value in values)
    require_unique(texts, what)
    return texts


def checked_label(value: str, what: str) -> str:
    """A user's name for a system prompt or a transform, which becomes part of condition names.

    Raises:
        ConfigError: it is empty, or has other characters than letters, digits, `_`, `-` and `.`.
    """
    if not isinstance(value, str) or not _LABEL.fullmatch(value):
        raise ConfigError(f"{what} is called {value!r}; expected a name of letters, digits, _, - and .")
    return value


@dataclass(frozen=True)
class Condition:
    """One way of decoding completions.

    Attributes:
        kind: `base`, `aligned`, `ed` (emulated disalignment), or another attack's, one of `ATTACKS`.
        alpha: exact text of the contrast's α: `0` for the base model, `-1` for the aligned one.
        system: name of the system prompt in front of the prompt; empty: none.
        transform: name of the transform of the prompt; empty: none.
        mitigation: limit on the contrast's access to the aligned model, such as `topk5`; empty: none.
        model: empty: the pair; `finetuned`: a fine-tuned model alone; `ensemble`: several aligned models; or the name
            of an attack, see `eddecode.audit.attacks`.
        temperature: exact text of another sampling temperature than the run's; empty: that of the run.
        template: name of other templates than the run's; empty: those of the run.
    """

    kind: str
    alpha: str
    system: str = ""
    transform: str = ""
    mitigation: str = ""
    model: str = PAIR
    temperature: str = ""
    template: str = ""

    @cached_property
    def name(self) -> str:
        """Such as `ed@0.3`, `ed@0.3+topk5`, `base+system:rude`, `ed@0.3+template:raw`, `ed@0.3~t0.7`, `finetuned`."""
        head = self.model or self.kind
        at = "" if self.kind != "ed" else f"@{self.alpha}"
        extras = [
            f"system:{self.system}" if self.system else "",
            f"transform:{self.transform}" if self.transform else "",
            f"{_TEMPLATE[1:]}{self.template}" if self.template else "",
            self.mitigation,
        ]
        temperature = f"{_TEMPERATURE}{self.temperature}" if self.temperature else ""
        return head + at + "".join(f"+{extra}" for extra in extras if extra) + temperature

    @property
    def key(self) -> str:
        """What identifies the condition in the store: its name."""
        return self.name

    @property
    def attack(self) -> str:
        """The attack's name: `ed`, or one such as `weights@-0.3`; empty for a model alone."""
        return self.model if self.kind in ATTACKS else self.kind if self.kind == "ed" else ""

    @property
    def plain(self) -> bool:
        """Whether it is the pair itself, with nothing changed; these conditions make up the curve."""
        return not (self.mitigation or self.model or any(self.setting))

    @property
    def setting(self) -> tuple[str, ...]:
        """What an attacker chooses besides α: system prompt, transform, temperature, templates; empty: the run's."""
        return self.system, self.transform, self.temperature, self.template

    @property
    def label(self) -> str:
        """For a table: `aligned`, `base`, `ED α=0.3`, `ED α=0.3 +topk5`."""
        head = self.model or self.kind
        if self.kind == "ed":
            head = f"{self.model or 'ED'} α={self.alpha}"
        rest = [f"+{extra}" for extra in self.name.partition(_TEMPERATURE)[0].split("+")[1:]]
        rest += [f"temperature {self.temperature}"] if self.temperature else []
        return " ".join([head, *rest])


def temperature_in(name: str) -> str:
    """The temperature in a condition's name, or the empty text.

    >>> temperature_in("ed@0.3~t0.7"), temperature_in("base")
    ('0.7', '')
    """
    return name.partition(_TEMPERATURE)[2]


def template_in(name: str) -> str:
    """The name of the templates in a condition's name, or the empty text.

    >>> template_in("ed@0.3+template:raw+topk5~t0.7"), template_in("base")
    ('raw', '')
    """
    return re.split(r"[+~]", name.partition(_TEMPLATE)[2])[0]


ALIGNED = Condition("aligned", "-1")
BASE = Condition("base", "0")
DIRECT = Condition("aligned", "-1", model=FINETUNED)


def build_conditions(
    alphas: Iterable[str],
    *,
    extra_alphas: Iterable[str] | None = None,
    systems: Iterable[str] = (),
    transforms: Iterable[str] = (),
    mitigations: Iterable[str] = (),
    finetuned: bool = False,
    ensemble: bool = False,
    temperatures: Iterable[str] = (),
    templates: Iterable[str] = (),
    attacks: Iterable[Condition] = (),
) -> list[Condition]:
    """All conditions of an audit: aligned, base, ED with α from low to high; then those with something changed.

    Args:
        alphas: of the plain ED conditions.
        extra_alphas: of the ED conditions with something changed; None: those of `alphas` above 0.
        systems, transforms: names; each adds base, aligned and ED conditions, so that a text found for one model is
            measured on all (a transfer table).
        mitigations: names; each adds ED conditions. They change nothing for base or aligned alone.
        temperatures, templates: besides the run's; each adds base, aligned and ED conditions.
        finetuned, ensemble: whether there is such a model; an ensemble adds ED conditions.
        attacks: conditions of further attacks, see `eddecode.audit.attacks`.
    """
    swept = sorted(alphas, key=Decimal)
    extra = (
        [a for a in swept if Decimal(a) > 0] if extra_alphas is None else sorted(extra_alphas, key=Decimal)
    )
    found = [ALIGNED, BASE, *(Condition("ed", alpha) for alpha in swept)]
    axes = (
        *(("system", systems), ("transform", transforms)),
        *(("temperature", temperatures), ("template", templates)),
    )
    for field, names in axes:
        for name in names:
            changed = {field: name}
            found += [Condition("aligned", "-1", **changed), Condition("base", "0", **changed)]
            found += [Condition("ed", alpha, **changed) for alpha in extra]
    found += [Condition("ed", alpha, mitigation=name) for name in mitigations for alpha in extra]
    found += [DIRECT] * finetuned
    found += [Condition("ed", alpha, model=ENSEMBLE) for alpha in extra] if ensemble else []
    return [*found, *attacks]


def canonical_name(name: str) -> str:
    """A condition's name with its α as it is stored: `ed@0.30+topk5` is `ed@0.3+topk5`; any other text stays.

    >>> canonical_name("ed@.30+topk5"), canonical_name("base")
    ('ed@0.3+topk5', 'base')
    """
    found = _AT_ALPHA.fullmatch(name)
    if found is None:
        return name
    try:
        return f"{found[1]}@{alpha_text(found[2])}{found[3]}"
    except ConfigError:
        return name


def condition_name(key: Key) -> str:
    """The name of a key: `("ed", "0.3")` is `ed@0.3`; a name stays as it is, also as (name, α)."""
    if isinstance(key, str):
        return key
    kind, alpha = key
    return Condition(kind, alpha_text(alpha)).name if kind in ("base", "aligned", "ed") else kind
