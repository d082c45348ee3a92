"""The two parts of a model whose leading layers another model has too: the trunk, and what follows it.

Each part is a pass of the model's own body in which the other part's layers are exchanged for one result. So positions,
masks and whatever else a family does around its layers is done by the family's code, and the layers that follow the
trunk keep their numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from eddecode.cache import SlotCache
from eddecode.compare import decoder_layers
from eddecode.decoder import PREFILL_CHUNK, Prefix, SlotDecoder
from eddecode.errors import UnsupportedLayersError
from eddecode.layers import Layers
from eddecode.pieces import Pieces, pieces_of
from eddecode.trunk_cache import JoinedCache, TailCache, TrunkCache

Ids = tuple[int, ...]


@dataclass(eq=False)
class Reading:
    """A text as the trunk has read it.

    Attributes:
        states: per layer of the trunk (keys, values), each (heads, length, head_dim).
        hidden: (length, d), what its last layer made of every token.
    """

    states: list[tuple[Tensor, Tensor]]
    hidden: Tensor


@dataclass
class TrunkPrefix(Prefix):
    """A text that one model has read: `states` are those of its own layers, the trunk's are in `reading`."""

    reading: Reading = field(default_factory=lambda: Reading([], torch.empty(0)))

    @property
    def nbytes(self) -> int:
        """Bytes of the states, the trunk's included: what a row takes that shares them with no other model."""
        return super().nbytes + sum(keys.nbytes + values.nbytes for keys, values in self.reading.states)


class Trunk:
    """The leading layers, as one of the models runs them.

    Args:
        decoder: of that model.
        depth: how many layers.
    """

    def __init__(self, decoder: SlotDecoder, depth: int) -> None:
        self.decoder, self.depth = decoder, depth
        self.layers = _layers(decoder.model)
        self.pieces = _pieces(decoder, depth)
        self.cache = TrunkCache()

    def run(self, cache: SlotCache, tokens: Tensor, rows: slice = slice(None)) -> Tensor:
        """What the last layer makes of (B, T) new tokens of rows of a cache, (B, T, d); they count from then on."""
        made: list[Any] = []

        def body(**inputs: Any) -> None:
            if self.pieces is not None:
                made.append(self.pieces.begin(inputs))
                return
            later = dict.fromkeys(self.layers[self.depth :], lambda *args, **options: made[0])
            with _kept(self.layers[self.depth - 1], made), _standing_in(later):
                self.decoder.model.base_model(**inputs)

        self.decoder.through(body, cache, tokens, rows)
        cache.advance([tokens.shape[1]] * len(tokens), rows)
        return layer_result(made)

    @torch.inference_mode()
    def read(self, texts: Sequence[Ids]) -> list[Reading]:
        """Read texts from their beginning, padded on the right to the longest, chunk by chunk."""
        cache = SlotCache()
        padded = _begin(cache, texts)
        chunks = torch.split(padded, PREFILL_CHUNK, dim=1)
        hidden = torch.cat([self.run(cache, chunk) for chunk in chunks], dim=1)
        return [
            Reading(cache.copy_out(row, len(text)), hidden[row, : len(text)].clone())
            for row, text in enumerate(texts)
        ]


