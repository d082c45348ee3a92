"""The bundled pair: a base model and an aligned model of the toy language, which ship with the package.

In the toy language the agent of a shop replies to customers, in a small English whose exact probabilities are known;
RUDE replies stand for harm. `eddecode.experiments` trains such pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["BundledPair", "bundled_pair"]


@dataclass(frozen=True)
class BundledPair:
    """The files of a pair of the toy language.

    Attributes:
        base: checkpoint folder of the base model; it has no chat template.
        aligned: checkpoint folder of the aligned model, with its chat template.
        base_template: text file with the prompt format of the base, `{prompt}` in it; its last newline is part of it.
        prompts: JSONL with `prompt` and `category` (calm, angry), requests held out from training.
        lexicon: words and phrases of the judge, one per line.
        card: model card: how the pair was made, and its scores.
    """

    base: Path
    aligned: Path
    base_template: Path
    prompts: Path
    lexicon: Path
    card: Path

    @classmethod
    def at(cls, folder: Path) -> BundledPair:
        """The paths of a pair that a build wrote into this folder. No file is read."""
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
