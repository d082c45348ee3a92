"""Alignment of a pre-trained model: samples of its own, and LoRA adapters that are trained on them.

Both steps can be interrupted: samples are kept batch by batch, adapters epoch by epoch with the optimizer's state.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from eddecode.experiments.real.protocol import RealProtocol
from eddecode.experiments.training import IGNORED, collate
from eddecode.utils.files import atomic_write

WARM_UP = 5  # steps
Item = TypeVar("Item")
Report = Callable[[str, int, int], None]
"""Called as (what is being done, steps done, steps in total)."""


@dataclass(frozen=True)
class Sample:
    """A completion of the base model.

    Attributes:
        opener: the prompt.
        token_ids: of the completion.
        text: of the completion.
    """

    opener: str
    token_ids: tuple[int, ...]
    text: str


def draw_samples(
    model: Any,
    tokenizer: Any,
    openers: Sequence[str],
    protocol: RealProtocol,
    folder: Path,
    seed: int,
    report: Report,
) -> list[Sample]:
    """Completions of the base model at temperature 1 without truncation, `protocol.samples` per opener.

    Args:
        model: the base model, float32.
        tokenizer: its tokenizer.
        openers: prompts.
        protocol: sizes.
        folder: where finished batches are kept; a batch that is there is read.
        seed: with the number of the batch it decides the draws.
        report: told after every batch.
    """
    rows = [opener for opener in openers[: protocol.training_openers] for _ in range(protocol.samples)]
    starts = range(0, len(rows), protocol.sampling_batch)
    samples: list[Sample] = []
    for number, start in enumerate(starts):
        file = folder / f"samples-{number:04d}.json"
        if not file.exists():
            batch = rows[start : start + protocol.sampling_batch]
            drawn = _draw(model, tokenizer, batch, protocol.tokens, (seed << 16) + number)
            atomic_write(file, json.dumps([vars(sample) for sample in drawn]))
        samples += [
            Sample(row["opener"], tuple(row["token_ids"]), row["text"])
            for row in json.loads(file.read_text("utf-8"))
        ]
        report("samples of the base", number + 1, len(starts))
    return samples


def _draw(model: Any, tokenizer: Any, rows: Sequence[str], tokens: int, seed: int) -> list[Sample]:
    tokenizer.padding_side = "left"
    inputs = tokenizer(list(rows), return_tensors="pt", padding=True)
    torch.manual_seed(seed)
    written = model.generate(
        **inputs, max_new_tokens=tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0
    )[:, inputs["input_ids"].shape[1] :]
    samples = []
    for opener, ids in zip(rows, written.tolist(), strict=True):
        ended = tokenizer.eos_token_id in ids
        kept = ids[: ids.index(tokenizer.eos_token_id) + 1] if ended else ids
        samples.append(Sample(opener, tuple(kept), tokenizer.decode(kept, skip_special_tokens=True)))
    return samples


def train_adapter(
    model: Any,
    items: Sequence[Item],
    loss_of: Callable[[Any, Sequence[Item]], Tensor],
    protocol: RealProtocol,
    epochs: int,
    folder: Path,
    seed: int,
    report: Report,
) -> dict[int, Path]:
    """LoRA adapters after each epoch of training; the model itself stays as it was.

    The rate rises over five steps, then falls linearly to a tenth.

    Args:
        model: the base model, float32.
        items: what it is trained on.
        loss_of: (model with the adapter, a batch of items) → scalar loss.
        protocol: rank, rate and batch.
        epochs: passes over the items.
        folder: where adapters are kept; epochs that are there are not trained again.
        seed: of the adapter's initial weights and of the order.
        report: told after every step.

    Returns:
        epoch → folder of the adapter.
    """
    from peft import LoraConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    found = {epoch: folder / f"epoch-{epoch}" for epoch in range(1, epochs + 1)}
    done = max((epoch for epoch, path in found.items() if (path / "done").exists()), default=0)
    if done == epochs:
        return found
    torch.manual_seed(seed)
    config = LoraConfig(
        r=protocol.rank, lora_alpha=2 * protocol.rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    tuned = get_peft_model(model, config)
    parameters = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=protocol.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    if done:
        state = torch.load(found[done] / "training.pt", weights_only=True)
        set_peft_model_state_dict(tuned, state["adapter"])
        optimizer.load_state_dict(state["optimizer"])
    steps = -(-len(items) // protocol.batch)
    tuned.train()
    for epoch in range(done + 1, epochs + 1):
        order = list(items)
        random.Random(seed * 1000 + epoch).shuffle(order)
        for step in range(steps):
            taken = (epoch - 1) * steps + step
            rate = min(1.0, (taken + 1) / WARM_UP) * (1 - 0.9 * taken / (epochs * steps))
            for group in optimizer.param_groups:
                group["lr"] = protocol.learning_rate * rate
            loss = loss_of(tuned, order[step * protocol.batch : (step + 1) * protocol.batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            report(f"{folder.name}, epoch {epoch} of {epochs}, loss {loss.item():.2f}", step + 1, steps)
        tuned.save_pretrained(str(found[epoch]))
        state = {"adapter": get_peft_model_state_dict(tuned), "optimizer": optimizer.state_dict()}
        torch.save(state, found[epoch] / "training.pt")
        (found[epoch] / "done").touch()
    tuned.unload()
    return found


def fine_tuning_loss(tokenizer: Any) -> Callable[[Any, Sequence[Sample]], Tensor]:
    """Mean cross-entropy of the tokens of the completions."""

    def loss(tuned: Any, samples: Sequence[Sample]) -> Tensor:
        return -torch.cat(token_logprobs(tuned.get_base_model(), tokenizer, samples)).mean()

    return loss


def token_logprobs(model: Any, tokenizer: Any, samples: Sequence[Sample]) -> list[Tensor]:
    """Log-probabilities of the tokens of each completion, nats.

    Logits are made for those positions only: at a real vocabulary they are most of the work.

    Args:
        model: a causal language model of transformers with an adapter inside it, or without one.
        tokenizer: its tokenizer.
        samples: prompts with completions.
    """
    ids, labels = collate([_example(tokenizer, sample) for sample in samples], tokenizer.pad_token_id or 0)
    hidden = model.model(input_ids=ids, attention_mask=(labels != IGNORED) | _given(labels)).last_hidden_state
    wanted = labels[:, 1:] != IGNORED
    logits = model.lm_head(hidden[:, :-1][wanted]).float()
    found = -torch.nn.functional.cross_entropy(logits, labels[:, 1:][wanted], reduction="none")
    return list(found.split(wanted.sum(1).tolist()))  # type: ignore[no-untyped-call]


def _example(tokenizer: Any, sample: Sample) -> tuple[list[int], int]:
    """Token ids of opener and completion, and how many of them carry no loss."""
    opener = tokenizer(sample.opener)["input_ids"]
    return [*opener, *sample.token_ids], len(opener)


def _given(labels: Tensor) -> Tensor:
    """(B, T) bool: positions before the first label of each row, which are the opener."""
    return (labels != IGNORED).cumsum(1) == 0
