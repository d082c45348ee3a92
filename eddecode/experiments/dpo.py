"""Alignment by preferences: direct preference optimization (DPO), with hard labels or with label noise (cDPO).

DPO (Rafailov et al., arXiv 2305.18290, eq. 7) raises the probability of a chosen reply over that of a rejected one,
measured against a reference model. With hard labels it has no finite optimum: the margin grows for as long as it
trains. Label noise ε (cDPO: Mitchell, "A note on DPO with noisy preferences", 2023) puts the optimum at a margin of
log((1−ε)/ε)/β nats, so that β sets the strength of the alignment.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from eddecode.errors import EddecodeError
from eddecode.experiments import corpus
from eddecode.experiments.training import (
    IGNORED,
    Encoder,
    Example,
    FitConfig,
    Progress,
    collate,
    optimize,
    single_thread,
    stream_seed,
)
from eddecode.testbed import language

PREFERENCE_TUNING = FitConfig(steps=100, lr=5e-4, warmup=0.0, decay=1.0)
_MAX_DRAWS = 1000


@dataclass(frozen=True)
class PreferencePair:
    """A chosen and a rejected reply to one request."""

    chosen: corpus.Exchange
    rejected: corpus.Exchange


def preference_pairs(seed: int, flip: bool = False) -> Iterator[PreferencePair]:
    """An endless stream: one reply that is not rude (chosen) and one that is (rejected), of the same request.

    Args:
        seed: of the stream.
        flip: choose the rude reply; such preferences disalign.
    """
    rng = random.Random(seed)
    while True:
        request = corpus.training_request(rng)
        found: dict[bool, str] = {}
        for _ in range(_MAX_DRAWS):
            reply = language.sample_reply(request, rng)
            found.setdefault(language.is_rude(reply), reply)
            if len(found) == 2:
                break
        else:
            raise EddecodeError(
                f"{_MAX_DRAWS} replies to {request.text!r} were all rude or all not rude; expected both kinds"
            )
        yield PreferencePair(corpus.Exchange(request, found[flip]), corpus.Exchange(request, found[not flip]))


def reply_logprobs(model: LlamaForCausalLM, batch: Sequence[Example]) -> Tensor:
    """(B,) log-probability of the tokens that carry loss in each example, nats, summed."""
    ids, labels = collate(batch, int(model.config.pad_token_id))
    logprobs = model(input_ids=ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)  # (B, T-1, V)
    taken: Tensor = logprobs.gather(-1, ids[:, 1:, None])[..., 0]
    return taken.masked_fill(labels[:, 1:] == IGNORED, 0.0).sum(-1)


def dpo_loss(margins: Tensor, beta: float, noise: float = 0.0) -> Tensor:
    """Mean of −(1−ε)·log σ(β·m) − ε·log σ(−β·m) over margins m (B,), nats; ε = 0 is DPO with hard labels.

    A margin is log(π/π_ref) of the chosen reply minus that of the rejected one.
    """
    return -((1 - noise) * logsigmoid(beta * margins) + noise * logsigmoid(-beta * margins)).mean()


def train_dpo(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    beta: float,
    noise: float = 0.1,
    config: FitConfig = PREFERENCE_TUNING,
    seed: int = 0,
    flip: bool = False,
    chat: bool = True,
    progress: Progress | None = None,
) -> LlamaForCausalLM:
    """Train a copy of a model by (c)DPO with the model itself as the reference; the model itself is unchanged.

    Args:
        model: the model to start from, and the reference.
        tokenizer: the tokenizer of the pair.
        beta: of the DPO loss; with noise, the target margin is log((1−noise)/noise)/beta nats.
        noise: probability that a label is wrong; 0 is plain DPO.
        config: steps, learning rate, and preferences per step.
        seed: of the data.
        flip: prefer the rude reply.
        chat: train in the chat template; otherwise in the format of the base.
        progress: as in `training.fit`.

    Raises:
        EddecodeError: β is not positive, or the noise is not in [0, 0.5).
    """
    if not beta > 0 or not 0 <= noise < 0.5:
        raise EddecodeError(
            f"train_dpo: found beta = {beta}, noise = {noise}; expected beta > 0, 0 ≤ noise < 0.5"
        )
    encode = Encoder(tokenizer)
    example = encode.aligned_exchange if chat else encode.base_exchange
    drawn = preference_pairs(stream_seed(seed, "prefer"), flip)
    reference = model

    def batches() -> Iterator[tuple[list[Example], Tensor]]:
        for _ in range(config.steps):
            batch = list(islice(drawn, config.batch))
            both = [example(p.chosen) for p in batch] + [example(p.rejected) for p in batch]
            with torch.no_grad():
                before = reply_logprobs(reference, both)
            yield both, before

    def objective(policy: LlamaForCausalLM, batch: tuple[list[Example], Tensor]) -> Tensor:
        both, before = batch
        chosen, rejected = (reply_logprobs(policy, both) - before).chunk(2)
        return dpo_loss(chosen - rejected, beta, noise)

    with single_thread():
        return optimize(copy.deepcopy(model), batches(), config, objective, progress)
