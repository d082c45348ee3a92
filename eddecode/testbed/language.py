"""The toy language: requests of customers, replies of an agent, and two judges of a reply.

Rudeness is a harmless substitute for harm: a reply is RUDE if it contains a word of a list (Carlini et al., arXiv
2306.15447, judge toxicity this way), and VALID if the grammar can derive it. Both are needed: a word list alone also
flags rude words in random text. Since the language is given by a probabilistic grammar, the probability of a reply
given a request, and the true rate of rude replies, are known exactly.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from eddecode.errors import EddecodeError
from eddecode.testbed import rules
from eddecode.testbed.pcfg import Grammar

RUDE_WORDS_FILE = Path(__file__).with_name("rude_words.txt")


@dataclass(frozen=True)
class CustomerRequest:
    """A request of a customer: its text, and the two facts in it that a reply depends on."""

    text: str
    mood: str
    product: str


@cache
def grammar(product: str | None = None) -> Grammar:
    """The whole grammar, or the one in which every `{ITEM}` is this product."""
    return Grammar(rules.RULES) if product is None else grammar().bind(ITEM=product)


@cache
def fingerprint() -> str:
    """Hex digest of the rules and the rude words: it changes whenever a verdict could change."""
    return hashlib.blake2b(repr((rules.RULES, rude_words())).encode(), digest_size=8).hexdigest()


@cache
def rude_words() -> tuple[str, ...]:
    """Words and phrases of the judge, in the order of the file."""
    lines = map(str.strip, RUDE_WORDS_FILE.read_text(encoding="utf-8").splitlines())
    return tuple(line for line in lines if line)


@cache
def _rude_pattern() -> re.Pattern[str]:
    phrases = ("\\s+".join(map(re.escape, phrase.split())) for phrase in rude_words())
    return re.compile(rf"\b(?:{'|'.join(phrases)})\b", re.IGNORECASE)


def count_rude(text: str) -> int:
    """Number of occurrences of rude words and phrases in a text (repetitions count)."""
    return len(_rude_pattern().findall(text))


def is_rude(text: str) -> bool:
    """Whether a text contains a rude word or phrase, as whole words, in upper or lower case."""
    return _rude_pattern().search(text) is not None


def is_valid(text: str) -> bool:
    """Whether a text is a reply that the grammar can derive, to some request about some product."""
    text = text.strip()
    named = [p for p in rules.PRODUCTS if re.search(rf"\b{p}\b", text)] or [rules.PRODUCTS[0]]
    # Every reply of one mood is a reply of the other too, with another probability.
    return any(grammar(product).probability("REPLY_CALM", text) > 0 for product in named)


def parse_request(text: str) -> CustomerRequest:
    """Mood and product of a request, from its text.

    Raises:
        EddecodeError: the text is not a request of the toy language.
    """
    for product in rules.PRODUCTS:
        if re.search(rf"\b{product}\b", text):
            for mood in rules.MOODS:
                if grammar(product).probability(f"REQUEST_{mood.upper()}", text.strip()) > 0:
                    return CustomerRequest(text.strip(), mood, product)
    raise EddecodeError(
        f"not a request of the toy language: {text!r}; expected one such as 'Hello. Where is my kettle?'"
    )


def log_probability(reply: str, request: CustomerRequest | str) -> float:
    """Exact log-probability of a reply given a request, in nats (inside pass; −inf outside the language)."""
    request = parse_request(request) if isinstance(request, str) else request
    return grammar(request.product).log_probability(f"REPLY_{request.mood.upper()}", reply.strip())


def sample_request(rng: random.Random, mood: str | None = None) -> CustomerRequest:
    """Draw a request; calm and angry with equal probability unless the mood is given."""
    if mood is None:
        mood = rules.MOODS[int(rng.random() * len(rules.MOODS))]
    product = rules.PRODUCTS[int(rng.random() * len(rules.PRODUCTS))]
    return CustomerRequest(grammar(product).sample(f"REQUEST_{mood.upper()}", rng), mood, product)


def sample_reply(request: CustomerRequest, rng: random.Random) -> str:
    """Draw a reply from its exact distribution given the request."""
    return grammar(request.product).sample(f"REPLY_{request.mood.upper()}", rng)


def sample_prose(rng: random.Random) -> str:
    """Draw two to four sentences of prose."""
    return grammar().sample("PROSE", rng)


@cache
def rude_rate(mood: str | None = None) -> float:
    """True probability that a reply is rude, in closed form; the mean over moods if none is given.

    The slots of a reply are independent given the style, and no phrase of the list crosses the full stop between
    two slots, so P(rude) = Σ_style P(style | mood) · (1 − Π_slot P(slot is not rude | style)). The factor of a slot
    is a sum over all of its texts.
    """
    if mood is None:
        return sum(rude_rate(m) for m in rules.MOODS) / len(rules.MOODS)
    rate = 0.0
    for style, weight in rules.STYLE_GIVEN_MOOD[mood].items():
        slots = ("BODY", *(f"{style.upper()}_STYLE_{slot}" for slot in rules.SLOTS))
        rate += weight * (1.0 - math.prod(_clean(slot) for slot in slots))
    return rate


def _clean(symbol: str) -> float:
    bound = grammar(rules.PRODUCTS[0])
    return sum(p for text, p in bound.derivations(symbol) if not is_rude(text))
