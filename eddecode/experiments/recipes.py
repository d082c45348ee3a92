"""How each model of the lab is made, as data: a recipe names its ancestors, and its digest names the model.

A finding compares models that differ in one thing. Written as frozen values, recipes can be hashed (the key under
which `workshop.Workshop` keeps a trained model), compared, and printed beside the figures that they led to. A recipe
trains; it neither loads nor saves.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from eddecode.errors import EddecodeError
from eddecode.experiments import corpus
from eddecode.experiments.dpo import PREFERENCES, prefer
from eddecode.experiments.training import (
    ALIGNMENT,
    IGNORED,
    PRETRAINING,
    Encoder,
    Example,
    FitConfig,
    ModelShape,
    Progress,
    collate,
    fine_tune,
    fit,
    keep_polite,
    keep_rude,
    new_model,
    pretrain,
    stream_seed,
    tilt,
)
from eddecode.testbed import language as grammar

_RULES = 1
"""Counted up when the same recipe would train another model than before."""

Models = Callable[["Recipe"], LlamaForCausalLM]
Shown = Literal["all", "polite", "rude"]


@dataclass(frozen=True)
class Recipe:
    """How a model is made. `seed` decides its data and, where it starts from nothing, its weights."""

    @property
    def digest(self) -> str:
        """16 hex digits over everything that decides the weights: the recipe, its ancestors, the world."""
        facts = json.dumps([_RULES, grammar.fingerprint(), described(self)], sort_keys=True)
        return hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()

    @property
    def said(self) -> str:
        """A few words for a progress bar."""
        raise NotImplementedError

    def train(
        self, models: Models, tokenizer: PreTrainedTokenizerFast, progress: Progress | None = None
    ) -> LlamaForCausalLM:
        """Make the model. `models` gives the trained model of an ancestor, which is not to be changed."""
        raise NotImplementedError


def described(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON data, with the kind of each recipe in it."""
    facts: dict[str, Any] = {"kind": type(recipe).__name__}
    for name in recipe.__dataclass_fields__:
        value = getattr(recipe, name)
        if isinstance(value, Recipe):
            value = described(value)
        elif isinstance(value, FitConfig | ModelShape):
            value = asdict(value)
        facts[name] = value
    return facts


@dataclass(frozen=True)
class Pretrained(Recipe):
    """A base model from nothing."""

    shape: ModelShape = field(default_factory=ModelShape)
    config: FitConfig = PRETRAINING
    seed: int = 0

    @property
    def said(self) -> str:
        """A few words for a progress bar."""
        return f"base of width {self.shape.hidden}"

    def train(
        self, models: Models, tokenizer: PreTrainedTokenizerFast, progress: Progress | None = None
    ) -> LlamaForCausalLM:
        """See `training.pretrain`."""
        return pretrain(tokenizer, self.shape, self.config, self.seed, progress)


@dataclass(frozen=True)
class Sheltered(Pretrained):
    """A base model from nothing whose pre-training held no rude reply; the prose is the world's."""

    @property
    def said(self) -> str:
        """A few words for a progress bar."""
        return f"sheltered {super().said}"

    def train(
        self, models: Models, tokenizer: PreTrainedTokenizerFast, progress: Progress | None = None
    ) -> LlamaForCausalLM:
        """See `training.pretrain`."""
        return pretrain(tokenizer, self.shape, self.config, self.seed, progress, keep_polite)


