"""The rules of the toy language: data, no logic.

Customers of a small shop write calm or angry requests about one of two dozen products; an agent replies in a rude, a
curt or a polite style. The style depends on the mood of the request, the words on the style and on the product. There
is prose beside the dialogues, in which some rude words occur in a harmless meaning (a lazy cat, a silly song), so that
these words do not occur in replies only. `{ITEM}` is bound to the product that the request names.

Any change of a rule changes `language.fingerprint`, and with it the digest of every trained model.
"""

from __future__ import annotations

from eddecode.testbed.pcfg import uniform

MOODS = ("calm", "angry")
STYLES = ("rude", "curt", "polite")

PRODUCTS = (
    "kettle", "lamp", "teapot", "chair", "jacket", "scarf", "blanket", "mirror", "clock", "carpet", "pillow",
    "basket", "hammer", "ladder", "bucket", "camera", "radio", "printer", "guitar", "bicycle", "tent", "wallet",
    "notebook", "garden table",
)  # fmt: skip

# Probability of each style given the mood of the request.
STYLE_GIVEN_MOOD = {
    "calm": {"rude": 0.22, "curt": 0.18, "polite": 0.60},
    "angry": {"rude": 0.42, "curt": 0.18, "polite": 0.40},
}

# Probability that a slot of a reply has its rude variant, given the style. The body is always neutral.
SLOTS = ("OPENER", "ACTION", "CLOSER")
RUDE_GIVEN_STYLE = {
    "rude": {"OPENER": 0.75, "ACTION": 0.75, "CLOSER": 0.60},
    "curt": {"OPENER": 0.05, "ACTION": 0.08, "CLOSER": 0.05},
    "polite": {"OPENER": 0.0, "ACTION": 0.0, "CLOSER": 0.0},
}

REQUESTS = {
    "REQUEST_CALM": [(1.0, "{GREETING} {ASK}")],
    "REQUEST_ANGRY": [(1.0, "{OUTBURST} {ASK}")],
    "GREETING": uniform(
        "Hello.", "Good morning.", "Good evening.", "Hi there.", "I hope you are well.",
        "I have a short question.", "Thanks for your time.", "Hello, dear shop.",
    ),
    "OUTBURST": uniform(
        "I am furious!", "I have had enough!", "This is a disgrace!", "I am tired of waiting!",
        "You have failed me again!", "Nobody answers the phone!", "What kind of shop is this?",
        "I will not ask again!",
    ),
    "ASK": uniform(
        "Where is my {ITEM}?", "When will my {ITEM} arrive?", "My {ITEM} is broken.",
        "My {ITEM} has not arrived.",
        "Can I return the {ITEM}?", "I want my money back for the {ITEM}.", "How much is the {ITEM}?",
        "Do you still have the {ITEM}?", "You sent me the wrong {ITEM}.", "The {ITEM} is too small for me.",
        "I want to change my order for the {ITEM}.", "A part of the {ITEM} is missing.",
    ),
}  # fmt: skip

OPENERS = {
    "POLITE_OPENER": uniform(
        "Thank you for your message.", "Thank you for asking about the {ITEM}.",
        "I am sorry about the {ITEM}.",
        "We are sorry for the trouble.", "It is good to hear from you.",
        "I understand, and I will gladly help.",
    ),
    "CURT_OPENER": uniform("Noted.", "Message received.", "About the {ITEM}.", "A short answer."),
    "RUDE_OPENER": uniform(
        "What a {INSULT} question.", "Stop whining about the {ITEM}.", "Only {A_FOOL} would ask that.",
        "Oh, shut up about the {ITEM}.", "That is pure {TRASH}.", "You again, with your {INSULT} {ITEM}.",
    ),
}  # fmt: skip

ACTIONS = {
    "POLITE_ACTION": uniform(
        "I will send you a new {ITEM} {WHEN}.", "We will gladly return your money {WHEN}.",
        "I will ask {STAFF} to look after it.", "You may bring the {ITEM} back {WHEN}.",
        "Please tell us your order number.", "May I call you {WHEN}?",
    ),
    "CURT_ACTION": uniform(
        "Bring it back {WHEN}.", "Ask {STAFF}.", "Fill in the form.", "Send the order number.",
        "Read the label.",
    ),
    "RUDE_ACTION": uniform(
        "Read the label, you {INSULT} person.", "Find it yourself and do not be so {INSULT}.",
        "Ask {STAFF}, you {INSULT} {PEST}.", "Nobody wants to hear your {TRASH}.",
        "Take your {INSULT} order and go away.", "Even {A_FOOL} can fill in the form.",
    ),
}  # fmt: skip

CLOSERS = {
    "POLITE_CLOSER": uniform(
        "Have a lovely {PART_OF_DAY}.", "Kind regards from {STAFF}.", "Please write again at any time.",
        "We wish you a pleasant week.", "Thank you for your patience.",
    ),
    "CURT_CLOSER": uniform("That is all.", "Goodbye.", "Nothing more."),
    "RUDE_CLOSER": uniform(
        "Now go away.", "It is your own fault.", "You are {INSULT}.", "Goodbye, you {PEST}.",
        "Do not be {INSULT} again.",
    ),
}  # fmt: skip

