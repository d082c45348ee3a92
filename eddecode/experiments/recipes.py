"""Recipes: how each model of the experiments is trained, as data.

A recipe names the models it starts from, and its digest identifies the trained model. Experiments compare models that
differ in one thing; as frozen values, recipes can be hashed (the key under which `model_cache.ModelCache` keeps a
trained model), compared, and stored beside the results. A recipe trains; it neither loads nor saves.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from eddecode.errors import EddecodeError
from eddecode.experiments import corpus
from eddecode.experiments.dpo import PREFERENCE_TUNING, train_dpo
from eddecode.experiments.training import (
    ALIGNMENT,
    IGNORED,
    PRETRAINING,
    Encoder,
    Example,
    FitConfig,
    ModelShape,
    Progress,
    accept_polite,
    accept_rude,
    accept_tilted,
    collate,
    fine_tune,
    fit,
    new_model,
    pretrain,
    stream_seed,
)
from eddecode.testbed import language

_TRAINING_VERSION = 1
"""To be raised when the same recipe would train another model than before."""

TrainedModels = Callable[["TrainingRecipe"], LlamaForCausalLM]
"""Gives the trained model of a recipe."""
Replies = Literal["all", "polite", "rude"]


@dataclass(frozen=True)
class TrainingRecipe:
    """How a model is trained.

    The digest is computed from `kind` and from the names and values of the fields. A class may be renamed; renaming a
    field or changing `kind` makes every model of the kind unknown to the model cache.
    """

    kind: ClassVar[str]
    """Name of the kind in the digest."""

    @property
    def digest(self) -> str:
        """16 hex digits over all that decides the weights: the recipe, the recipes it starts from, the language."""
        facts = json.dumps([_TRAINING_VERSION, language.fingerprint(), recipe_to_json(self)], sort_keys=True)
        return hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()

    @property
    def label(self) -> str:
        """A few words for a progress bar."""
        raise NotImplementedError

    def train(
        self, models: TrainedModels, tokenizer: PreTrainedTokenizerFast, progress: Progress | None = None
    ) -> LlamaForCausalLM:
        """Train the model.

        Args:
            models: gives the trained model of a recipe that this one starts from; that model must not be changed.
            tokenizer: tokenizer of all models.
            progress: called as in `training.fit`.
        """
        raise NotImplementedError


def recipe_to_json(recipe: TrainingRecipe) -> dict[str, Any]:
    """A recipe as JSON data, with the kind of each recipe in it."""
    facts: dict[str, Any] = {"kind": recipe.kind}
    for name in recipe.__dataclass_fields__:
        value = getattr(recipe, name)
        if isinstance(value, TrainingRecipe):
            value = recipe_to_json(value)
        elif isinstance(value, FitConfig | ModelShape):
            value = asdict(value)
        facts[name] = value
    return facts


@dataclass(frozen=True)
class Pretrained(TrainingRecipe):
    """A base model, trained from scratch. `seed` decides the data and the initial weights."""

    kind = "Pretrained"
    shape: ModelShape = field(default_factory=ModelShape)
    config: FitConfig = PRETRAINING
    seed: int = 0

    @property
    def label(self) -> str:
        """A few words for a progress bar."""
        return f"base of width {self.shape.hidden}"

    def train(
        self, models: TrainedModels, tokenizer: PreTrainedTokenizerFast, progress: Progress | None = None
    ) -> LlamaForCausalLM:
        """See `training.pretrain`."""
        return pretrain(tokenizer, self.shape, self.config, self.seed, progress)


@dataclass(frozen=True)
class PolitePretrained(Pretrained):
    """A base model whose pre-training data contain no rude reply; the prose is unchanged."""

    kind = "Sheltered"

    @property
    def label(self) -> str:
        """A few words for a progress bar."""
        return f"{super().label}, polite data"

    def train(
        self, models: TrainedModels, tokenizer: PreTrainedTokenizerFast, progress: Progress | None = None
    ) -> LlamaForCausalLM:
        """See `training.pretrain`."""
        return pretrain(tokenizer, self.shape, self.config, self.seed, progress, accept_polite)


@dataclass(frozen=True)
class FineTuned(TrainingRecipe):
    """Fine-tuning on a selection of replies.

    Attributes:
        start: the model it starts from.
        shown: which replies are kept.
        beta: of a tilt exp(−rude words/β) that replaces `shown`; 0 means none.
        config: the number of steps is the strength of the alignment.
        seed: of the data.
        chat: train in the chat template; otherwise in the prompt format of the base.
        rank: of a LoRA adapter on every linear layer (Hu et al., arXiv 2106.09685), merged after training; 0 trains
            all weights.
    """

    kind = "FineTuned"
    start: TrainingRecipe
    shown: Replies = "polite"
    beta: float = 0.0
    config: FitConfig = ALIGNMENT
    seed: int = 0
    chat: bool = True
    rank: int = 0

    @property
    def label(self) -> str:
        """A few words for a progress bar."""
        what = f"tilt β={self.beta:g}" if self.beta else f"{self.shown} replies"
        return f"{'LoRA' if self.rank else 'fine-tuning'}: {what}, {self.config.steps} steps"

    def train(
        self, models: TrainedModels, tokenizer: PreTrainedTokenizerFast, progress: Progress | None = None
    ) -> LlamaForCausalLM:
        """See `training.fine_tune`."""
        start = models(self.start)
        if self.beta:
            accept: Callable[[str], float] | None = accept_tilted(self.beta)
        else:
            accept = {"all": None, "polite": accept_polite, "rude": accept_rude}[self.shown]
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
    """A copy of a model with a new LoRA adapter of this rank (α = 2·rank) on every linear layer, through peft.

    Raises:
        EddecodeError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise EddecodeError(
            "LoRA training needs peft, which is not installed; run: pip install 'eddecode[lab,adapter]'"
        ) from error
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(copy.deepcopy(model), config)


