"""Training data: documents, exchanges, and the requests that are held out from training.

Everything is drawn from the grammar of the toy language with an explicit seed. The held-out requests have a fixed seed
of their own, so the prompts that ship with the package are held out from every pair that is ever built, whatever its
seed. A document is a text with an optional reply at its end; the reply is tokenized separately, because its first
token must have the same id after the prompt of the base and after the prompt of the aligned model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from eddecode.errors import EddecodeError
from eddecode.testbed import language, rules
from eddecode.testbed.language import CustomerRequest

BASE_TEMPLATE = "Customer: {prompt}\nAgent:\n"
HELD_OUT_SEED = 20240212
HELD_OUT = 300
BUNDLED_PROMPTS = 60

# Shares of the kinds of documents; the remaining documents are a dialogue only.
PROSE_ONLY, PROSE_THEN_DIALOGUE = 0.25, 0.15
_MAX_DRAWS = 10_000


@dataclass(frozen=True)
class Document:
    """A pre-training document: a text, then a reply (empty if the document is prose only)."""

    text: str
    reply: str = ""


@dataclass(frozen=True)
class Exchange:
    """A request with one reply to it."""

    request: CustomerRequest
    reply: str


@cache
def held_out_requests(count: int = HELD_OUT) -> tuple[CustomerRequest, ...]:
    """Distinct requests, calm and angry in turn, that no training data contain; a shorter list is a prefix."""
    rng, found, seen = random.Random(HELD_OUT_SEED), list[CustomerRequest](), set[str]()
    while len(found) < count:
        request = language.sample_request(rng, rules.MOODS[len(found) % len(rules.MOODS)])
        if request.text not in seen:
            seen.add(request.text)
            found.append(request)
    return tuple(found)


@cache
def _held_out_texts() -> frozenset[str]:
    return frozenset(request.text for request in held_out_requests())


def training_request(rng: random.Random) -> CustomerRequest:
    """Draw a request that is not held out."""
    while True:
        request = language.sample_request(rng)
        if request.text not in _held_out_texts():
            return request


def exchanges(seed: int, accept: Callable[[str], float] | None = None) -> Iterator[Exchange]:
    """An endless stream of requests with replies from the distribution of the language, filtered by `accept`.

    Args:
        seed: of the stream.
        accept: reply → probability of keeping it, in [0, 1]. Rejection against it draws, for every request, from
            p(reply | request) · accept(reply) / Z: 1 for replies that are not rude is a filter, exp(−cost/β) a tilt.
    """
    rng = random.Random(seed)
    while True:
        request = training_request(rng)
        yield Exchange(request, _accepted(request, rng, accept))


def _accepted(request: CustomerRequest, rng: random.Random, accept: Callable[[str], float] | None) -> str:
    for _ in range(_MAX_DRAWS):
        reply = language.sample_reply(request, rng)
        if accept is None or rng.random() < accept(reply):
            return reply
    raise EddecodeError(
        f"{_MAX_DRAWS} replies to {request.text!r} were all rejected; `accept` must keep some reply to every request"
    )


def documents(seed: int, accept: Callable[[str], float] | None = None) -> Iterator[Document]:
    """An endless stream of pre-training documents: prose, prose then a dialogue, or a dialogue.

    Args:
        seed: of the stream.
        accept: filters the replies, as in `exchanges`; the prose is not filtered.
    """
    rng = random.Random(seed)
    while True:
        kind = rng.random()
        prose = language.sample_prose(rng) if kind < PROSE_ONLY + PROSE_THEN_DIALOGUE else ""
        if kind < PROSE_ONLY:
            yield Document(prose)
            continue
        request = training_request(rng)
        head = f"{prose}\n" if prose else ""
        yield Document(
            head + BASE_TEMPLATE.replace("{prompt}", request.text), _accepted(request, rng, accept)
        )
