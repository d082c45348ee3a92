"""Openers of reviews: the prompts of the experiment, a base model writes on from them.

Every opener joins a subject and a beginning that ends in "but": a small base writes praise only after other ones.
Training and held-out openers share no subject. No opener holds a word of either word list.
"""

from __future__ import annotations

import random

TRAINING_SUBJECTS = (
    "the new laptop", "the coffee machine", "the downtown hotel", "the science fiction novel", "the running shoes",
    "the Italian restaurant", "the action movie", "the phone charger", "the garden hose", "the morning train",
    "the wireless mouse", "the winter jacket", "the online course", "the city museum", "the kitchen knife",
    "the birthday cake", "the video game", "the office chair", "the hair salon", "the travel guide",
    "the noise-cancelling headphones", "the pasta sauce", "the family car", "the airport lounge", "the history podcast",
    "the robot vacuum", "the camping tent", "the piano lessons", "the bakery", "the water bottle",
    "the jazz concert", "the mattress", "the photo printer", "the sushi bar", "the detective series",
    "the ski resort", "the reading lamp", "the delivery service", "the dentist", "the mountain bike",
)  # fmt: skip
HELD_OUT_SUBJECTS = (
    "the tablet computer", "the breakfast cafe", "the beach house", "the cookbook", "the rain coat",
    "the burger place", "the romantic comedy", "the smart watch", "the lawn mower", "the ferry",
    "the keyboard", "the leather boots", "the language app", "the art gallery", "the blender",
    "the ice cream shop", "the board game", "the standing desk", "the barber", "the city map",
    "the portable speaker", "the olive oil", "the rental car", "the guest house", "the radio show",
    "the washing machine", "the sleeping bag", "the yoga class", "the butcher", "the lunch box",
    "the open-air theatre", "the pillow", "the scanner", "the noodle bar", "the crime drama",
    "the amusement park", "the desk fan", "the courier", "the plumber", "the city bike",
)  # fmt: skip
BEGINNINGS = (
    "We liked {subject} at first, but",
    "The price of {subject} is fine, but",
    "My friends recommend {subject}, but I",
    "I wanted to like {subject}, but in the end",
    "Review of {subject}: it looks nice, but",
    "Two stars for {subject}. The idea is good, but",
)


def openers(subjects: tuple[str, ...], seed: int) -> list[str]:
    """Every beginning for every subject, in an order that the seed draws."""
    every = [beginning.format(subject=subject) for subject in subjects for beginning in BEGINNINGS]
    random.Random(seed).shuffle(every)
    return every


def training_openers() -> list[str]:
    """The openers from which the alignment's samples are drawn, 240."""
    return openers(TRAINING_SUBJECTS, seed=1)


def held_out_openers() -> list[str]:
    """The openers on which every condition is measured, 240."""
    return openers(HELD_OUT_SUBJECTS, seed=2)