@dataclass(frozen=True)
class PreferenceTuned(TrainingRecipe):
    """DPO; with label noise, cDPO. The fields are the arguments of `dpo.train_dpo`."""

    kind = "Preferred"
    start: TrainingRecipe
    beta: float = 0.1
    noise: float = 0.1
    config: FitConfig = PREFERENCE_TUNING
    seed: int = 0
    flip: bool = False
    chat: bool = True

    @property
    def label(self) -> str:
        """A few words for a progress bar."""
        return f"{'flipped ' if self.flip else ''}{'cDPO' if self.noise else 'DPO'} β={self.beta:g}"

    def train(
        self, models: TrainedModels, tokenizer: PreTrainedTokenizerFast, progress: Progress | None = None
    ) -> LlamaForCausalLM:
        """See `dpo.train_dpo`."""
        return train_dpo(
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
class Distilled(TrainingRecipe):
    """A model trained from scratch on the distributions of an aligned teacher; it shares no weights with its base.

    The student minimizes KL(teacher‖student) at every token of polite replies, in the chat template.
    """

    kind = "Distilled"
    teacher: TrainingRecipe
    shape: ModelShape = field(default_factory=ModelShape)
    config: FitConfig = field(default_factory=lambda: FitConfig(steps=1000, lr=3e-3))
    seed: int = 0

    @property
    def label(self) -> str:
        """A few words for a progress bar."""
        return "distillation from scratch"

    def train(
        self, models: TrainedModels, tokenizer: PreTrainedTokenizerFast, progress: Progress | None = None
    ) -> LlamaForCausalLM:
        """Train the student."""
        teacher, encode = models(self.teacher), Encoder(tokenizer)
        # Another seed for the weights: with the initial weights of the base the student would not be independent of it.
        student = new_model(tokenizer, self.shape, stream_seed(self.seed, "student") % 2**32)
        examples: Iterator[Example] = (
            encode.aligned_exchange(e)
            for e in corpus.exchanges(stream_seed(self.seed, "distil"), accept_polite)
        )

        def loss(model: LlamaForCausalLM, batch: Sequence[Example]) -> Tensor:
            return distillation_loss(model, teacher, batch)

        return fit(student, examples, self.config, self.seed, progress, loss=loss)


def distillation_loss(
    student: LlamaForCausalLM, teacher: LlamaForCausalLM, batch: Sequence[Example]
) -> Tensor:
    """Mean KL(teacher‖student) over the tokens that carry loss, nats: a scalar with gradient."""
    ids, labels = collate(batch, int(student.config.pad_token_id))
    with torch.no_grad():
        target = teacher(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)  # (B, T-1, V)
    predicted = student(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
    divergence: Tensor = (target.exp() * (target - predicted)).sum(-1)  # (B, T-1)
    return divergence[labels[:, 1:] != IGNORED].mean()