class Tail(SlotDecoder):
    """One model from the trunk on: hidden states and tokens in, next-token logits in float32 out."""

    def __init__(self, model: Any, depth: int, *, own_attention: bool, layers: Layers) -> None:
        super().__init__(model, own_attention=own_attention, layers=layers)
        self.depth = depth
        self.cache: TailCache = TailCache(depth)
        self.common = _layers(model)[:depth]
        self.pieces = _pieces(self, depth)

    def fresh(self) -> Tail:
        """See `SlotDecoder.fresh`."""
        return Tail(self.model, self.depth, own_attention=self.own_attention, layers=self.layers)

    @torch.inference_mode()
    def finish(self, texts: Sequence[Ids], readings: Sequence[Reading]) -> list[Prefix]:
        """Read on where the trunk has read texts from their beginning."""
        cache = TailCache(self.depth)
        padded = _begin(cache, texts)
        hidden = nn.utils.rnn.pad_sequence([reading.hidden for reading in readings], batch_first=True)
        ends = torch.tensor([len(text) - 1 for text in texts])
        logits: list[Tensor] = [torch.empty(0)] * len(texts)
        for start in range(0, padded.shape[1], PREFILL_CHUNK):
            chunk = slice(start, start + PREFILL_CHUNK)
            tokens, last = padded[:, chunk], ends - start  # where rows end, in this chunk or not
            keep = rearrange(last.clamp(0, tokens.shape[1] - 1), "b -> b 1")
            after = self._after(cache, tokens, hidden[:, chunk], keep)  # (B, 1, V)
            for row, end in enumerate(last.tolist()):
                if 0 <= end < tokens.shape[1]:
                    logits[row] = after[row, 0].clone()
        return [
            TrunkPrefix(len(text), z, cache.copy_out(row, len(text)), text, reading)
            for row, (text, z, reading) in enumerate(zip(texts, logits, readings, strict=True))
        ]

    @torch.inference_mode()
    def follow(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Append (n, T) tokens, of which the trunk has made (n, T, d), to all rows; logits after each, (n, T, V)."""
        return self._after(self.cache, tokens, hidden, torch.arange(tokens.shape[1]).expand(tokens.shape))

    @torch.inference_mode()
    def whole(self, trunk: TrunkCache, rows: slice, tokens: Tensor, made: list[Any] | None = None) -> Tensor:
        """Append (n, T) tokens to all rows in one pass through the trunk, too, whose `rows` are in the order of slots.

        Returns:
            Logits after each (n, T, V). If there is a list `made`, what the trunk makes of them (n, T, d) goes there.
        """

        def all_of_it(**inputs: Any) -> Any:
            if made is None:
                return self.model(**inputs)
            if self.pieces is None:
                with _kept(self.common[-1], made):
                    return self.model(**inputs)
            pieces = self.pieces

            def body(**given: Any) -> Any:
                made.append(pieces.begin(given))
                return pieces.end(made[0], given)

            with _standing_in({self.model.base_model: body}):
                return self.model(**inputs)

        keep = torch.arange(tokens.shape[1]).expand(tokens.shape)
        return self._logits(all_of_it, JoinedCache(trunk, rows, self.cache), tokens, keep)

    def _after(self, cache: SlotCache, tokens: Tensor, hidden: Tensor, keep: Tensor) -> Tensor:
        def rest(**inputs: Any) -> Any:
            if self.pieces is not None:
                pieces = self.pieces
                stand_ins = {self.model.base_model: lambda **given: pieces.end(hidden, given)}
            else:
                stand_ins = dict.fromkeys(self.common, lambda *args, **options: hidden)
            with _standing_in(stand_ins):
                return self.model(**inputs)

        return self._logits(rest, cache, tokens, keep)

    def _logits(self, part: Callable[..., Any], cache: SlotCache, tokens: Tensor, keep: Tensor) -> Tensor:
        with self.head.keeping(keep):
            result = self.through(part, cache, tokens)
        cache.advance([tokens.shape[1]] * len(tokens))
        return self.head.kept(result.logits, keep)


def _layers(model: Any) -> list[nn.Module]:
    return list(decoder_layers(model) or ())


def _pieces(decoder: SlotDecoder, depth: int) -> Pieces | None:
    return None if decoder.own_attention else pieces_of(decoder.model, decoder.layers, depth)


def _begin(cache: SlotCache, texts: Sequence[Ids]) -> Tensor:
    """Give a cache an empty row for each text, with room for it; the texts, padded to the longest: (B, T) int64."""
    longest = max(map(len, texts))
    cache.lengths = [0] * len(texts)
    cache.reserve(len(texts), longest)
    return torch.tensor([[*text, *[text[-1]] * (longest - len(text))] for text in texts])


def layer_result(made: list[Any]) -> Tensor:
    """What a layer returned, which must be the hidden states and nothing else."""
    if not isinstance(made[0], Tensor):
        raise UnsupportedLayersError(f"a layer that returns {type(made[0]).__name__}")
    return made[0]


@contextmanager
def _kept(layer: nn.Module, made: list[Any]) -> Iterator[None]:
    """Within the block, which is within `Layers.swapped`, what a layer returns is appended to a list as well."""
    forward = layer.forward

    def kept(*args: Any, **options: Any) -> Any:
        made.append(forward(*args, **options))
        return made[-1]

    with _standing_in({layer: kept}):
        yield


@contextmanager
def _standing_in(forwards: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Within the block modules run these functions in place of whatever they run outside."""
    before = {module: vars(module).get("forward") for module in forwards}
    for module, forward in forwards.items():
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module, earlier in before.items():
            if earlier is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = earlier
