"""The logits of one model after every token of given texts.

All logits of a batch at once would be larger than the model (2,048 positions of 256k ids are 2 GB). So the model's body
processes a whole batch in one pass, which is efficient for matrix products, and its head is evaluated on a limited
number of positions at a time. A prompt that several completions share is prefilled once. What a model family computes
between body and logits (scaling, soft-capping) is left to its own forward pass, with the body replaced by a function
that returns the hidden states computed before.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from eddecode.errors import EngineError
from eddecode.execution.interfaces import ModelRunner
from eddecode.execution.kv_cache import BatchedKVCache
from eddecode.execution.patching import patched_forward
from eddecode.execution.runner import CachedModelRunner, PairRunner
from eddecode.execution.uncached_runner import UncachedModelRunner
from eddecode.models.sizes import PREFILL_CHUNK

Ids = tuple[int, ...]
KeysAndValues = list[tuple[Tensor, Tensor]]  # per layer
Text = tuple[Ids, Ids]  # a prompt and a completion


class BatchLogits(Protocol):
    """The logits of one model for a batch of texts, computed on request."""

    def logits(self, positions: Tensor) -> Tensor:
        """Logits that predict the tokens at `positions`.

        Args:
            positions: (K, 2) int64: the row in the batch, and the index in its completion.

        Returns:
            (K, V) float32.
        """
        ...


class LogitsReader(Protocol):
    """Computes one model's logits for completions that follow their prompts."""

    def prefill(self, texts: Sequence[Text]) -> BatchLogits:
        """Process one batch; prompts and completions are not empty."""
        ...

    def clear_cache(self) -> None:
        """Free what is kept from one batch to the next."""
        ...


def readers_for(runner: PairRunner) -> list[LogitsReader]:
    """A reader of each model of a pair or group, on its own weights."""
    return [
        _reader_for(each, model, name)
        for each, model, name in zip(runner.separate_runners, runner.models, runner.names, strict=True)
    ]


def _reader_for(runner: ModelRunner, model: Any, name: str) -> LogitsReader:
    """The faster reader if its logits agree with a plain forward pass; else the slow one, with a warning.

    Args:
        runner: of that model alone.
        model: the model.
        name: how the warning calls it.
    """
    if isinstance(runner, CachedModelRunner) and runner.serves_ragged_passes:
        problem = _self_check(runner)
        if problem is None:
            return HiddenStatesReader(runner)
        warnings.warn(
            f"{name} ({model.config.model_type}): running the head apart from the body {problem}; every text is "
            "scored by plain forward passes instead, which is exact but slow",
            stacklevel=3,
        )
    return ForwardPassReader(model)


class HiddenStatesReader:
    """Runs the model's body over a batched cache, and its head where logits are asked for."""

    def __init__(self, runner: CachedModelRunner) -> None:
        self.runner = runner
        self.body = runner.model.base_model
        if self.body is runner.model:
            raise EngineError(f"{type(runner.model).__name__} has no body of its own (base_model)")
        self._prompt_cache: dict[
            Ids, KeysAndValues
        ] = {}  # prompts of the latest batch, without their last token

    @torch.inference_mode()
    def prefill(self, texts: Sequence[Text]) -> HiddenStates:
        """See `LogitsReader.prefill`. Texts of one prompt should follow each other, also from batch to batch."""
        self._prefill_prompts({prompt[:-1] for prompt, _ in texts})
        cache = BatchedKVCache()
        longest = max(len(completion) for _, completion in texts)
        cache.reserve(len(texts), longest + max(len(prompt) - 1 for prompt, _ in texts))
        for prompt, _ in texts:
            if len(prompt) > 1:
                cache.add(self._prompt_cache[prompt[:-1]])
            else:
                cache.lengths.append(0)
        return self._forward(cache, [(prompt[-1], *completion[:-1]) for prompt, completion in texts])

    def clear_cache(self) -> None:
        """See `LogitsReader.clear_cache`."""
        self._prompt_cache.clear()

    def _prefill_prompts(self, prefixes: set[Ids]) -> None:
        """Keep the keys and values of exactly these prompts, computing those that are missing."""
        self._prompt_cache = {ids: states for ids, states in self._prompt_cache.items() if ids in prefixes}
        missing = (ids for ids in prefixes if ids and ids not in self._prompt_cache)
        new = sorted(missing, key=lambda ids: (len(ids), ids))
        while new:
            # Rows are padded to the longest, so only rows of at least half its length join: padding is below half.
            batch = [ids for ids in new if 2 * len(ids) >= len(new[-1])]
            batch = batch[-max(1, PREFILL_CHUNK // len(new[-1])) :]
            cache = BatchedKVCache()
            cache.lengths = [0] * len(batch)
            cache.reserve(len(batch), len(batch[-1]))
            self._forward(cache, batch)
            for row, ids in enumerate(batch):
                self._prompt_cache[ids] = cache.export_prefix(row, len(ids))
            del new[-len(batch) :]

    def _forward(self, cache: BatchedKVCache, rows: Sequence[Ids]) -> HiddenStates:
        """Append rows of ids, padded to the longest, in chunks of PREFILL_CHUNK positions."""
        longest = max(map(len, rows))
        padded = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in rows])
        hidden = []
        for start in range(0, longest, PREFILL_CHUNK):
            chunk = padded[:, start : start + PREFILL_CHUNK]
            result = self.runner.run_patched(self.body, cache, chunk)
            hidden.append(result[0])  # (B, T, d)
            cache.advance([chunk.shape[1]] * len(rows))
        states = torch.cat(hidden, dim=1) if len(hidden) > 1 else hidden[0]
        return HiddenStates(self, type(result), states)

    @torch.inference_mode()
    def logits_of(self, hidden: Tensor, output_class: type[Any]) -> Tensor:
        """Logits (K, V) float32 of hidden states (K, d), by the model's own forward pass around its body.

        output_class: the class of the body's output.
        """
        model, head = self.runner.model, self.runner.head
        states = hidden[None]
        positions = torch.arange(len(hidden))[None]
        ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=self.runner.device)

        def body(*args: Any, **options: Any) -> Any:
            return output_class(last_hidden_state=states)

        with head.selecting(positions), patched_forward({self.body: body}):
            result = model(input_ids=ids, use_cache=False)
        return head.select(result.logits, positions)[0]


