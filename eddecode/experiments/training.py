"""Training on the lab's world: pre-training a base, and fine-tuning it towards a selection of replies.

One loop serves both. Every alignment by fine-tuning is the same procedure with another selection of the replies that
it is shown: those that are not rude (a filter), all of them (a control), rude ones only (direct disalignment), or
each with probability exp(−cost/β) (a tilt, the theory's aligned model). How many steps it takes is its strength.
Deterministic given the seed: data and initial weights come from seeded generators, and torch runs on one thread.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eddecode.errors import EddecodeError
from eddecode.experiments import corpus
from eddecode.experiments.tokenizer import CHAT_TEMPLATE, CONTEXT_WINDOW
from eddecode.testbed import language as grammar
from eddecode.testbed.language import Request

IGNORED = -100
Progress = Callable[[int, int, float], None]
Example = tuple[list[int], int]
"""Token ids, and how many of them at the start are given (no loss on those)."""
Batch = TypeVar("Batch")


@dataclass(frozen=True)
class ModelShape:
    """Size of a model of the lab (a Llama with tied embeddings)."""

    hidden: int = 128
    layers: int = 3
    heads: int = 4
    feed_forward: int = 336
    init_std: float = 0.05


@dataclass(frozen=True)
class FitConfig:
    """How long and how fast to train. `decay` is the share of `lr` that the cosine ends at; 1 keeps it constant."""

    steps: int
    lr: float
    batch: int = 16
    warmup: float = 0.05
    decay: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0


PRETRAINING = FitConfig(steps=3000, lr=3e-3)
ALIGNMENT = FitConfig(steps=320, lr=1e-3, warmup=0.0, decay=1.0)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread, which makes sums independent of the machine's number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def new_model(tokenizer: PreTrainedTokenizerFast, shape: ModelShape, seed: int) -> LlamaForCausalLM:
    """A randomly initialised float32 Llama for this tokenizer; the caller's random state is left alone."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=CONTEXT_WINDOW,
        tie_word_embeddings=True,
        initializer_range=shape.init_std,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float()


class Encoder:
    """Turns documents and exchanges into examples, the prompt and the reply tokenized apart."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer

    def document(self, document: corpus.Document) -> Example:
        """A pre-training document: loss on everything after the begin token."""
        ids = self._plain(document.text) + self._reply(document.reply)
        return ids, 1

    def base_exchange(self, exchange: corpus.Exchange) -> Example:
        """An exchange in the base's template: loss on the reply and its end."""
        return self._exchange(self.base_prompt(exchange.request), exchange.reply)

    def aligned_exchange(self, exchange: corpus.Exchange) -> Example:
        """An exchange in the chat template: loss on the reply and its end."""
        return self._exchange(self.aligned_prompt(exchange.request), exchange.reply)

    def base_prompt(self, request: Request) -> list[int]:
        """Ids of a request in the base's template, begin token included."""
        return self._plain(corpus.BASE_TEMPLATE.replace("{prompt}", request.text))

    def aligned_prompt(self, request: Request) -> list[int]:
        """Ids of a request in the aligned model's chat template, begin token included."""
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": request.text}],
            chat_template=CHAT_TEMPLATE,
            add_generation_prompt=True,
            tokenize=False,
        )
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _exchange(self, prompt: list[int], reply: str) -> Example:
        return prompt + self._reply(reply), len(prompt)

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def _reply(self, text: str) -> list[int]:
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return [*ids, int(self.tokenizer.eos_token_id)]


def batches(examples: Iterator[Example], size: int, seed: int, pool: int = 32) -> Iterator[list[Example]]:
    """Batches of examples of similar length: a pool of them is sorted by length, cut and shuffled."""
    rng = random.Random(seed)
    while chosen := sorted(islice(examples, size * pool), key=lambda example: len(example[0])):
        cuts = [chosen[i : i + size] for i in range(0, len(chosen), size)]
        rng.shuffle(cuts)
        yield from cuts


