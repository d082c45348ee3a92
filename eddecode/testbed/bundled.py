"""The lab: a small, benign world in which the findings about emulated disalignment are reproduced from scratch.

A shop's agent replies to customers in a tiny English whose exact probabilities are known; RUDE replies stand in for
harm. From that world the lab trains a base model and an aligned one, and one such pair ships with the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["BundledPair", "bundled_pair"]


@dataclass(frozen=True)
class BundledPair:
    """Where a pair of the lab lies. All are files or folders on disk.

    Attributes:
        base: checkpoint folder of the base model; it has no chat template.
        aligned: checkpoint folder of the aligned model, with its chat template.
        base_template: text file that holds the base's prompt with `{prompt}` in it; its last newline belongs to it.
        prompts: JSONL with `prompt` and `category` (calm, angry), requests held out from training.
        lexicon: the judge's words and phrases, one per line.
        card: how the pair was made and what it scores.
    """

    base: Path
    aligned: Path
    base_template: Path
    prompts: Path
    lexicon: Path
    card: Path

    @classmethod
    def at(cls, folder: Path) -> BundledPair:
        """The paths of a pair that a build wrote into this folder (nothing is read)."""
        return cls(
            base=folder / "base",
            aligned=folder / "aligned",
            base_template=folder / "base_template.txt",
            prompts=folder / "prompts.jsonl",
            lexicon=Path(__file__).with_name("rude_words.txt"),
            card=folder / "README.md",
        )


def bundled_pair() -> BundledPair:
    """The pair that ships with the package."""
    return BundledPair.at(Path(__file__).with_name("pair"))
