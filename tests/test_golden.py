"""Completions as they came out before, token for token, for every family of models and every way to decode them.

`golden/completions.json` holds the tokens of every case below. They must stay the same in every release: a completion
depends on the pair, the prompt, the parameters and the seed alone. Only public names of eddecode are used here.

The models are tiny, in float32, and their weights are drawn by numpy, name by name, so that they depend neither on
torch's generator nor on the order in which transformers initialises a model. Last digits of float32 sums differ between
processors. The tokens do not: no draw of these cases is close enough to a boundary.

Where tokens are meant to change, `python tests/test_golden.py` writes the file anew.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from eddecode import Access, Ensemble, ModelPair, RenderedPrompt, Sampler, SamplingParams, Transfer

FILE = Path(__file__).with_name("golden") / "completions.json"

# Models ----------------------------------------------------------------------------------------------------------

VOCAB = 300
FEW = 8  # ids, so that texts repeat themselves and guesses are right
WINDOW = 8  # shorter than most texts
PAD, BOS, EOS = range(3)

_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
_GROUPED = {**_SHAPE, "num_key_value_heads": 2}
_EXPERTS = {**_GROUPED, "num_experts_per_tok": 2}
_CAPPED = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0, "attn_implementation": "eager"}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": WINDOW},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_neox": _SHAPE,
    "phi": _SHAPE,
    "gemma2": {**_GROUPED, **_CAPPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW},
    "mixtral": {**_EXPERTS, "num_local_experts": 4, "sliding_window": None},
    "qwen2_moe": {
        **_EXPERTS,
        "num_experts": 4,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
    },
}


def noise(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Standard normal numbers of any shape, float32, a function of the name and the seed."""
    generator = np.random.Generator(np.random.Philox(key=(seed << 32) + zlib.crc32(name.encode())))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def build(family: str, seed: int = 0, **fields: Any) -> Any:
    """A causal LM with random weights around 0, those of its norms around 1."""
    ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "vocab_size": VOCAB}
    config = AutoConfig.for_model(family, **{**FAMILIES[family], **ids, **fields})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    for name, tensor in model.named_parameters():
        centre = 1.0 if tensor.dim() == 1 and name.endswith("weight") else 0.0
        tensor.copy_(centre + 0.3 * noise(name, tuple(tensor.shape), seed))
    return model


def tuned(base: Any, seed: int = 1, amount: float = 0.2, keep: tuple[str, ...] = ()) -> Any:
    """A copy whose tensors moved by that share of their norm, except those with one of `keep` in their name."""
    aligned = copy.deepcopy(base)
    for name, tensor in aligned.named_parameters():
        if not any(part in name for part in keep):
            tensor += amount * tensor.square().mean().sqrt() * noise(name, tuple(tensor.shape), seed)
    return aligned


def pair(family: str, dtype: torch.dtype = torch.float32, **fields: Any) -> ModelPair:
    """A base and an aligned model without tokenizers."""
    base = build(family, **fields)
    aligned = tuned(base)
    return ModelPair.from_models(base.to(dtype), aligned.to(dtype))


def adapter_pair(folder: Path, family: str, targets: str, dtype: str = "float32") -> ModelPair:
    """A base and a LoRA adapter over it, on the layers that a pattern names, saved and loaded."""
    peft = pytest.importorskip("peft")
    base = build(family)
    base.save_pretrained(folder / "base")
    wrapped = peft.get_peft_model(base, peft.LoraConfig(r=3, lora_alpha=7, target_modules=targets))
    for name, tensor in wrapped.named_parameters():
        if "lora_" in name:
            tensor.data = 0.2 * noise(name, tuple(tensor.shape), 5)
    wrapped.save_pretrained(folder / "adapter")
    return ModelPair.load(folder / "base", folder / "adapter", dtype=dtype)