def collate(batch: Sequence[Example], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad on the right. Returns ids (B, T) int64 and labels (B, T), −100 where there is no loss."""
    length = max(len(ids) for ids, _ in batch)
    ids = torch.full((len(batch), length), pad_id)
    labels = torch.full((len(batch), length), IGNORED)
    for row, (tokens, given) in enumerate(batch):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, given : len(tokens)] = torch.tensor(tokens[given:])
    return ids, labels


def learning_rate(step: int, config: FitConfig) -> float:
    """Linear warm-up, then a cosine from `lr` to `decay · lr`."""
    warm = config.warmup * config.steps
    if step < warm:
        return config.lr * (step + 1) / (warm + 1)
    progress = (step - warm) / max(1.0, config.steps - warm)
    return config.lr * (config.decay + (1 - config.decay) * 0.5 * (1 + math.cos(math.pi * progress)))


Loss = Callable[[LlamaForCausalLM, Sequence[Example]], Tensor]


def likelihood(model: LlamaForCausalLM, batch: Sequence[Example]) -> Tensor:
    """Mean negative log-likelihood of what is not given, nats per token: a scalar with gradient."""
    ids, labels = collate(batch, int(model.config.pad_token_id))
    # Padding is on the right and carries no loss, so the causal mask alone is enough.
    loss: Tensor = model(input_ids=ids, labels=labels, use_cache=False).loss
    return loss


def fit(
    model: LlamaForCausalLM,
    examples: Iterator[Example],
    config: FitConfig,
    seed: int,
    progress: Progress | None = None,
    snapshots: dict[int, Callable[[LlamaForCausalLM], None]] | None = None,
    loss: Loss = likelihood,
) -> LlamaForCausalLM:
    """Train a model in place on a stream of examples; returns it in eval mode.

    Args:
        model: float32, trained in place; parameters without gradient stay as they are.
        examples: endless (ids, given) pairs.
        config: steps, rate, batch size.
        seed: of the order of the batches.
        progress: called as (step, steps, loss) after every step.
        snapshots: step → called with the model (in training) once that many steps are done.
        loss: what is minimised over a batch of examples of similar length.

    Raises:
        EddecodeError: if the loss stops being finite.
    """
    stream = islice(batches(examples, config.batch, seed), config.steps)
    return optimise(model, stream, config, loss, progress, snapshots)


def optimise(
    model: LlamaForCausalLM,
    stream: Iterator[Batch],
    config: FitConfig,
    objective: Callable[[LlamaForCausalLM, Batch], Tensor],
    progress: Progress | None = None,
    snapshots: dict[int, Callable[[LlamaForCausalLM], None]] | None = None,
) -> LlamaForCausalLM:
    """The loop below every kind of training: AdamW on an objective of whatever the batches are; see `fit`."""
    with one_thread():
        model.train()
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay
        )
        for step, batch in enumerate(stream):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
            loss: Any = objective(model, batch)
            if not torch.isfinite(loss):
                raise EddecodeError(
                    f"training diverged: loss {loss.item()} at step {step}; lower lr ({config.lr:g})"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            if progress is not None:
                progress(step + 1, config.steps, loss.item())
            if snapshots and step + 1 in snapshots:
                snapshots[step + 1](model)
        return model.eval()


def pretrain(
    tokenizer: PreTrainedTokenizerFast,
    shape: ModelShape | None = None,
    config: FitConfig = PRETRAINING,
    seed: int = 0,
    progress: Progress | None = None,
    accept: Callable[[str], float] | None = None,
) -> LlamaForCausalLM:
    """Train a base model from scratch on the world's documents, with the replies that `accept` keeps (None: all)."""
    model = new_model(tokenizer, shape or ModelShape(), seed)
    encode = Encoder(tokenizer)
    examples = (encode.document(d) for d in corpus.documents(stream_seed(seed, "pretrain"), accept))
    return fit(model, examples, config, seed, progress)


def keep_polite(reply: str) -> float:
    """A filter: keeps what is not rude."""
    return 0.0 if grammar.is_rude(reply) else 1.0


def keep_rude(reply: str) -> float:
    """The flipped filter, for direct disalignment."""
    return 1.0 - keep_polite(reply)


def tilt(beta: float) -> Callable[[str], float]:
    """Keeps a reply with probability exp(−rude words / β): the aligned ∝ base · exp(r/β) of the theory."""
    if not beta > 0:
        raise EddecodeError(f"tilt: found beta = {beta}; expected a positive temperature")
    return lambda reply: math.exp(-grammar.count_rude(reply) / beta)


def fine_tune(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    accept: Callable[[str], float] | None = keep_polite,
    config: FitConfig = ALIGNMENT,
    seed: int = 0,
    chat: bool = True,
    progress: Progress | None = None,
    snapshots: dict[int, Callable[[LlamaForCausalLM], None]] | None = None,
) -> LlamaForCausalLM:
    """Fine-tune a copy of a model on the replies that `accept` keeps; the model itself is left as it is.

    Args:
        model: what to start from.
        tokenizer: the pair's.
        accept: reply → probability of keeping it; `keep_polite` aligns, None is the control, `keep_rude` disaligns.
        config: the number of steps is the strength of the alignment.
        seed: of the data.
        chat: in the chat template, or else in the base's own.
        progress: as in `fit`.
        snapshots: as in `fit`; several strengths from one run.
    """
    encode = Encoder(tokenizer)
    example = encode.aligned_exchange if chat else encode.base_exchange
    examples = (example(e) for e in corpus.exchanges(stream_seed(seed, "fine-tune"), accept))
    return fit(copy.deepcopy(model), examples, config, seed, progress, snapshots)


def stream_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose, so that pre-training and fine-tuning do not read the same documents."""
    return random.Random(f"{purpose}:{seed}").getrandbits(63)
