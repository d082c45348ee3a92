"""What one model makes of given texts: hidden states first, logits a few positions at a time.

Scoring wants the logits after every token of many texts. In one block they would be larger than the model (2,048
positions of 256k ids are 2 GB), so a model's body reads a whole batch at once, which is what matrix products like,
and its head is run on as many positions as there is room for. A prompt that several completions share is read once.
Whatever a family does between its body and its logits (scaling, soft-capping) is done by the family's own forward
pass, in which the body is exchanged for one that hands over the hidden states at hand.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from eddecode.errors import EngineError
from eddecode.execution.kv_cache import BatchedKVCache
from eddecode.execution.model_runner import CachedModelRunner, UncachedModelRunner
from eddecode.execution.patching import patched_forward
from eddecode.models.sizes import PREFILL_CHUNK

Ids = tuple[int, ...]
States = list[tuple[Tensor, Tensor]]
Text = tuple[Ids, Ids]  # a prompt and a completion


class Reading(Protocol):
    """A batch of completions as one model has read it."""

    def logits(self, places: Tensor) -> Tensor:
        """The logits that predict the tokens at (row, index in the completion), (K, 2) int64: (K, V) float32."""
        ...


class Reader(Protocol):
    """Lets one model read completions after their prompts."""

    def read(self, texts: Sequence[Text]) -> Reading:
        """Read one batch; prompts and completions are not empty."""
        ...

    def forget(self) -> None:
        """Give back what is kept from batch to batch."""
        ...


def reader_for(decoder: CachedModelRunner | UncachedModelRunner, name: str) -> Reader:
    """The fastest reader that agrees with a plain forward pass of the model; a warning where that is the slow one."""
    if isinstance(decoder, CachedModelRunner):
        objection = _objection(decoder)
        if objection is None:
            return BodyReader(decoder)
        warnings.warn(
            f"{name} ({decoder.model.config.model_type}): taking the head apart from the body {objection}; every text "
            "is scored by forward passes of its own instead, which is exact but slow",
            stacklevel=2,
        )
    return PlainReader(decoder.model)


class BodyReader:
    """Reads with the body of a model, over the slots of a cache."""

    def __init__(self, decoder: CachedModelRunner) -> None:
        self.decoder = decoder
        self.body = decoder.model.base_model
        if self.body is decoder.model:
            raise EngineError(f"{type(decoder.model).__name__} has no body of its own (base_model)")
        self._stems: dict[Ids, States] = {}  # prompts of the latest batch, less their last token

    @torch.inference_mode()
    def read(self, texts: Sequence[Text]) -> BodyReading:
        """See `Reader.read`. Texts with the same prompt should follow each other, in this batch or into the next."""
        self._keep_stems({prompt[:-1] for prompt, _ in texts})
        cache = BatchedKVCache()
        longest = max(len(completion) for _, completion in texts)
        cache.reserve(len(texts), longest + max(len(prompt) - 1 for prompt, _ in texts))
        for prompt, _ in texts:
            if len(prompt) > 1:
                cache.add(self._stems[prompt[:-1]])
            else:
                cache.lengths.append(0)
        return self._pass(cache, [(prompt[-1], *completion[:-1]) for prompt, completion in texts])

    def forget(self) -> None:
        """See `Reader.forget`."""
        self._stems.clear()

    def _keep_stems(self, stems: set[Ids]) -> None:
        """Have the states of these prompts, and of no others."""
        self._stems = {stem: states for stem, states in self._stems.items() if stem in stems}
        new = sorted((stem for stem in stems if stem and stem not in self._stems), key=lambda s: (len(s), s))
        while new:
            # Shorter ones are padded to the longest, hence at least half of a batch is text.
            batch = [stem for stem in new if 2 * len(stem) >= len(new[-1])]
            batch = batch[-max(1, PREFILL_CHUNK // len(new[-1])) :]
            cache = BatchedKVCache()
            cache.lengths = [0] * len(batch)
            cache.reserve(len(batch), len(batch[-1]))
            self._pass(cache, batch)
            for row, stem in enumerate(batch):
                self._stems[stem] = cache.export_prefix(row, len(stem))
            del new[-len(batch) :]

    def _pass(self, cache: BatchedKVCache, rows: Sequence[Ids]) -> BodyReading:
        """Append rows of ids, padded to the longest, chunk by chunk."""
        longest = max(map(len, rows))
        padded = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in rows])
        hidden = []
        for start in range(0, longest, PREFILL_CHUNK):
            chunk = padded[:, start : start + PREFILL_CHUNK]
            result = self.decoder.run_patched(self.body, cache, chunk)
            hidden.append(result[0])  # (B, T, d)
            cache.advance([chunk.shape[1]] * len(rows))
        return BodyReading(self, type(result), torch.cat(hidden, dim=1) if len(hidden) > 1 else hidden[0])

    @torch.inference_mode()
    def finish(self, hidden: Tensor, kind: type[Any]) -> Tensor:
        """Hidden states (K, d) of the body to logits (K, V) float32, through the model's own forward pass."""
        model, head = self.decoder.model, self.decoder.head
        states = hidden[None]
        everywhere = torch.arange(len(hidden))[None]
        ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=self.decoder.device)

        def handed_over(*args: Any, **options: Any) -> Any:
            return kind(last_hidden_state=states)

        with head.selecting(everywhere), patched_forward({self.body: handed_over}):
            result = model(input_ids=ids, use_cache=False)
        return head.select(result.logits, everywhere)[0]