def tokenizer(chat: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCAB` ids: six special tokens, the bytes, some pairs of letters."""
    specials = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(left, right) for left in "Ġeta" for right in "etaoinshrdl"][: VOCAB - 6 - len(characters)]
    tokens = [*specials, *characters, *(left + right for left, right in merges)]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )
    if chat:
        made.chat_template = (
            "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
            "{% endfor %}<|assistant|>"
        )
    return made


# Prompts and parameters ------------------------------------------------------------------------------------------

PARAMS = [
    SamplingParams(max_new_tokens=16, seed=seed, **fields)
    for seed, fields in enumerate(
        [
            {"alpha": -1.0, "temperature": 0.0, "ignore_eos": True},
            {"alpha": 0.0, "temperature": 0.0, "ignore_eos": True},
            {"alpha": 0.3, "temperature": 0.0, "ignore_eos": True},
            {"alpha": 0.0, "n": 2},
            {"alpha": 0.3, "n": 2},
            {"alpha": 1.0, "n": 2, "temperature": 0.7, "min_p": 0.05},
            {"alpha": -0.5, "n": 2, "top_k": 12},
            {"alpha": 2.0, "n": 2, "top_p": 0.8, "suppress_eos": True},
            {"alpha": 1.0, "n": 2, "plausibility": 0.1, "stop_token_ids": range(0, VOCAB, 12)},
            {"alpha": 0.3, "n": 2, "temperature": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
            {"alpha": -1.0, "n": 2, "min_new_tokens": 5, "suppress_tokens": range(10, 20)},
            {"alpha": 2.0, "temperature": 0.0, "plausibility": 0.3},
        ]
    )
]
SPOKEN = [
    "hello, where is my kettle?",
    "a",
    [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the teapot: it leaks…"}],
    [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "{prompt} stays as it is"},
    ],
]
SPOKEN_PARAMS = [
    SamplingParams(max_new_tokens=24, n=3, seed=7 + i, alpha=alpha, stop=("e", "th", "\n"), **fields)
    for i, (alpha, fields) in enumerate(
        [(0.3, {}), (1.0, {"top_p": 0.9}), (-1.0, {"top_k": 30}), (0.0, {"min_new_tokens": 12})]
    )
]


def ids(seed: int, length: int, vocab: int) -> tuple[int, ...]:
    """Random token ids."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    return tuple(generator.integers(0, vocab, length).tolist())


def prompts(count: int, vocab: int = VOCAB) -> list[RenderedPrompt]:
    """A different text for each model, shorter and longer than the sliding window; every third is the same for both."""
    made = []
    for i in range(count):
        base = ids(2 * i, 1 + (5 * i) % 29, vocab)
        aligned = base if i % 3 == 2 else ids(2 * i + 1, 1 + (11 * i + 6) % 37, vocab)
        made.append(RenderedPrompt(base, aligned))
    return made


# Cases -----------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """What `Sampler.generate` is called with."""

    sampler: Sampler
    prompts: list[Any]
    params: list[SamplingParams]


def rendered(sampler: Sampler, vocab: int = VOCAB, params: list[SamplingParams] = PARAMS) -> Case:
    """Prompts of token ids, one for each of the parameters."""
    return Case(sampler, prompts(len(params), vocab), params)


def spoken(family: str, base_template: str | None = None, **fields: Any) -> Case:
    """Prompts of text and of messages, and stop strings."""
    base = build(family, **fields)
    both = ModelPair.from_models(base, tuned(base), tokenizer(chat=False), tokenizer(chat=True))
    return Case(Sampler(both, base_template=base_template), SPOKEN, SPOKEN_PARAMS)


def guessed(speculation: Any) -> Case:
    """Long completions of few ids, with guesses: the two models are close, so that some are right."""
    base = build("llama", vocab_size=FEW)
    params = [
        SamplingParams(alpha=alpha, temperature=temperature, max_new_tokens=90, n=n, seed=i, ignore_eos=True)
        for i, (alpha, temperature, n) in enumerate(
            [(0.3, 0.0, 1), (1.0, 0.0, 1), (-1.0, 0.0, 1), (0.3, 0.5, 3), (-0.5, 1.0, 2), (1.0, 0.5, 2)]
        )
    ]
    close = ModelPair.from_models(base, tuned(base, amount=0.05))
    return rendered(Sampler(close, speculation=speculation, max_slots=3), FEW, params)


def limited() -> Case:
    """An attacker who sees less of the aligned model."""
    limits = [
        Access(top_k=5),
        Access(decimals=1),
        Access(noise=0.5),
        Access(tokens=3),
        Access(top_k=20, tokens=8),
    ]
    params = [PARAMS[3 + i].replace(alpha=0.6, access=access) for i, access in enumerate(limits)]
    return rendered(Sampler(pair("llama")), params=params)


def with_trunk(family: str, keep: tuple[str, ...]) -> Case:
    """Two models whose embeddings and first layer are the same."""
    base = build(family)
    return rendered(Sampler(ModelPair.from_models(base, tuned(base, keep=keep))))


def ensemble() -> Case:
    base = build("llama")
    aligned = [tuned(base, seed=10 + i, amount=0.2 + 0.1 * i) for i in range(3)]
    return rendered(Sampler(Ensemble.from_models(base, aligned)))


def transfer() -> Case:
    base = build("llama")
    large = build("gpt_neox", seed=5, num_hidden_layers=3)
    return rendered(Sampler(Transfer.from_models(large, base, tuned(base))))


CASES: dict[str, Callable[[Path], Case]] = {
    **{family: lambda _, family=family: rendered(Sampler(pair(family))) for family in FAMILIES},
    "few slots": lambda _: rendered(Sampler(pair("llama", num_hidden_layers=3), max_slots=3)),
    "text, llama": lambda _: spoken("llama", max_position_embeddings=1024),
    "text, gpt2": lambda _: spoken("gpt2", "Q: {prompt}\nA:"),
    "access": lambda _: limited(),
    "adapter, llama": lambda at: rendered(Sampler(adapter_pair(at, "llama", r".*\.(q_proj|down_proj)"))),
    "adapter, gpt_neox": lambda at: rendered(Sampler(adapter_pair(at, "gpt_neox", r".*\.query_key_value"))),
    "trunk, llama": lambda _: with_trunk("llama", ("embed_tokens", "layers.0.")),
    "trunk, gpt2": lambda _: with_trunk("gpt2", ("wte", "wpe", "h.0.")),
    "guesses of the base": lambda _: guessed("base"),
    "guesses from the text": lambda _: guessed("ngram"),
    "guesses of both": lambda _: guessed("auto"),
    "guesses of an assistant": lambda _: guessed(build("llama", seed=0, vocab_size=FEW, num_hidden_layers=1)),
    "ensemble": lambda _: ensemble(),
    "transfer": lambda _: transfer(),
}


def tokens(case: Case) -> list[list[int]]:
    return [completion.token_ids for completion in case.sampler.generate(case.prompts, case.params)]


@pytest.fixture
def slowing_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """By this clock every pass takes less than the one before, so that guesses seem to pay: they are made, anywhere."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: math.sqrt(next(ticks)))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("slowing_clock", "one_thread")
@pytest.mark.parametrize("name", CASES)
def test_the_tokens_are_those_of_before(name: str, tmp_path: Path) -> None:
    assert tokens(CASES[name](tmp_path)) == json.loads(FILE.read_text(encoding="utf-8"))[name]


def test_the_file_holds_these_cases() -> None:
    assert list(json.loads(FILE.read_text(encoding="utf-8"))) == list(CASES)


def write() -> None:
    """Make `completions.json`, a completion a line."""
    blocks = []
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            lines = ",\n".join(f"  {json.dumps(completion)}" for completion in tokens(case(Path(folder))))
        blocks.append(f" {json.dumps(name)}: [\n{lines}\n ]")
    FILE.write_text("{\n" + ",\n".join(blocks) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    write()
