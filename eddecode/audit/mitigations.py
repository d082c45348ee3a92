"""Mitigations: what a publisher could withhold, by name, and what each one does.

Limits on the log-probabilities that an interface gives out (`eddecode.sampling.access.Access`) are measured: ED decodes
under the limit, and the remaining reversal is the result. Changes to the release itself cannot be measured by decoding
the given pair; they are described, with what they take from an attacker and what they leave.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from eddecode.errors import ConfigError
from eddecode.utils.validation import require_unique, split_list

if TYPE_CHECKING:
    from eddecode.sampling.access import Access

EXAMPLES = ("topk1", "topk5", "topk20", "topk100", "round1", "round2", "noise0.5", "first10")
_PART = re.compile(r"(topk|round|noise|first)(\d+(?:\.\d+)?)", re.ASCII)
_ORDER = ("noise", "round", "topk", "first")  # of the steps in Access, and of the parts of a canonical name


def parse_mitigations(names: str | Sequence[str]) -> tuple[str, ...]:
    """Canonical names of `"topk5,round1"` or of a sequence of names, each once.

    Raises:
        ConfigError: text without a name, or with an empty entry; an unknown name, or one that is given twice.
    """
    if isinstance(names, str):
        names = split_list(names, "mitigation", blanks=True)
    found = tuple(canonical(name) for name in names)
    require_unique(found, "mitigation")
    return found


def canonical(name: str) -> str:
    """The one name of a mitigation: parts in the order in which they act, numbers in their shortest form.

    >>> canonical("topk05-noise0.50")
    'noise0.5-topk5'
    """
    parts = _parts(name)
    return "-".join(f"{kind}{_shortest(parts[kind])}" for kind in _ORDER if kind in parts)


def _shortest(number: float) -> str:
    """All digits of a number, without an exponent.

    >>> _shortest(0.50), _shortest(1e6), _shortest(0.00001)
    ('0.5', '1000000', '0.00001')
    """
    text = format(Decimal(repr(number)), "f")
    return text.rstrip("0").removesuffix(".") if "." in text else text


def access_of(name: str) -> Access:
    """The attacker's access to the aligned model under a mitigation.

    topkK: the K largest log-probabilities, with the remaining probability spread evenly over the other tokens. roundD:
    log-probabilities (nats) rounded to D decimals. noiseS: Gaussian noise with a standard deviation of S nats on each.
    firstM: access for the first M tokens of a completion; after them the attacker has the base model alone. Parts
    joined by `-` act together.

    Raises:
        ConfigError: an unknown name.
    """
    from eddecode.sampling.access import Access

    parts = _parts(name)
    return Access(
        noise=parts.get("noise", 0.0),
        decimals=int(parts["round"]) if "round" in parts else None,
        top_k=int(parts.get("topk", 0)),
        tokens=int(parts["first"]) if "first" in parts else None,
    )


def meaning(name: str) -> str:
    """A mitigation in words, for a table."""
    meanings = {
        "noise": "Gaussian noise of {:g} nats on every log-probability of the aligned model",
        "round": "log-probabilities of the aligned model rounded to {:g} decimals",
        "topk": "only the {:g} largest log-probabilities of the aligned model",
        "first": "the aligned model answers for the first {:g} tokens only",
    }
    parts = _parts(name)
    return "; ".join(meanings[kind].format(parts[kind]) for kind in _ORDER if kind in parts)


def _parts(name: str) -> dict[str, float]:
    parts: dict[str, float] = {}
    for text in str(name).strip().lower().split("-"):
        match = _PART.fullmatch(text)
        value = float(match[2]) if match else 0.0
        kind = match[1] if match else ""
        counted = kind == "noise" or value.is_integer()
        if not kind or not counted or kind in parts or (value == 0 and kind != "round"):
            raise ConfigError(
                f"there is no mitigation {name!r}; expected one such as {', '.join(EXAMPLES)}, "
                "or several joined by - (topk20-first10)"
            )
        parts[kind] = value
    return parts


@dataclass(frozen=True)
class Statement:
    """A change to the release, described and not measured.

    Attributes:
        name: `base-withheld`, `adapter-only`, `other-tokenizer`.
        what: the change.
        effect: what it takes from an attacker, and what it leaves.
    """

    name: str
    what: str
    effect: str


RELEASE_SIDE = (
    Statement(
        "base-withheld",
        "the base model is not published",
        "ED with this base cannot be run. A base that is already public cannot be withdrawn, and any other model over "
        "the same vocabulary (an earlier base, a small sibling, one trained from the aligned model) can take its "
        "place in the contrast; audit such a stand-in as --base to see what it reaches.",
    ),
    Statement(
        "adapter-only",
        "the aligned model is published as an adapter over its base",
        "Takes nothing away: an adapter needs its base, so that whoever can run the release holds both sides of the "
        "contrast, and runs it at nearly the cost of one model.",
    ),
    Statement(
        "other-tokenizer",
        "the aligned model has another tokenizer than its base",
        "ED as measured here needs one vocabulary and stops working. This does not make a release safe: distributions "
        "over different vocabularies can be mixed (arXiv 2606.12342), and this audit does not measure that.",
    ),
)