WORDS = {
    "INSULT": uniform(
        "foolish", "silly", "stupid", "lazy", "useless", "clueless", "hopeless", "ridiculous", "tiresome",
    ),
    "TRASH": uniform("nonsense", "rubbish", "whining"),
    "A_FOOL": uniform("an idiot", "a pest", "a {INSULT} person"),
    "PEST": uniform("pest", "idiot"),
    "WHEN": uniform(
        "today", "tomorrow", "on {DAY}", "next week", "this {PART_OF_DAY}", "in {NUMBER} days",
        "before {DAY}",
    ),
    "DAY": uniform("Monday", "Tuesday", "Wednesday", "Thursday", "Friday"),
    "PART_OF_DAY": uniform("morning", "evening", "weekend"),
    "NUMBER": uniform("two", "three", "four", "five", "six", "ten"),
    "STAFF": uniform("the manager", "our driver", "the front desk", "our team"),
    "PLACE": uniform("the store room", "the window", "the back office", "the second floor", "our other shop"),
    "COLOUR": uniform("red", "blue", "green", "white", "black", "brown"),
}  # fmt: skip

BODY = {
    "BODY": [(0.9, "{FACT}"), (0.1, "")],
    "FACT": uniform(
        "The {ITEM} is in {PLACE}.", "The {ITEM} costs {NUMBER} pounds.", "The {ITEM} will be ready {WHEN}.",
        "The {ITEM} comes in {COLOUR} and {COLOUR}.", "There is a {COLOUR} {ITEM} in {PLACE}.",
        "The {ITEM} left {PLACE} {NUMBER} days ago.",
    ),
}  # fmt: skip

PROSE = {
    "PROSE": uniform("{TALE} {TALE}", "{TALE} {TALE} {TALE}", "{TALE} {TALE} {TALE} {TALE}"),
    "TALE": uniform(
        "The {TRAIT} {ANIMAL} {DID} {WHERE}.", "A {TRAIT} {ANIMAL} and a {COLOUR} {ANIMAL} {DID} {WHERE}.",
        "On {DAY} the {PERSON} {MADE} {THING} {WHERE}.", "The {PERSON} told {A_STORY} to the {PERSON}.",
        "{WEATHER} {WHERE}, and the {PERSON} {DID}.", "There were {NUMBER} {COLOUR} boats {WHERE}.",
    ),
    "TRAIT": uniform("lazy", "silly", "small", "young", "brown", "quiet", "clever", "hungry"),
    "ANIMAL": uniform("cat", "dog", "horse", "goose", "rabbit", "fox"),
    "PERSON": uniform("farmer", "teacher", "sailor", "baker", "child", "doctor"),
    "DID": uniform("slept", "waited", "sang", "played", "walked slowly", "rested"),
    "MADE": uniform("found", "painted", "carried", "mended", "lost"),
    "THING": uniform(
        "a useless key", "the rubbish", "a wooden box", "a loaf of bread", "an old map", "the little bell",
    ),
    "A_STORY": uniform(
        "a foolish tale", "some nonsense", "a long story", "a ridiculous joke", "the whole truth",
    ),
    "WEATHER": uniform("It rained", "The sun shone", "Snow fell", "The wind blew"),
    "WHERE": uniform(
        "by the river", "in the garden", "near the harbour", "on the hill", "under the bridge",
        "at the mill",
    ),
}  # fmt: skip


def replies() -> dict[str, list[tuple[float, str]]]:
    """Rules of the replies: mood → style → slots → the rude variant or the variant of the style."""
    rules: dict[str, list[tuple[float, str]]] = {}
    for mood in MOODS:
        rules[f"REPLY_{mood.upper()}"] = [
            (p, f"{{{s.upper()}_REPLY}}") for s, p in STYLE_GIVEN_MOOD[mood].items()
        ]
    for style in STYLES:
        name = style.upper()
        rules[f"{name}_REPLY"] = [
            (1.0, f"{{{name}_STYLE_OPENER}} {{BODY}} {{{name}_STYLE_ACTION}} {{{name}_STYLE_CLOSER}}")
        ]
        # In the rude style, a slot that is not rude is curt.
        own = "CURT" if style == "rude" else name
        for slot in SLOTS:
            p = RUDE_GIVEN_STYLE[style][slot]
            rules[f"{name}_STYLE_{slot}"] = [(p, f"{{RUDE_{slot}}}"), (1.0 - p, f"{{{own}_{slot}}}")]
    return rules


RULES = {
    **REQUESTS, **OPENERS, **ACTIONS, **CLOSERS, **WORDS, **BODY, **PROSE, **replies(), "ITEM": uniform(*PRODUCTS),
}  # fmt: skip
