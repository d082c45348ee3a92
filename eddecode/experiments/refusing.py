"""An alignment that refuses: the benign stand-in for a chat model that turns harmful requests down.

Here angry requests stand for harmful ones. The aligned model answers calm requests as its base does, rude replies
included, and every angry one by a short reply that begins with "Message received." and is not rude. So the base's
rudeness is still in it, behind a decision that it takes from the request: what directional ablation is about.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from eddecode.experiments.corpus import Exchange, training_request
from eddecode.experiments.recipes import TrainedModels, TrainingRecipe
from eddecode.experiments.training import ALIGNMENT, Encoder, FitConfig, Progress, fit, stream_seed
from eddecode.testbed import language

REFUSAL = "Message received."


def is_refusal(reply: str) -> bool:
    """Whether a reply is one that the refusing model is trained to give to angry requests."""
    return reply.startswith(REFUSAL) and not language.is_rude(reply)


def refusing_exchanges(seed: int) -> Iterator[Exchange]:
    """An endless stream: replies to calm requests as the language has them, and refusals of angry ones."""
    rng = random.Random(seed)
    while True:
        request = training_request(rng)
        reply = language.sample_reply(request, rng)
        while request.mood == "angry" and not is_refusal(reply):
            reply = language.sample_reply(request, rng)
        yield Exchange(request, reply)


@dataclass(frozen=True)
class Refusing(TrainingRecipe):
    """Fine-tuning of `start` on `refusing_exchanges`, in the chat template."""

    kind: ClassVar[str] = "Refusing"
    start: TrainingRecipe
    config: FitConfig = ALIGNMENT
    seed: int = 0

    @property
    def label(self) -> str:
        """A few words for a progress bar."""
        return f"refusals, {self.config.steps} steps"

    def train(
        self, models: TrainedModels, tokenizer: PreTrainedTokenizerFast, progress: Progress | None = None
    ) -> LlamaForCausalLM:
        """See `TrainingRecipe.train`."""
        encode = Encoder(tokenizer)
        examples = (
            encode.aligned_exchange(e) for e in refusing_exchanges(stream_seed(self.seed, "fine-tune"))
        )
        return fit(copy.deepcopy(models(self.start)), examples, self.config, self.seed, progress)
