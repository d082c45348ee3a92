"""Training on the toy language: pre-training a base model, and fine-tuning it on a selection of replies.

One loop serves both. All alignments by fine-tuning are the same procedure with another selection of replies: those
that are not rude (a filter), all of them (a control), rude ones only (direct disalignment), or each with probability
exp(−cost/β) (a tilt, the aligned model of the theory). The number of steps is the strength of the alignment. Training
is deterministic given the seed: data and initial weights come from seeded generators, and torch runs on one thread.
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
from eddecode.testbed import language
from eddecode.testbed.language import CustomerRequest

IGNORED = -100
"""Label of a token without loss."""
Progress = Callable[[int, int, float], None]
"""Called as (step, steps, loss)."""
Example = tuple[list[int], int]
"""Token ids, and how many of them at the start are given and carry no loss."""
Batch = TypeVar("Batch")


@dataclass(frozen=True)
class ModelShape:
    """Shape of a model: a Llama with tied embeddings. `init_std` is the standard deviation of the initial weights."""

    hidden: int = 128
    layers: int = 3
    heads: int = 4
    feed_forward: int = 336
    init_std: float = 0.05


@dataclass(frozen=True)
class FitConfig:
    """Length and learning rate of a training.

    Attributes:
        steps: optimizer steps.
        lr: peak learning rate of AdamW.
        batch: examples per step.
        warmup: share of the steps with a linear warm-up.
        decay: share of `lr` at the end of the cosine; 1 keeps the rate constant.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
    """

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
def single_thread() -> Iterator[None]:
    """Run torch on one thread, so that sums do not depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def new_model(tokenizer: PreTrainedTokenizerFast, shape: ModelShape, seed: int) -> LlamaForCausalLM:
    """A randomly initialized float32 Llama for this tokenizer; the global random state is unchanged."""
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
    """Turns documents and exchanges into examples; prompt and reply are tokenized separately."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer

    def document(self, document: corpus.Document) -> Example:
        """A pre-training document: loss on everything after the begin token."""
        return self._plain(document.text) + reply_ids(self.tokenizer, document.reply), 1

    def base_exchange(self, exchange: corpus.Exchange) -> Example:
        """An exchange in the format of the base: loss on the reply and the end token."""
        return self._exchange(self.base_prompt(exchange.request), exchange.reply)

    def aligned_exchange(self, exchange: corpus.Exchange) -> Example:
        """An exchange in the chat template: loss on the reply and the end token."""
        return self._exchange(self.aligned_prompt(exchange.request), exchange.reply)

    def base_prompt(self, request: CustomerRequest) -> list[int]:
        """Ids of a request in the format of the base, with the begin token."""
        return self._plain(corpus.BASE_TEMPLATE.replace("{prompt}", request.text))

    def aligned_prompt(self, request: CustomerRequest) -> list[int]:
        """Ids of a request in the chat template of the aligned model, with the begin token."""
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": request.text}],
            chat_template=CHAT_TEMPLATE,
            add_generation_prompt=True,
            tokenize=False,
        )
        return token_ids(self.tokenizer, text, begin=False)

    def _exchange(self, prompt: list[int], reply: str) -> Example:
        return prompt + reply_ids(self.tokenizer, reply), len(prompt)

    def _plain(self, text: str) -> list[int]:
        return token_ids(self.tokenizer, text, begin=True)


def token_ids(tokenizer: PreTrainedTokenizerFast, text: str, *, begin: bool) -> list[int]:
    """Ids of a text, with or without a begin token; by the tokenizer itself, a third of the time of calling it."""
    return list(tokenizer.backend_tokenizer.encode(text, add_special_tokens=begin).ids)


def reply_ids(tokenizer: PreTrainedTokenizerFast, reply: str) -> list[int]:
    """Ids of a reply with the end token, without a begin token."""
    return [*token_ids(tokenizer, reply, begin=False), int(tokenizer.eos_token_id)]


def batches(examples: Iterator[Example], size: int, seed: int, pool: int = 32) -> Iterator[list[Example]]:
    """Batches of examples of similar length: a pool of `pool` batches is sorted by length, cut and shuffled."""
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
    """Learning rate of a step: linear warm-up, then a cosine from `lr` to `decay · lr`."""
    warm = config.warmup * config.steps
    if step < warm:
        return config.lr * (step + 1) / (warm + 1)
    progress = (step - warm) / max(1.0, config.steps - warm)
    return config.lr * (config.decay + (1 - config.decay) * 0.5 * (1 + math.cos(math.pi * progress)))


Loss = Callable[[LlamaForCausalLM, Sequence[Example]], Tensor]


def negative_log_likelihood(model: LlamaForCausalLM, batch: Sequence[Example]) -> Tensor:
    """Mean negative log-likelihood of the tokens that carry loss, nats per token: a scalar with gradient."""
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
    loss: Loss = negative_log_likelihood,
) -> LlamaForCausalLM:
    """Train a model in place on a stream of examples; returns it in eval mode.

    Args:
        model: float32, trained in place; parameters without gradient are unchanged.
        examples: an endless stream.
        config: steps, learning rate, batch size.
        seed: of the order of the batches.
        progress: called after every step.
        snapshots: step → function that is called with the model, in train mode, after that many steps.
        loss: the objective, of a batch of examples of similar length.

    Raises:
        EddecodeError: the loss is not finite.
    """
    stream = islice(batches(examples, config.batch, seed), config.steps)
    return optimize(model, stream, config, loss, progress, snapshots)


def optimize(
    model: LlamaForCausalLM,
    stream: Iterator[Batch],
    config: FitConfig,
    objective: Callable[[LlamaForCausalLM, Batch], Tensor],
    progress: Progress | None = None,
    snapshots: dict[int, Callable[[LlamaForCausalLM], None]] | None = None,
) -> LlamaForCausalLM:
    """The training loop: AdamW on an objective of a model and a batch of any type; see `fit`."""
    with single_thread():
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
    """Train a base model from scratch on documents, with the replies that `accept` keeps (None: all)."""
    model = new_model(tokenizer, shape or ModelShape(), seed)
    encode = Encoder(tokenizer)
    examples = (encode.document(d) for d in corpus.documents(stream_seed(seed, "pretrain"), accept))
    return fit(model, examples, config, seed, progress)


def accept_polite(reply: str) -> float:
    """A filter that keeps replies that are not rude."""
    return 0.0 if language.is_rude(reply) else 1.0


def accept_rude(reply: str) -> float:
    """A filter that keeps rude replies, for direct disalignment."""
    return 1.0 - accept_polite(reply)


def accept_tilted(beta: float) -> Callable[[str], float]:
    """Keep a reply with probability exp(−rude words / β): the aligned model ∝ base · exp(r/β) of the theory.

    Raises:
        EddecodeError: β is not positive.
    """
    if not beta > 0:
        raise EddecodeError(f"accept_tilted: found beta = {beta}; expected a positive number")
    return lambda reply: math.exp(-language.count_rude(reply) / beta)


def fine_tune(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    accept: Callable[[str], float] | None = accept_polite,
    config: FitConfig = ALIGNMENT,
    seed: int = 0,
    chat: bool = True,
    progress: Progress | None = None,
    snapshots: dict[int, Callable[[LlamaForCausalLM], None]] | None = None,
) -> LlamaForCausalLM:
    """Fine-tune a copy of a model on the replies that `accept` keeps; the model itself is unchanged.

    Args:
        model: the model to start from.
        tokenizer: the tokenizer of the pair.
        accept: reply → probability of keeping it; `accept_polite` aligns, None is the control, `accept_rude` disaligns.
        config: the number of steps is the strength of the alignment.
        seed: of the data.
        chat: train in the chat template; otherwise in the format of the base.
        progress: as in `fit`.
        snapshots: as in `fit`; gives several strengths from one run.
    """
    encode = Encoder(tokenizer)
    example = encode.aligned_exchange if chat else encode.base_exchange
    examples = (example(e) for e in corpus.exchanges(stream_seed(seed, "fine-tune"), accept))
    return fit(copy.deepcopy(model), examples, config, seed, progress, snapshots)


def stream_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose, so that pre-training and fine-tuning do not draw the same documents."""
    return random.Random(f"{purpose}:{seed}").getrandbits(63)
