"""The pairs that are measured: random-weight Llamas on a ladder of sizes, and the pair that ships with the package.

The cost of a decode step depends on the number of weights and not on their values, so random ones will do; they are
drawn wide enough that the next-token distributions are not flat. The aligned model is either a full checkpoint, or the
base model plus a low-rank change of every linear layer, as a LoRA release is. Only public names of eddecode are used
here, so that `against` can run this module with another version of it.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from eddecode import ModelPair, RenderedPrompt, Sampler
from eddecode.errors import ConfigError

VARIANTS = ("full", "lora")
RANK = 16  # of the low-rank change; the size that PEFT users most often choose
CHANGE = 0.1  # norm of the aligned model's change, relative to the norm of each weight
LOGIT_SPREAD = 3.0  # standard deviation of the logits, about what trained models have
LONGEST_PROMPT = 64


@dataclass(frozen=True)
class Shape:
    """The size of a Llama; input and output embeddings are two matrices.

    Attributes:
        kv_heads: of keys and values; 0 is as many as heads.
    """

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    vocabulary: int = 32_000
    kv_heads: int = 0

    def config(self) -> LlamaConfig:
        """The configuration, without any special ids: nothing ends a completion but its length."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads or self.heads,
            max_position_embeddings=1024,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )


SIZES = {
    "10M": Shape(hidden=256, feed_forward=688, layers=8, heads=4, vocabulary=8_000),
    "130M": Shape(hidden=768, feed_forward=2048, layers=12, heads=12),
    "7B": Shape(hidden=4096, feed_forward=11_008, layers=32, heads=32),
}
BUNDLED = "bundled"
OWN = "+"  # between the two folders of a pair of the user's own
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class BenchPair:
    """A pair in memory, with what a benchmark needs to know about it.

    Attributes:
        base, aligned: the two models. In the variant "lora" the change is merged into `aligned`, which is how the
            alternatives run it; `aligned` is None where only the base was requested.
        factors: in the variant "lora", module name → (A (r, in), B (out, r)) with aligned = base + B·A, for a runner
            that shares the backbone; else empty.
        texts: prompts that belong to the pair; empty for random weights.
    """

    size: str
    dtype: str
    variant: str
    base: Any
    aligned: Any
    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    texts: tuple[RenderedPrompt, ...] = ()

    def model_pair(self) -> ModelPair:
        """The pair as eddecode takes it."""
        return ModelPair.from_models(self.base, self.aligned)

    def prompts(self, count: int) -> tuple[RenderedPrompt, ...]:
        """`count` different prompts; the two models read prompts of different lengths, as with two templates."""
        if self.texts:
            return tuple(self.texts[i % len(self.texts)] for i in range(count))
        return random_prompts(count, self.base.config.vocab_size)


def random_prompts(count: int, vocabulary: int) -> tuple[RenderedPrompt, ...]:
    """Prompts of random ids: 24 to 40 for the base, 40 to 64 for the aligned model, as a chat template adds some."""
    generator = torch.Generator().manual_seed(7)

    def ids(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high + 1, (1,), generator=generator))
        return tuple(torch.randint(vocabulary, (length,), generator=generator).tolist())

    return tuple(RenderedPrompt(ids(24, 40), ids(40, LONGEST_PROMPT)) for _ in range(count))


def texts_of(count: int, length: int, vocabulary: int) -> tuple[RenderedPrompt, ...]:
    """Prompts of so many random ids, different ones for each model."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(vocabulary, (count, 2, length), generator=generator).tolist()
    return tuple(RenderedPrompt(base, aligned) for base, aligned in ids)


def build(
    size: str | Shape, dtype: str, variant: str = "full", device: str = "cpu", *, base_only: bool = False
) -> BenchPair:
    """Build a pair; equal arguments give equal weights.

    Args:
        size: a name in SIZES, "bundled", BASE+ALIGNED for two folders of checkpoints, or a shape.
        dtype: a name in DTYPES.
        variant: "full" (two checkpoints) or "lora" (a low-rank change).
        device: where the weights go.
        base_only: leave the aligned model out, to measure the memory of the base alone.
    """
    if size == BUNDLED:
        return load_bundled(dtype, variant, device)
    if isinstance(size, str) and OWN in size:
        return load_own(size, dtype, variant, device)
    shape = size if isinstance(size, Shape) else SIZES[size]
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        base = LlamaForCausalLM._from_config(shape.config(), dtype=DTYPES[dtype]).eval().requires_grad_(False)
        head = base.lm_head.weight
        head.mul_(LOGIT_SPREAD / (head.float().std() * shape.hidden**0.5))
        name = size if isinstance(size, str) else "custom"
        pair = BenchPair(name, dtype, variant, base, None)
        if not base_only:
            pair.aligned = copy.deepcopy(base)
            _CHANGES[variant](pair)
    return pair


def _change_all(pair: BenchPair) -> None:
    """Move every tensor of the aligned model, as full fine-tuning does."""
    for weight in pair.aligned.parameters():
        _add(weight, torch.randn(weight.shape))


def _change_low_rank(pair: BenchPair) -> None:
    """Add a product of two thin matrices to every linear layer but the head (LoRA, arXiv 2106.09685, §4)."""
    for name, module in pair.aligned.model.named_modules(prefix="model"):
        if isinstance(module, nn.Linear):
            weight = module.weight
            a, b = torch.randn(RANK, weight.shape[1]), torch.randn(weight.shape[0], RANK)
            scale = _add(weight, b @ a)
            pair.factors[name] = (a.to(weight.dtype), (b * scale).to(weight.dtype))


_CHANGES = {"full": _change_all, "lora": _change_low_rank}


def _add(weight: Tensor, change: Tensor) -> float:
    """Add a change in place, scaled to CHANGE of the weight's norm; returns the scale."""
    scale = float(CHANGE * weight.float().norm() / change.norm())
    weight += (change * scale).to(weight.dtype)
    return scale


def load_own(size: str, dtype: str, variant: str, device: str) -> BenchPair:
    """A pair of two checkpoints, on prompts of random ids."""
    if variant != "full":
        raise ConfigError(f"{size} is two checkpoints; use --pair full, or random-weight sizes")
    base, aligned = size.split(OWN, maxsplit=1)
    pair = ModelPair.load(base, aligned, dtype=DTYPES[dtype], device=device)
    return BenchPair(size, dtype, variant, pair.base, pair.aligned)


def load_bundled(dtype: str, variant: str, device: str) -> BenchPair:
    """The pair that ships with the package, on its own prompts."""
    from eddecode.lab import bundled_pair

    place = bundled_pair()
    if not bundled_present():
        raise ConfigError(f"there is no bundled pair in {place.base.parent}; build it, or leave out its size")
    if variant != "full":
        raise ConfigError("the bundled pair is two full checkpoints; use --pair full, or random-weight sizes")
    pair = ModelPair.load(place.base, place.aligned, dtype=DTYPES[dtype], device=device)
    sampler = Sampler(pair, base_template=place.base_template)
    lines = place.prompts.read_text(encoding="utf-8").splitlines()[:64]
    texts = tuple(sampler.render(json.loads(line)["prompt"]) for line in lines)
    return BenchPair(BUNDLED, dtype, variant, pair.base, pair.aligned, texts=texts)


def bundled_present() -> bool:
    """Whether the bundled pair is in this checkout."""
    from eddecode.lab import bundled_pair

    place = bundled_pair()
    return place.base.is_dir() and place.aligned.is_dir()