class HiddenStates:
    """The body's hidden states (B, T, d) of a batch."""

    def __init__(self, reader: HiddenStatesReader, output_class: type[Any], hidden: Tensor) -> None:
        self.reader, self.output_class, self.hidden = reader, output_class, hidden

    def logits(self, positions: Tensor) -> Tensor:
        """See `BatchLogits.logits`."""
        rows, indices = positions.to(self.hidden.device).unbind(dim=-1)
        return self.reader.logits_of(self.hidden[rows, indices], self.output_class)


class ForwardPassReader:
    """Runs the whole text again for every block of positions; works for any causal language model."""

    def __init__(self, model: Any) -> None:
        self.runner = UncachedModelRunner(model)

    def prefill(self, texts: Sequence[Text]) -> ForwardPassLogits:
        """See `LogitsReader.prefill`; the model runs only when logits are asked for."""
        return ForwardPassLogits(self.runner, texts)

    def clear_cache(self) -> None:
        """Nothing is kept."""


class ForwardPassLogits:
    """A batch of texts; every request for logits runs the model."""

    def __init__(self, runner: UncachedModelRunner, texts: Sequence[Text]) -> None:
        self.runner, self.texts = runner, texts

    @torch.inference_mode()
    def logits(self, positions: Tensor) -> Tensor:
        """See `BatchLogits.logits`."""
        parts = []
        for row in dict.fromkeys(positions[:, 0].tolist()):
            prompt, completion = self.texts[row]
            indices = positions[positions[:, 0] == row, 1]
            text = prompt + completion[: int(indices.max())]
            parts.append(self.runner.logits_at([text], (indices + len(prompt) - 1)[None])[0])
        return torch.cat(parts)


def _self_check(runner: CachedModelRunner) -> str | None:
    """Why HiddenStatesReader cannot be used: it fails, or differs from a plain forward pass; None if it can."""
    from eddecode.execution.self_check import Expectation, attempt

    def check() -> str | None:
        expectation = Expectation.of(runner.model)
        probe = expectation.probe
        lengths = [*probe.prefixes[:-1], 1]  # of the prompts; the last is the shortest that there can be
        texts: list[Text] = [
            (tuple(text[:length]), (*text[length:], text[0]))
            for text, length in zip(probe.texts, lengths, strict=True)
        ]
        indices = probe.positions - torch.tensor(lengths)[:, None] + 1  # (rows, K) in the completions
        rows = torch.arange(len(texts))[:, None].expand_as(indices)
        positions = torch.stack([rows, indices], dim=-1).flatten(0, 1)
        found = HiddenStatesReader(runner).prefill(texts).logits(positions)
        return expectation.problem(found.reshape(expectation.exact.shape))

    return attempt(runner.model, check)
