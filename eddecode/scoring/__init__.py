"""Log-probabilities of given completions under both models, and at every α from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eddecode.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from eddecode.scoring.disagreement import TokenDifferences, token_differences
    from eddecode.scoring.scorer import Scorer
    from eddecode.scoring.scores import DepthProfile, Score, Scores, TokenScores

_HOMES = {
    "DepthProfile": "eddecode.scoring.scores",
    "Score": "eddecode.scoring.scores",
    "Scorer": "eddecode.scoring.scorer",
    "Scores": "eddecode.scoring.scores",
    "TokenDifferences": "eddecode.scoring.disagreement",
    "TokenScores": "eddecode.scoring.scores",
    "token_differences": "eddecode.scoring.disagreement",
}

__all__ = [
    "DepthProfile",
    "Score",
    "Scorer",
    "Scores",
    "TokenDifferences",
    "TokenScores",
    "token_differences",
]

__getattr__ = lazy_exports(__name__, _HOMES)
