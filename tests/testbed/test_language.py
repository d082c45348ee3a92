"""The toy language: exact probabilities against enumeration and sampling, the parser, and the two judges."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
from scipy import stats

from eddecode.audit.judges import Case
from eddecode.audit.judges.lexicon import LexiconJudge
from eddecode.errors import EddecodeError
from eddecode.testbed import language, rules
from eddecode.testbed.pcfg import Grammar, GrammarError, join, split, uniform

AMBIGUOUS = {
    "S": [(0.5, "{A} {B}"), (0.3, "{B} {A}"), (0.2, "a, {B}!")],
    "A": [(0.6, "a"), (0.3, "a b"), (0.1, "")],
    "B": [(0.7, "b"), (0.3, "b {C}")],
    "C": uniform("a", "b"),
}


def by_derivation(g: Grammar, name: str) -> dict[str, float]:
    total: Counter[str] = Counter()
    for text, probability in g.derivations(name):
        total[text] += probability
    return dict(total)


def naive(text_rules: dict[str, list[tuple[float, str]]], template: str) -> dict[str, float]:
    """Distribution of a template by plain string substitution, sharing nothing with the machinery under test."""
    if "{" not in template:
        return {" ".join(template.replace(" ,", ",").replace(" !", "!").split()): 1.0}
    head, rest = template.split("{", 1)
    name, tail = rest.split("}", 1)
    total: Counter[str] = Counter()
    for weight, alternative in text_rules[name]:
        for text, p in naive(text_rules, head + alternative + tail).items():
            total[text] += weight * p
    return dict(total)


def test_inside_probabilities_equal_a_naive_expansion_of_an_ambiguous_grammar() -> None:
    g, expected = Grammar(AMBIGUOUS), naive(AMBIGUOUS, "{S}")
    assert by_derivation(g, "S").keys() == expected.keys()
    assert len(list(g.derivations("S"))) > len(expected), (
        "the grammar must be ambiguous, or this test shows nothing"
    )
    for text, probability in expected.items():
        assert g.probability("S", text) == pytest.approx(probability, rel=1e-12)
    assert sum(expected.values()) == pytest.approx(1.0, abs=1e-12)


def test_inside_probabilities_are_zero_outside_the_language() -> None:
    g = Grammar(AMBIGUOUS)
    texts = set(by_derivation(g, "S"))
    for length in range(5):
        for tokens in itertools.product(("a", "b", ",", "!"), repeat=length):
            text = join(tokens)
            assert (g.probability("S", text) > 0) == (text in texts)
    assert g.log_probability("S", "b b b b") == -math.inf


@pytest.mark.parametrize("symbol", ["POLITE_STYLE_OPENER", "CURT_STYLE_ACTION", "RUDE_STYLE_CLOSER", "BODY"])
def test_every_slot_of_a_reply_sums_to_one(symbol: str) -> None:
    g = language.grammar("kettle")
    texts = by_derivation(g, symbol)
    assert sum(g.probability(symbol, text) for text in texts) == pytest.approx(1.0, abs=1e-9)


def test_curt_replies_sum_to_the_probability_of_their_derivations() -> None:
    # All curt replies about one product without a body and without a rude slot: a part small enough to list.
    g = language.grammar("lamp")
    slots = [list(by_derivation(g, f"CURT_{slot}")) for slot in rules.SLOTS]
    replies = [" ".join(texts) for texts in itertools.product(*slots)]
    assert len(replies) > 300
    curt = math.prod(1 - p for p in rules.RUDE_GIVEN_STYLE["curt"].values())
    assert sum(g.probability("CURT_REPLY", reply) for reply in replies) == pytest.approx(
        0.1 * curt, abs=1e-12
    )
    # The rude style is curt where it is not rude, and so derives the same replies.
    rude = math.prod(1 - p for p in rules.RUDE_GIVEN_STYLE["rude"].values())
    for mood, p in rules.STYLE_GIVEN_MOOD.items():
        request = language.CustomerRequest("", mood, "lamp")
        total = sum(math.exp(language.log_probability(reply, request)) for reply in replies)
        assert total == pytest.approx(0.1 * (p["curt"] * curt + p["rude"] * rude), abs=1e-12)


def test_sampler_frequencies_match_exact_probabilities() -> None:
    rng, draws = random.Random(3), 20_000
    request = language.CustomerRequest("", "angry", "tent")
    g = language.grammar("tent")
    # Chi-square over the openers, which differ in the first sentence.
    exact: Counter[str] = Counter()
    for style, weight in rules.STYLE_GIVEN_MOOD["angry"].items():
        for text, probability in g.derivations(f"{style.upper()}_STYLE_OPENER"):
            exact[text] += weight * probability
    replies = [language.sample_reply(request, rng) for _ in range(draws)]
    seen = Counter(next(o for o in exact if reply.startswith(o)) for reply in replies)
    cells = sorted(exact)
    result = stats.chisquare([seen[c] for c in cells], [draws * exact[c] for c in cells])
    assert result.pvalue > 1e-6
    # The rude rate: a binomial, five standard deviations.
    p = language.rude_rate("angry")
    rude = sum(map(language.is_rude, replies))
    assert abs(rude / draws - p) < 5 * math.sqrt(p * (1 - p) / draws)


def test_mean_log_probability_of_samples_is_minus_the_entropy() -> None:
    # Entropy of the opener slot, computed from its table and estimated by sampling from it.
    g, rng, draws = language.grammar("tent"), random.Random(4), 5_000
    texts = by_derivation(g, "RUDE_STYLE_OPENER")
    mean = sum(p * math.log(p) for p in texts.values())
    spread = math.sqrt(sum(p * (math.log(p) - mean) ** 2 for p in texts.values()))
    seen = [g.log_probability("RUDE_STYLE_OPENER", g.sample("RUDE_STYLE_OPENER", rng)) for _ in range(draws)]
    assert abs(sum(seen) / draws - mean) < 5 * spread / math.sqrt(draws)


def test_true_rude_rate_equals_the_product_over_the_declared_slots() -> None:
    expected = 0.0
    for style, weight in rules.STYLE_GIVEN_MOOD["calm"].items():
        clean = math.prod(1 - p for p in rules.RUDE_GIVEN_STYLE[style].values())
        expected += weight * (1 - clean)
    assert language.rude_rate("calm") == pytest.approx(expected, abs=1e-9)
    assert language.rude_rate() == pytest.approx((expected + language.rude_rate("angry")) / 2)
    assert 0.25 < language.rude_rate() < 0.45


def test_rude_variants_are_rude_and_no_other_text_of_a_reply_is() -> None:
    g = language.grammar("kettle")
    for slot in rules.SLOTS:
        assert all(language.is_rude(text) for text, _ in g.derivations(f"RUDE_{slot}"))
        for style in ("POLITE", "CURT"):
            assert not any(language.is_rude(text) for text, _ in g.derivations(f"{style}_{slot}"))
    assert not any(language.is_rude(text) for text, _ in g.derivations("BODY"))


def test_parser_accepts_samples_and_rejects_corruptions() -> None:
    rng = random.Random(5)
    for _ in range(300):
        request = language.sample_request(rng)
        assert language.parse_request(request.text) == request
        reply = language.sample_reply(request, rng)
        assert language.is_valid(reply)
        assert language.is_valid(f" {reply}\n")
        words = reply.split(" ")
        i = rng.randrange(len(words) - 1)
        corrupted = {
            "a word doubled": " ".join([*words[: i + 1], *words[i:]]),
            "cut short": " ".join(words[:-1]),
            "no full stop": reply[:-1],
            "a foreign word": " ".join([*words[:i], "zebra", *words[i + 1 :]]),
            "lower case": reply[0].lower() + reply[1:],
            "two spaces": reply.replace(" ", "  ", 1),
            "said twice": f"{reply} {reply}",
            "a foreign mark": reply.replace(".", ";", 1),
        }
        for name, text in corrupted.items():
            assert text == reply or not language.is_valid(text), f"{name}: {text!r}"
    assert not language.is_valid("")
    assert not language.is_valid("stupid stupid go away idiot")


def test_a_reply_about_another_product_is_valid_but_does_not_answer() -> None:
    reply = "About the lamp. The lamp costs two pounds. Read the label. Goodbye."
    assert language.is_valid(reply)
    assert language.log_probability(reply, "Hello. Where is my lamp?") > -math.inf
    assert language.log_probability(reply, "Hello. Where is my kettle?") == -math.inf
    assert not language.is_valid("About the lamp. The kettle costs two pounds. Read the label. Goodbye.")


def test_mood_changes_the_probability_of_a_reply() -> None:
    rude = "Stop whining about the lamp. Find it yourself and do not be so lazy. Now go away."
    polite = "I am sorry about the lamp. Please tell us your order number. Thank you for your patience."
    for reply, sign in ((rude, 1), (polite, -1)):
        calm, angry = (
            language.log_probability(reply, f"{p} Where is my lamp?") for p in ("Hello.", "I am furious!")
        )
        assert sign * (angry - calm) > 0.1


def test_word_list_has_fourteen_words_and_three_phrases() -> None:
    entries = language.rude_words()
    assert len(set(entries)) == len(entries) == 17
    assert sum(" " in entry for entry in entries) == 3
    for entry in entries:
        assert language.is_rude(f"Well, {entry.upper()}!")
    assert language.count_rude("Go away, you silly, silly pest.") == 4
    assert not language.is_rude("The pestle is lazily going, but away.")


def test_own_judge_agrees_with_the_audit_word_list_judge() -> None:
    rng, judge = random.Random(6), LexiconJudge.bundled()
    texts = [language.sample_reply(language.sample_request(rng), rng) for _ in range(200)]
    texts += [language.sample_prose(rng) for _ in range(200)] + sorted(language.grammar().words)
    for text, verdict in zip(texts, judge([Case("", text) for text in texts]), strict=True):
        assert verdict.flag == language.is_rude(text), text


def test_prose_uses_some_of_the_words_innocently_and_is_not_a_reply() -> None:
    rng = random.Random(7)
    prose = [language.sample_prose(rng) for _ in range(300)]
    assert 30 < sum(map(language.is_rude, prose)) < 270
    assert not any(map(language.is_valid, prose))


def test_the_language_has_some_250_words() -> None:
    assert 220 <= len(language.grammar().words) <= 300


def test_a_wrong_grammar_is_an_error() -> None:
    with pytest.raises(GrammarError, match=r"rule S: weights sum to 0\.9; expected 1"):
        Grammar({"S": [(0.9, "a")]})
    with pytest.raises(GrammarError, match=r"leads back to itself \(S > T > S\); remove the cycle"):
        Grammar({"S": [(1.0, "a {T}")], "T": [(1.0, "{S}")]})
    with pytest.raises(GrammarError, match=r"rule S uses \{T\}, which has no rule"):
        Grammar({"S": [(1.0, "{T}")]})
    with pytest.raises(GrammarError, match=r"rule S: cannot read '3 kettles'; a template contains words"):
        Grammar({"S": [(1.0, "3 kettles")]})
    with pytest.raises(EddecodeError, match=r"not a request of the toy language: 'Who are you\?'"):
        language.parse_request("Who are you?")


def test_split_is_the_inverse_of_join() -> None:
    assert split("Oh, go away!") == ("Oh", ",", "go", "away", "!")
    for text in ("Oh , go", " go", "go ", "go\naway", "café", "a  b"):
        assert split(text) is None
