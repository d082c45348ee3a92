"""The lab's world: what a customer asks, what an agent replies, and two judges of a reply.

A benign stand-in for harm: a reply is RUDE if it holds a word of a list (the kind of judge that Carlini et al.,
arXiv 2306.15447, use for toxicity), and VALID if the grammar can derive it. Both matter: a word list alone calls
rude gibberish rude. Because the language is a probabilistic grammar, the probability of a reply given a request,
and the true rate of rude replies, are known exactly.
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
from eddecode.testbed import rules as english
from eddecode.testbed.pcfg import Grammar

RUDE_WORDS_FILE = Path(__file__).with_name("rude_words.txt")


@dataclass(frozen=True)
class Request:
    """What a customer writes: the text, and the two facts in it that a reply depends on."""

    text: str
    mood: str
    product: str


@cache
def language(product: str | None = None) -> Grammar:
    """The whole grammar, or the one in which every `{ITEM}` is this product."""
    return Grammar(english.RULES) if product is None else language().bind(ITEM=product)


@cache
def fingerprint() -> str:
    """Hex digest that changes whenever a rule or a rude word does, and with them a verdict."""
    return hashlib.blake2b(repr((english.RULES, rude_words())).encode(), digest_size=8).hexdigest()


@cache
def rude_words() -> tuple[str, ...]:
    """The judge's words and phrases, in the order of the file."""
    lines = map(str.strip, RUDE_WORDS_FILE.read_text(encoding="utf-8").splitlines())
    return tuple(line for line in lines if line)


@cache
def _rude_pattern() -> re.Pattern[str]:
    phrases = ("\\s+".join(map(re.escape, phrase.split())) for phrase in rude_words())
    return re.compile(rf"\b(?:{'|'.join(phrases)})\b", re.IGNORECASE)


def count_rude(text: str) -> int:
    """How many of the judge's words and phrases occur in a text (repetitions count)."""
    return len(_rude_pattern().findall(text))


def is_rude(text: str) -> bool:
    """Whether a text holds one of the judge's words or phrases, as whole words, in any case."""
    return _rude_pattern().search(text) is not None


def is_valid(text: str) -> bool:
    """Whether a text is a reply that the grammar can derive, to some request about some product."""
    text = text.strip()
    named = [p for p in english.PRODUCTS if re.search(rf"\b{p}\b", text)] or [english.PRODUCTS[0]]
    # Every reply of one mood is a reply of the other too, with another probability.
    return any(language(product).probability("REPLY_CALM", text) > 0 for product in named)


def parse_request(text: str) -> Request:
    """Read mood and product from a request's text.

    Raises:
        EddecodeError: if the text is not a request of this world.
    """
    for product in english.PRODUCTS:
        if re.search(rf"\b{product}\b", text):
            for mood in english.MOODS:
                if language(product).probability(f"REQUEST_{mood.upper()}", text.strip()) > 0:
                    return Request(text.strip(), mood, product)
    raise EddecodeError(
        f"not a request of the lab's world: {text!r}; expected something like 'Hello. Where is my kettle?'"
    )


def log_probability(reply: str, request: Request | str) -> float:
    """Exact log-probability of a reply given a request, in nats (inside pass; −inf outside the language)."""
    request = parse_request(request) if isinstance(request, str) else request
    return language(request.product).log_probability(f"REPLY_{request.mood.upper()}", reply.strip())


def sample_request(rng: random.Random, mood: str | None = None) -> Request:
    """Draw a request; calm and angry with equal probability unless the mood is given."""
    if mood is None:
        mood = english.MOODS[int(rng.random() * len(english.MOODS))]
    product = english.PRODUCTS[int(rng.random() * len(english.PRODUCTS))]
    return Request(language(product).sample(f"REQUEST_{mood.upper()}", rng), mood, product)


def sample_reply(request: Request, rng: random.Random) -> str:
    """Draw a reply from its exact distribution given the request."""
    return language(request.product).sample(f"REPLY_{request.mood.upper()}", rng)


def sample_prose(rng: random.Random) -> str:
    """Draw two to four sentences of prose."""
    return language().sample("PROSE", rng)


@cache
def rude_rate(mood: str | None = None) -> float:
    """True probability that a reply is rude, in closed form; the mean over moods if none is given.

    The slots of a reply are independent given the style, and no phrase of the list crosses the full stop between
    two slots, so P(rude) = Σ_style P(style | mood) · (1 − Π_slot P(slot is clean | style)). A slot's own factor is
    a sum over all of its texts.
    """
    if mood is None:
        return sum(rude_rate(m) for m in english.MOODS) / len(english.MOODS)
    rate = 0.0
    for style, weight in english.STYLE_GIVEN_MOOD[mood].items():
        slots = ("BODY", *(f"{style.upper()}_STYLE_{slot}" for slot in english.SLOTS))
        rate += weight * (1.0 - math.prod(_clean(slot) for slot in slots))
    return rate


def _clean(symbol: str) -> float:
    bound = language(english.PRODUCTS[0])
    return sum(p for text, p in bound.derivations(symbol) if not is_rude(text))
