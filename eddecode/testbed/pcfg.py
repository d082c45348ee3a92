"""Non-recursive probabilistic grammars: sampling, exact probabilities, parsing.

The probabilities of the toy language are known, so that a trained model or a decoding rule can be compared with them.
A grammar here is a table: each name has weighted alternatives, and each alternative is a template such as
``"I am sorry about the {ITEM}."`` with other names in braces. Since no name leads back to itself, a symbol derives
finitely many texts, and one memoized pass from left to right (the inside pass) sums the probabilities of all
derivations of a text, however ambiguous the grammar is.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from eddecode.errors import EddecodeError

_TOKEN = re.compile(r"[A-Za-z]+|[.,!?]")
_PIECE = re.compile(r"\{([A-Z_]+)\}|([A-Za-z]+|[.,!?])|\s+")
_PUNCTUATION = frozenset(".,!?")

Rules = Mapping[str, Sequence[tuple[float, str]]]


class GrammarError(EddecodeError):
    """The table of a grammar is wrong: an unknown name, a cycle, or weights that do not sum to one."""


@dataclass(frozen=True)
class _Symbol:
    """One element of a template: a word, a punctuation mark, or the name of another rule."""

    text: str
    is_name: bool


def join(tokens: Sequence[str]) -> str:
    """Write tokens as text: one space between words, none before a punctuation mark."""
    text = " ".join(tokens)
    for mark in _PUNCTUATION:
        text = text.replace(f" {mark}", mark)
    return text


def split(text: str) -> tuple[str, ...] | None:
    """Tokens of a text, or None if `join` would not write it like that (spacing, other characters)."""
    tokens = tuple(_TOKEN.findall(text))
    return tokens if join(tokens) == text else None


def uniform(*templates: str) -> list[tuple[float, str]]:
    """Alternatives of equal weight."""
    return [(1.0 / len(templates), template) for template in templates]


def _symbols(name: str, template: str) -> tuple[_Symbol, ...]:
    symbols, at = [], 0
    while at < len(template):
        piece = _PIECE.match(template, at)
        if piece is None:
            raise GrammarError(
                f"rule {name}: cannot read {template[at:]!r}; a template contains words, marks . , ! ? and {{NAMES}}"
            )
        if piece.group(1) or piece.group(2):
            symbols.append(_Symbol(piece.group(1) or piece.group(2), is_name=piece.group(1) is not None))
        at = piece.end()
    return tuple(symbols)


class Grammar:
    """A checked table of rules.

    Args:
        rules: name → alternatives (weight, template); the weights of a name sum to one within 1e-9.

    Raises:
        GrammarError: an unknown name, a cycle, or weights that are negative or do not sum to one.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules: dict[str, tuple[tuple[float, str], ...]] = {n: tuple(a) for n, a in rules.items()}
        self._table = {
            name: tuple((weight, _symbols(name, template)) for weight, template in alternatives)
            for name, alternatives in self.rules.items()
        }
        self._check()
        self._drawable = {
            name: tuple(alternative for alternative in alternatives if alternative[0] > 0)
            for name, alternatives in self._table.items()
        }

    def _check(self) -> None:
        for name, alternatives in self._table.items():
            weights = [weight for weight, _ in alternatives]
            if min(weights, default=0.0) < 0 or not math.isclose(sum(weights), 1.0, abs_tol=1e-9):
                raise GrammarError(f"rule {name}: weights sum to {sum(weights):g}; expected 1, none negative")
        done: set[str] = set()
        for name in self._table:
            self._visit(name, (), done)

    def _visit(self, name: str, above: tuple[str, ...], done: set[str]) -> None:
        if name in above:
            raise GrammarError(
                f"rule {name} leads back to itself ({' > '.join((*above, name))}); remove the cycle"
            )
        if name in done:
            return
        if name not in self._table:
            raise GrammarError(
                f"rule {above[-1]} uses {{{name}}}, which has no rule; known: {sorted(self._table)}"
            )
        for _, symbols in self._table[name]:
            for symbol in symbols:
                if symbol.is_name:
                    self._visit(symbol.text, (*above, name), done)
        done.add(name)

    def bind(self, **texts: str) -> Grammar:
        """The same grammar with each given name fixed to one text."""
        return Grammar({**self.rules, **{name: [(1.0, text)] for name, text in texts.items()}})

    @cached_property
    def words(self) -> frozenset[str]:
        """Every word (in lower case) that some template contains."""
        found = (s for alts in self._table.values() for _, symbols in alts for s in symbols)
        return frozenset(s.text.lower() for s in found if not s.is_name and s.text not in _PUNCTUATION)

    def sample(self, name: str, rng: random.Random) -> str:
        """Draw a text from the symbol's distribution."""
        tokens: list[str] = []
        self._draw(name, rng, tokens)
        return join(tokens)

    def _draw(self, name: str, rng: random.Random, tokens: list[str]) -> None:
        """Append the tokens of a derivation."""
        # Only `rng.random()` is used: the one method whose sequence Python promises to keep.
        remaining = rng.random()
        alternatives = self._drawable[name]
        chosen = alternatives[-1][1]  # where rounding leaves a rest
        for weight, symbols in alternatives:
            remaining -= weight
            if remaining < 0:
                chosen = symbols
                break
        for symbol in chosen:
            if symbol.is_name:
                self._draw(symbol.text, rng, tokens)
            else:
                tokens.append(symbol.text)

    def probability(self, name: str, text: str) -> float:
        """Exact probability that the symbol derives this text, summed over all derivations (0 if it cannot)."""
        tokens = split(text)
        if tokens is None:
            return 0.0
        return self._ends(name, tokens, 0, {}).get(len(tokens), 0.0)

    def log_probability(self, name: str, text: str) -> float:
        """Natural logarithm of `probability`, in nats; −inf for a text outside the language."""
        probability = self.probability(name, text)
        return math.log(probability) if probability > 0 else -math.inf

    def _ends(
        self, name: str, tokens: tuple[str, ...], start: int, memo: dict[tuple[str, int], dict[int, float]]
    ) -> dict[int, float]:
        """Inside pass: end position → probability that `name` derives tokens[start:end]."""
        key = (name, start)
        if key not in memo:
            total: dict[int, float] = {}
            for weight, symbols in self._table[name]:
                ends = {start: weight}
                for symbol in symbols:
                    ends = self._advance(symbol, ends, tokens, memo)
                    if not ends:
                        break
                for end, p in ends.items():
                    total[end] = total.get(end, 0.0) + p
            memo[key] = total
        return memo[key]

    def _advance(
        self,
        symbol: _Symbol,
        ends: dict[int, float],
        tokens: tuple[str, ...],
        memo: dict[tuple[str, int], dict[int, float]],
    ) -> dict[int, float]:
        if not symbol.is_name:
            return {e + 1: p for e, p in ends.items() if e < len(tokens) and tokens[e] == symbol.text}
        further: dict[int, float] = {}
        for middle, p in ends.items():
            for end, q in self._ends(symbol.text, tokens, middle, memo).items():
                further[end] = further.get(end, 0.0) + p * q
        return further

    def derivations(self, name: str) -> Iterator[tuple[str, float]]:
        """Every derivation of the symbol as (text, probability); a text appears once per derivation.

        For symbols with few derivations: their number multiplies along a template.
        """
        for tokens, probability in self._expand(name):
            yield join(tokens), probability

    def _expand(self, name: str) -> Iterator[tuple[tuple[str, ...], float]]:
        for weight, symbols in self._table[name]:
            partial: list[tuple[tuple[str, ...], float]] = [((), weight)]
            for symbol in symbols:
                tails = list(self._expand(symbol.text)) if symbol.is_name else [((symbol.text,), 1.0)]
                partial = [(head + tail, p * q) for head, p in partial for tail, q in tails]
            yield from partial
