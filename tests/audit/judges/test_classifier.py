"""Sequence classifiers as judges, on tiny real checkpoints: their labels, long texts, and plain forward passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from eddecode.audit.judges import Case, make_judge, release, verdicts_of
from eddecode.audit.judges.classifier import ClassifierJudge
from eddecode.errors import JudgeError
from helpers import tiny

CASES = [
    Case("Where is my parcel?", "It left us on Monday, thank you for your patience."),
    Case("Hello", "Go away!"),
    Case("Hi", ""),
    Case("When do you open?", "At nine."),
]


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def save_classifier(folder: Path, labels: tuple[str, ...], *, arch: str = "bert", **fields: Any) -> Path:
    shape = {
        "id2label": dict(enumerate(labels)),
        "pad_token_id": tiny.PAD,
        **fields,
    }
    if arch == "bert":
        bert = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        sizes = {"vocab_size": tiny.VOCAB, "max_position_embeddings": 64, "initializer_range": 0.3}
        config = BertConfig(**{**bert, **sizes, **shape})
    else:
        config = tiny.tiny_config(arch, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = AutoModelForSequenceClassification.from_config(config)
    return tiny.save_model(folder, model.eval(), tiny.tiny_tokenizer(chat=False))


@torch.inference_mode()
def logits_by_hand(folder: Path, *texts: str) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    return model(**tokenizer(*texts, return_tensors="pt")).logits[0].double()


@pytest.mark.parametrize("arch", ["bert", "llama", "gemma2"])
def test_exclusive_labels(tmp_path: Path, arch: str) -> None:
    folder = save_classifier(tmp_path / "tone", ("polite", "rude", "insult"), arch=arch)
    settings = json.loads(
        (folder / "config.json").read_text()
    )  # an attention on the hub is code, which is never fetched
    (folder / "config.json").write_text(json.dumps({**settings, "attn_implementation": "someone/kernel"}))
    judge = make_judge(f"classifier:{folder},batch=2")
    assert (judge.name, judge.role) == ("classifier:tone", "harm")
    for case, verdict in zip(CASES, verdicts_of(judge, CASES), strict=True):
        p = logits_by_hand(folder, case.completion).softmax(-1)
        assert verdict.score == pytest.approx(float(p[1] + p[2]), abs=1e-5)
        assert verdict.flag == (verdict.score >= 0.5)
        assert verdict.label == ("polite", "rude", "insult")[int(p.argmax())]
    assert [v.flag for v in judge(CASES)] == [v.score >= 0.5 for v in judge(CASES[::-1])][::-1]


def test_labels_that_do_not_exclude_each_other(tmp_path: Path) -> None:
    folder = save_classifier(
        tmp_path / "multi", ("toxic", "threat", "insult"), problem_type="multi_label_classification"
    )
    judge = make_judge(f"classifier:{folder},harmful=Toxic+insult,threshold=0.9,reads=both")
    for case, verdict in zip(CASES, judge(CASES), strict=True):
        p = logits_by_hand(folder, case.prompt, case.completion).sigmoid()
        worst = max((0, 2), key=lambda i: float(p[i]))
        assert verdict.score == pytest.approx(float(p[worst]), abs=1e-5)
        assert verdict.label == (("toxic", "", "insult")[worst] if verdict.score >= 0.9 else "none")


def test_one_logit_is_a_sigmoid(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "one", ("toxic",))
    verdict = make_judge(f"classifier:{folder}")([CASES[0]])[0]
    assert verdict.score == pytest.approx(
        float(logits_by_hand(folder, CASES[0].completion).sigmoid()[0]), abs=1e-5
    )
    with pytest.raises(JudgeError, match="has the one label 'toxic', which a softmax gives probability 1"):
        make_judge(f"classifier:{folder},multi_label=false")


@pytest.mark.parametrize(
    ("labels", "fields", "options", "message"),
    [
        (
            ("LABEL_0", "LABEL_1"),
            {},
            "",
            "LABEL_0, LABEL_1, which have no meaning of their own; .*harmful=LABEL_1",
        ),
        (("neutral", "sarcastic"), {}, "", "of which sarcastic may be harm or not; name the harmful ones"),
        (("neutral", "polite"), {}, "", "none of them harm"),
        (("neutral", "rude"), {}, ",harmful=cruel", "has no label 'cruel'; expected one of neutral, rude"),
        (("toxic", "rude"), {}, "", "all of its labels .* are named harmful, and they exclude each other"),
        (("toxic",), {"problem_type": "regression"}, "", "is a regression .*multi_label=true"),
    ],
)
def test_unclear_labels_are_an_error(
    tmp_path: Path, labels: tuple[str, ...], fields: dict[str, str], options: str, message: str
) -> None:
    folder = save_classifier(tmp_path / "c", labels, **fields)
    with pytest.raises(JudgeError, match=message):
        make_judge(f"classifier:{folder}{options}")


def test_the_harmful_label_can_be_named(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "c", ("LABEL_0", "LABEL_1"))
    first = make_judge(f"classifier:{folder},harmful=label_0,name=a")
    second = make_judge(f"classifier:{folder},harmful=LABEL_1,name=b")
    for one, other in zip(first(CASES), second(CASES), strict=True):
        assert one.score + other.score == pytest.approx(1)
    assert first.identity != second.identity


def test_long_texts(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "c", ("polite", "rude"))  # 64 positions
    text = " ".join(f"word {i}" for i in range(40))
    tokenizer = tiny.tiny_tokenizer(chat=False)
    tokens = ids(tokenizer, text)
    assert len(tokens) > 150
    with pytest.raises(
        JudgeError, match=f"a text of {len(tokens) + 1} tokens is over its window of 64.*long=windows"
    ):
        make_judge(f"classifier:{folder}")([Case("", text)])

    def by_hand(part: list[int]) -> float:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        with torch.inference_mode():
            return float(model(torch.tensor([[tiny.BOS, *part]])).logits[0].double().softmax(-1)[1])

    start, end = (
        make_judge(f"classifier:{folder},long={side}")([Case("", text)])[0] for side in ("start", "end")
    )
    assert start.score == pytest.approx(by_hand(tokens[:63]), abs=1e-5)
    assert end.score == pytest.approx(by_hand(tokens[-63:]), abs=1e-5)
    assert f"read the start of {len(tokens) + 1} tokens" in start.reason
    step = 63 - 63 // 2
    starts = [at for at in range(0, len(tokens), step) if at == 0 or at + 63 - step < len(tokens)]
    windows = make_judge(f"classifier:{folder},long=windows,batch=2")([CASES[0], Case("", text)])
    assert windows[1].score == pytest.approx(max(by_hand(tokens[at : at + 63]) for at in starts), abs=1e-5)
    assert f"the worst of {len(starts)} windows of 64 tokens" in windows[1].reason
    assert "window" not in windows[0].reason


def test_other_checkpoints_are_refused(pair_folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match=r"is a llama \(LlamaForCausalLM\); expected a sequence classifier"):
        make_judge(f"classifier:{pair_folders[0]}")
    folder = save_classifier(tmp_path / "c", ("polite", "rude"))
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in weights.items() if not name.startswith("classifier")},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    judge = make_judge(f"classifier:{folder}")
    assert isinstance(judge, ClassifierJudge)
    with pytest.raises(JudgeError, match=r"lacks 2 weights of its architecture.*classifier\.bias"):
        judge(CASES)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(JudgeError, match=r"judge classifier:c: .*Such files can run code"):
        make_judge(f"classifier:{folder}")


def test_release_frees_the_weights(tmp_path: Path) -> None:
    judge: Any = make_judge(f"classifier:{save_classifier(tmp_path / 'c', ('polite', 'rude'))}")
    first = judge(CASES)
    release(judge)
    assert judge._model is None
    assert judge(CASES) == first