class BodyReading:
    """Hidden states (B, T, d) of a batch."""

    def __init__(self, reader: BodyReader, kind: type[Any], hidden: Tensor) -> None:
        self.reader, self.kind, self.hidden = reader, kind, hidden

    def logits(self, places: Tensor) -> Tensor:
        """See `Reading.logits`."""
        rows, indices = places.to(self.hidden.device).unbind(dim=-1)
        return self.reader.finish(self.hidden[rows, indices], self.kind)


class PlainReader:
    """Runs the whole text again for every block of positions: serves any causal LM, and needs nothing of it."""

    def __init__(self, model: Any) -> None:
        self.decoder = UncachedModelRunner(model)

    def read(self, texts: Sequence[Text]) -> PlainReading:
        """See `Reader.read`; the model is run when logits are asked for."""
        return PlainReading(self.decoder, texts)

    def forget(self) -> None:
        """Nothing is kept."""


class PlainReading:
    """A batch of texts that is still to be read."""

    def __init__(self, decoder: UncachedModelRunner, texts: Sequence[Text]) -> None:
        self.decoder, self.texts = decoder, texts

    @torch.inference_mode()
    def logits(self, places: Tensor) -> Tensor:
        """See `Reading.logits`."""
        parts = []
        for row in dict.fromkeys(places[:, 0].tolist()):
            prompt, completion = self.texts[row]
            indices = places[places[:, 0] == row, 1]
            text = prompt + completion[: int(indices.max())]
            parts.append(self.decoder.after([text], (indices + len(prompt) - 1)[None])[0])
        return torch.cat(parts)


def _objection(decoder: CachedModelRunner) -> str | None:
    """What speaks against the body reader: it fails, or differs from a plain forward pass of the model."""
    from eddecode.execution.self_check import relative_error, self_check

    width = decoder.model.get_input_embeddings().weight.shape[0]
    ids = tuple((5 * i * i + 3 * i + 2) % width for i in range(9))
    texts: list[Text] = [(ids[:3], ids[3:]), (ids[1:2], ids[2:5])]
    places = torch.tensor([(0, i) for i in range(6)] + [(1, i) for i in range(3)])

    def trial() -> float:
        found = BodyReader(decoder).read(texts).logits(places)
        return relative_error(found, PlainReader(decoder.model).read(texts).logits(places))

    return self_check(decoder.model, trial)