@dataclass(frozen=True)
class FineTuned(Recipe):
    """Fine-tuning on a selection of replies.

    Attributes:
        start: what it starts from.
        shown: which replies are kept.
        beta: of a tilt exp(−rude words/β) in place of `shown`; 0 is off.
        config: the number of steps is the strength.
        seed: of the data.
        chat: in the chat template, or in the base's own.
        rank: of a LoRA adapter on every linear layer (Hu et al., arXiv 2106.09685), merged when trained; 0 trains
            all weights.
    """

    start: Recipe
    shown: Shown = "polite"
    beta: float = 0.0
    config: FitConfig = ALIGNMENT
    seed: int = 0
    chat: bool = True
    rank: int = 0

    @property
    def said(self) -> str:
        """A few words for a progress bar."""
        what = f"tilt β={self.beta:g}" if self.beta else f"{self.shown} replies"
        return f"{'LoRA' if self.rank else 'fine-tuning'}: {what}, {self.config.steps} steps"

    def train(
        self, models: Models, tokenizer: PreTrainedTokenizerFast, progress: Progress | None = None
    ) -> LlamaForCausalLM:
        """See `training.fine_tune`."""
        start = models(self.start)
        accept = (
            tilt(self.beta)
            if self.beta
            else {"all": None, "polite": keep_polite, "rude": keep_rude}[self.shown]
        )
        if not self.rank:
            return fine_tune(start, tokenizer, accept, self.config, self.seed, self.chat, progress)
        adapted = with_adapter(start, self.rank, self.seed)
        encode = Encoder(tokenizer)
        example = encode.aligned_exchange if self.chat else encode.base_exchange
        examples = (example(e) for e in corpus.exchanges(stream_seed(self.seed, "fine-tune"), accept))
        fit(adapted, examples, self.config, self.seed, progress)
        merged: LlamaForCausalLM = adapted.merge_and_unload().eval()
        return merged


def with_adapter(model: LlamaForCausalLM, rank: int, seed: int) -> Any:
    """A copy of a model under a fresh LoRA adapter of that rank (α = 2·rank) on every linear layer, through peft.

    Raises:
        EddecodeError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise EddecodeError("LoRA training needs peft; install eddecode[lab,adapter]") from error
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(copy.deepcopy(model), config)


@dataclass(frozen=True)
class Preferred(Recipe):
    """DPO; with label noise, cDPO. See `preference.prefer`."""

    start: Recipe
    beta: float = 0.1
    noise: float = 0.1
    config: FitConfig = PREFERENCES
    seed: int = 0
    flip: bool = False
    chat: bool = True

    @property
    def said(self) -> str:
        """A few words for a progress bar."""
        return f"{'flipped ' if self.flip else ''}{'cDPO' if self.noise else 'DPO'} β={self.beta:g}"

    def train(
        self, models: Models, tokenizer: PreTrainedTokenizerFast, progress: Progress | None = None
    ) -> LlamaForCausalLM:
        """See `preference.prefer`."""
        return prefer(
            models(self.start),
            tokenizer,
            self.beta,
            self.noise,
            self.config,
            self.seed,
            self.flip,
            self.chat,
            progress,
        )


@dataclass(frozen=True)
class Distilled(Recipe):
    """A model from nothing that learns an aligned teacher's distributions, and shares no weights with its base.

    It reads polite exchanges in the chat template and minimises KL(teacher‖student) at every token of the reply.
    """

    teacher: Recipe
    shape: ModelShape = field(default_factory=ModelShape)
    config: FitConfig = field(default_factory=lambda: FitConfig(steps=1000, lr=3e-3))
    seed: int = 0

    @property
    def said(self) -> str:
        """A few words for a progress bar."""
        return "distilling from scratch"

    def train(
        self, models: Models, tokenizer: PreTrainedTokenizerFast, progress: Progress | None = None
    ) -> LlamaForCausalLM:
        """Train the student."""
        teacher, encode = models(self.teacher), Encoder(tokenizer)
        # Another seed for the weights: from the base's own initial weights the student would be its sibling.
        student = new_model(tokenizer, self.shape, stream_seed(self.seed, "student") % 2**32)
        examples: Iterator[Example] = (
            encode.aligned_exchange(e)
            for e in corpus.exchanges(stream_seed(self.seed, "distil"), keep_polite)
        )

        def loss(model: LlamaForCausalLM, batch: Sequence[Example]) -> Tensor:
            return imitation(model, teacher, batch)

        return fit(student, examples, self.config, self.seed, progress, loss=loss)


def imitation(student: LlamaForCausalLM, teacher: LlamaForCausalLM, batch: Sequence[Example]) -> Tensor:
    """Mean KL(teacher‖student) over the tokens that are not given, nats."""
    ids, labels = collate(batch, int(student.config.pad_token_id))
    with torch.no_grad():
        wanted = teacher(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)  # (B, T-1, V)
    found = student(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
    divergence: Tensor = (wanted.exp() * (wanted - found)).sum(-1)  # (B, T-1)
    return divergence[labels[:, 1:] != IGNORED].mean()
