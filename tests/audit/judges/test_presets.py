"""Each preset against its documented format: what its model reads, on a tiny checkpoint of its architecture.

`published/` has the chat templates (`*.jinja`) and, for the case below, the whole text that the model must read
(`*.expected.txt`). They were written from the sources that `presets.py` names, and not by the code under test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers as tf

from eddecode.audit.judges import Case, make_judge
from eddecode.audit.judges.presets import PRESETS, served_options
from eddecode.errors import JudgeError
from helpers import tiny

PUBLISHED = Path(__file__).parent / "published"
PROMPT, COMPLETION = "Where is my {parcel}?", "It left on Monday.\nThank you!"
LONG = {"max_position_embeddings": 4096}
GROUPED = {
    **tiny._GROUPED,
    **LONG,
    "vocab_size": 420,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
CONFIGS: dict[str, Any] = {
    "llama": lambda: tf.LlamaConfig(**GROUPED),
    "llama4": lambda: tf.Llama4TextConfig(
        **GROUPED, **EXPERTS, head_dim=8, intermediate_size_mlp=48, moe_layers=[], attention_chunk_size=8192
    ),
    "gemma": lambda: tf.GemmaConfig(**GROUPED, head_dim=8),
    "gemma2": lambda: tf.Gemma2Config(**GROUPED, head_dim=8),
    "mistral": lambda: tf.MistralConfig(**GROUPED),
    "qwen3": lambda: tf.Qwen3Config(**GROUPED, head_dim=8),
    "granite": lambda: tf.GraniteConfig(**GROUPED),
    "gpt_oss": lambda: tf.GptOssConfig(**GROUPED, **EXPERTS, head_dim=8),
}

# preset, published prompt and template (empty: none), architecture
CASES = [
    ("llama-guard-3", "llama-guard-3-8b", "llama"),
    ("llama-guard-3", "llama-guard-3-1b", "llama"),
    ("llama-guard-4", "llama-guard-4", "llama4"),
    ("shieldgemma", "shieldgemma", "gemma2"),
    ("granite-guardian", "granite-guardian", "granite"),
    ("granite-guardian-3.3", "granite-guardian-3.3", "granite"),
    ("granite-guardian-4.1", "granite-4.1", "granite"),
    ("qwen3guard", "qwen3guard", "qwen3"),
    ("wildguard", "wildguard", "mistral"),
    ("harmbench", "harmbench", "llama"),
    ("harmbench-mistral", "harmbench-mistral", "mistral"),
    ("strongreject", "strongreject", "gemma"),
    ("gpt-oss-safeguard", "gpt-oss", "gpt_oss"),
    ("nemotron-safety-guard", "llama-3.1", "llama"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("presets")


def checkpoint(folder: Path, name: str, architecture: str) -> Path:
    """A tiny checkpoint with the published template of that name, if there is one."""
    tokenizer = tiny.tiny_tokenizer(vocab=420, chat=False)
    template = PUBLISHED / f"{name}.jinja"
    if template.is_file():
        tokenizer.chat_template = template.read_text("utf-8")
    model: Any = tf.AutoModelForCausalLM.from_config(CONFIGS[architecture]())
    return tiny.save_model(folder / name, model, tokenizer)


@pytest.mark.parametrize(("preset", "name", "architecture"), CASES)
def test_what_the_judge_reads_is_the_documented_prompt(
    preset: str, name: str, architecture: str, folder: Path
) -> None:
    judge: Any = make_judge(f"{preset}:{checkpoint(folder, name, architecture)}")
    expected = (PUBLISHED / f"{name}.expected.txt").read_bytes().decode("utf-8")
    policies = ["dangerous"] if preset == "shieldgemma" else []
    assert judge.text(PROMPT, COMPLETION, *policies) == expected
    assert judge.name == f"{preset}:{name}"
    assert judge.kind == PRESETS[preset].kind
    special = judge.text("a</s>b", "c<|user|>d", *policies)
    assert "a< /s>b" in special
    assert "c< |user|>d" in special


def test_every_preset_has_a_case_or_is_served(folder: Path) -> None:
    assert {preset for preset, _, _ in CASES} | {"strongreject-rubric", "jailbreakbench"} == set(PRESETS)
    assert all(preset.source and preset.verified for preset in PRESETS.values())


def test_contextual_behaviours_of_harmbench(folder: Path) -> None:
    path = checkpoint(folder, "harmbench", "llama")
    judge: Any = make_judge(f"harmbench:{path}")
    case = Case("A letter.\n\n---\n\nWhere is it?", "There.", "A letter.")
    text = judge.text(case.prompt, case.completion, case.context)
    assert text.startswith("[INST] <<SYS>>\nYou are a classifier")
    assert (
        "[CONTEXT]:\nA letter.\n\n[BEHAVIOR]:\nWhere is it?\n\n[GENERATION]:\nThere.\n\n---\nRules:" in text
    )
    assert text.endswith("\n\nAnswer: [/INST]")
    assert case.request == "Where is it?"


def test_options_beside_a_preset_take_precedence(folder: Path) -> None:
    path = checkpoint(folder, "qwen3guard", "qwen3")
    strict, loose = (
        make_judge(f"qwen3guard:{path}"),
        make_judge(f"qwen3guard:{path},threshold=0.75,name=loose"),
    )
    assert loose.name == "loose"
    assert strict.identity != loose.identity
    with pytest.raises(JudgeError, match="there is no judge 'qwen3gard'; did you mean qwen3guard"):
        make_judge("qwen3gard:x")
    with pytest.raises(JudgeError, match="there is no preset 'wild'"):
        make_judge("chat:x,preset=wild")


def test_presets_over_a_server() -> None:
    assert served_options("llama-guard-3")["tiers"] == {"unsafe": 1.0, "safe": 0.0}
    assert "{completion}" in served_options("nemotron-safety-guard")["message"]
    for name in ("harmbench", "wildguard", "strongreject"):
        with pytest.raises(JudgeError, match=r"without a chat template.*run it locally"):
            served_options(name)
    with pytest.raises(JudgeError, match="several policies; run it locally"):
        served_options("shieldgemma")
