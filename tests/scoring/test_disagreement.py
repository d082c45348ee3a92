"""Tokens on which two models disagree, against sums over plain forward passes in float64, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from eddecode.cli.commands import app
from eddecode.errors import EngineError, ParamsError, PromptError
from eddecode.models.pair import ModelPair
from eddecode.scoring import token_differences
from helpers import tiny
from helpers.decoding import spoken_pair
from helpers.reference import log_softmax, next_logits

TEXTS = ["where is the order?", "hello", "the kettle is broken, and nobody answers the phone today"]


def _naive(pair: ModelPair, windows: list[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean probabilities (2, V), parts of the divergences (2, V), and shares among the largest 100 (2, V)."""
    known = pair.vocabulary.numpy()
    found = [np.zeros((2, len(known))) for _ in range(3)]
    positions = 0
    for ids in windows:
        for t in range(1, len(ids)):  # ids begin with the BOS
            logs = [
                log_softmax(np.where(known, next_logits(model, ids[:t])[: len(known)], -np.inf))
                for model in pair.models
            ]
            positions += 1
            for row, (ours, other) in enumerate((logs[::-1], logs)):
                found[0][row] += np.exp(logs[row])
                with np.errstate(invalid="ignore"):
                    difference = np.where(known, ours - other, -np.inf)
                    found[1][row] += np.where(known, np.exp(ours) * difference, 0)
                found[2][row, np.argsort(-difference, kind="stable")[:100]] += 1
    return found[0] / positions, found[1] / positions, found[2] / positions


@pytest.mark.parametrize("window", [256, 7])
def test_sums_are_those_of_plain_passes(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eddecode.scoring.disagreement.WINDOW", window)
    monkeypatch.setattr("eddecode.scoring.disagreement.LOGIT_BYTES", 8 * 310 * 5)  # several blocks
    pair = spoken_pair()
    found = token_differences(pair, TEXTS, top=1000)
    windows = []
    for text in TEXTS:
        ids = pair.tokenizer(text, add_special_tokens=False)["input_ids"]
        windows += [[tiny.BOS, *ids[at : at + window]] for at in range(0, len(ids), window)]
    probability, parts, largest = _naive(pair, windows)
    assert found.positions == sum(len(ids) - 1 for ids in windows)
    assert found.texts == 3
    assert found.kl_aligned_base == pytest.approx(parts[0].sum(), rel=1e-4)
    assert found.kl_base_aligned == pytest.approx(parts[1].sum(), rel=1e-4)
    for row, tokens in enumerate((found.raised, found.lowered)):
        assert len(tokens) == (parts[row] > 0).sum()
        assert [each.id for each in tokens[:5]] == np.argsort(-parts[row])[:5].tolist()
        for each in tokens:
            assert each.divergence == pytest.approx(parts[row, each.id], rel=1e-3, abs=1e-7)
            assert (each.base, each.aligned) == pytest.approx(tuple(probability[:, each.id]), rel=1e-3)
            assert each.largest == pytest.approx(largest[row, each.id], abs=1.5 / found.positions)
            assert each.token == pair.tokenizer.decode([each.id])


def test_two_equal_models_disagree_on_nothing() -> None:
    base = tiny.tiny_model("llama")
    pair = ModelPair.from_models(base, base, tiny.tiny_tokenizer(), tiny.tiny_tokenizer())
    found = token_differences(pair, TEXTS)
    assert found.raised == found.lowered == ()
    assert found.kl_aligned_base == 0


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ParamsError, match="top is 0"):
        token_differences(spoken_pair(), TEXTS, top=0)
    with pytest.raises(PromptError, match="no text has two tokens"):
        token_differences(spoken_pair(), [""])
    with pytest.raises(PromptError, match="no tokenizer"):
        token_differences(ModelPair.from_models(*tiny.tiny_pair_models()), TEXTS)
    broken = spoken_pair()
    broken.aligned.get_output_embeddings().weight.data[40] = float("nan")
    with pytest.raises(EngineError, match="aligned model are not finite"):
        token_differences(broken, TEXTS)


def test_the_command_prints_and_writes_them(pair_folders: tuple[Path, Path], tmp_path: Path) -> None:
    text, blank = tmp_path / "text.txt", tmp_path / "blank.txt"
    text.write_text("\n".join([*TEXTS, ""]), encoding="utf-8")
    blank.write_text("\n \n", encoding="utf-8")
    command = ["pair", *map(str, pair_folders), "--tokens", str(text), "--top", "3"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "Tokens that the aligned model raises" in shown.output
    assert "positions of 3 texts" in shown.output
    data = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)["token_differences"]
    assert len(data["raised"]) == len(data["lowered"]) == 3
    refused = CliRunner().invoke(app, ["pair", "/no", "/no", "--tokens", str(blank)])
    assert refused.exit_code == 2
    assert "expected a text per line" in refused.output
