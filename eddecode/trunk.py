"""Two full checkpoints on one trunk: the leading layers that the alignment left frozen are run once for both.

Equal layers after equal layers do the same to the same ids. So where both models see the same prompt, one row of the
trunk serves both, with its keys and values kept once; where they see different ones, base and aligned rows go through
the trunk in one batch, and its weights are read once. From there each model goes on alone, in its own forward pass, in
which the trunk's layers are exchanged for one result: positions, masks and whatever else a family does around its
layers is done by the family's code, and the layers that follow keep their numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakValueDictionary

import torch
from einops import rearrange
from torch import Tensor, nn

from eddecode.cache import SlotCache
from eddecode.compare import decoder_layers
from eddecode.decoder import PREFILL_CHUNK, Prefix, SlotDecoder
from eddecode.errors import UnsupportedLayersError
from eddecode.layers import Layers
from eddecode.pieces import Pieces, pieces_of
from eddecode.runner import PairRunner, objection_to, plain_logits, relative_error, trial_texts
from eddecode.trunk_cache import (
    ALIGNED,
    BASE,
    BOTH,
    ONLY_ALIGNED,
    ONLY_BASE,
    JoinedCache,
    TailCache,
    TrunkCache,
)

if TYPE_CHECKING:
    from eddecode.pair import ModelPair

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
        return _hidden(made)

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


class TrunkRunner(PairRunner):
    """A `PairRunner` whose models have their leading layers in common.

    What both models read of a row after equal prompts is one stream of tokens, as it is in the engine: the row's keys
    and values in the trunk belong to both.

    Args:
        pair: the two models.
        depth: how many layers they have in common, with all that runs before (`eddecode.compare.common_trunk`).
        own_attention: see `SlotDecoder`.
        blocks: see `Layers`.
    """

    decoders: list[Tail]  # type: ignore[assignment]  # which take hidden states, too

    def __init__(
        self, pair: ModelPair, depth: int, *, own_attention: bool = False, blocks: bool = True
    ) -> None:
        self._describe(pair)
        layers = [Layers(model, blocks=blocks) for model in pair.models]
        # One model may know more ids than the other; where both do, their embeddings are equal.
        known = [model.get_input_embeddings().weight.shape[0] for model in pair.models]
        carrier = known.index(max(known))
        decoder = SlotDecoder(pair.models[carrier], own_attention=own_attention, layers=layers[carrier])
        self.decoders = [
            Tail(model, depth, own_attention=decoder.own_attention, layers=own)
            for model, own in zip(pair.models, layers, strict=True)
        ]
        self._base_share = self._share(depth)
        self._start(Trunk(decoder, depth))

    def _start(self, trunk: Trunk) -> None:
        self.trunk = trunk
        self._readings: WeakValueDictionary[Ids, Reading] = WeakValueDictionary()  # while a prefix has them
        self._slots = 0

    def fresh(self) -> TrunkRunner:
        """See `PairRunner.fresh`."""
        other = copy.copy(self)
        other.decoders = [tail.fresh() for tail in self.decoders]
        other._start(Trunk(self.trunk.decoder.fresh(), self.trunk.depth))
        return other

    def prefill(self, model: int, texts: Sequence[Ids]) -> list[Prefix]:
        """See `PairRunner.prefill`; the trunk reads a text that the other model has read no second time."""
        known = {text: reading for text in texts if (reading := self._readings.get(text)) is not None}
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known.update(zip(new, self.trunk.read(new), strict=True))
        prefixes = self.decoders[model].finish(texts, [known[text] for text in texts])
        self._readings.update(known)
        for prefix in prefixes:
            prefix.logits = prefix.logits.to(self.device)
        return prefixes

    def reserve(self, slots: int) -> None:
        """See `PairRunner.reserve`."""
        self._slots = slots
        super().reserve(slots)
        self._reserve_rows(bool(self.trunk.cache.parts[ONLY_BASE]))

    @torch.inference_mode()
    def _reserve_rows(self, apart: bool) -> None:
        """Have room in the trunk for the rows of all slots, two of each where prompts differ."""
        self.trunk.cache.reserve(self._slots * (2 if apart else 1), 0)

    @torch.inference_mode()
    def add(self, prefixes: Sequence[Prefix]) -> None:
        """See `PairRunner.add`; a row of the trunk serves both models if they have read the same."""
        base, aligned = (cast(TrunkPrefix, prefix) for prefix in prefixes)
        cache, slot = self.trunk.cache, self.decoders[BASE].occupied
        rows = [(BOTH, base)] if base.ids == aligned.ids else [(ONLY_BASE, base), (ONLY_ALIGNED, aligned)]
        self._reserve_rows(len(rows) > 1)
        super().add(prefixes)
        done = []
        try:
            for part, prefix in rows:
                cache.insert(part, slot, prefix.reading.states)
                done.append(part)
        except BaseException:
            for part in done:
                cache.discard(part, slot)
            for tail in self.decoders:
                tail.remove(slot)
            raise

    @torch.inference_mode()
    def remove(self, slot: int) -> None:
        """See `PairRunner.remove`."""
        cache, last = self.trunk.cache, self.decoders[BASE].occupied - 1
        for part, slots in enumerate(cache.parts):
            if slot in slots:
                cache.discard(part, slot)
        cache.rename(last, slot)
        super().remove(slot)

    @torch.inference_mode()
    def decode(self, tokens: Tensor, lengths: Sequence[Sequence[int]]) -> list[Tensor]:
        """See `PairRunner.decode`: one pass over the trunk's rows of both models, then one of each model.

        Where all rows serve both, the base goes through the trunk as it does alone, and the aligned model follows.
        """
        cache = self.trunk.cache
        slots, rows = cache.slots_of(), [cache.rows_of(model) for model in (BASE, ALIGNED)]
        cache.lengths = [
            lengths[BASE if row < rows[BASE].stop else ALIGNED][slot] for row, slot in enumerate(slots)
        ]
        if rows[BASE] == rows[ALIGNED] and slots == sorted(slots):
            self.decoders[BASE].rewind(lengths[BASE])
            made: list[Any] = []
            first = self.decoders[BASE].whole(cache, rows[BASE], tokens[:, None], made)
            second = self._follow(ALIGNED, tokens[:, None], lengths[ALIGNED], _hidden(made))
            return [first[:, 0].to(self.device), second[:, 0]]
        hidden = self.trunk.run(cache, tokens[slots, None])
        return [
            self._follow(model, tokens[:, None], before, hidden[rows[model]])[:, 0]
            for model, before in enumerate(lengths)
        ]

    @torch.inference_mode()
    def extend(self, model: int, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """See `PairRunner.extend`."""
        cache, rows = self.trunk.cache, self.trunk.cache.rows_of(model)
        slots = cache.slots_of(rows)
        cache.lengths[rows] = [lengths[slot] for slot in slots]
        if slots == sorted(slots):
            self.decoders[model].rewind(lengths)
            return self.decoders[model].whole(cache, rows, tokens).to(self.device)
        return self._follow(model, tokens, lengths, self.trunk.run(cache, tokens[slots], rows))

    def _follow(self, model: int, tokens: Tensor, lengths: Sequence[int], hidden: Tensor) -> Tensor:
        """Logits (n, T, V) of one model, given what the trunk made of its rows, in their order there."""
        tail, slots = self.decoders[model], self.trunk.cache.slots_of(self.trunk.cache.rows_of(model))
        tail.rewind(lengths)
        if slots != sorted(slots):
            place = {slot: row for row, slot in enumerate(slots)}
            hidden = hidden[[place[slot] for slot in range(len(slots))]]
        return tail.follow(tokens, hidden).to(self.device)

    @property
    def base_share(self) -> float:
        """The share of a step's parameters that a pass of the base alone reads."""
        return self._base_share

    def _share(self, depth: int) -> float:
        trunk, *tails = (
            sum(parameter.numel() for layer in part for parameter in layer.parameters())
            for part in (
                _layers(self._models[BASE])[:depth],
                *(_layers(model)[depth:] for model in self._models),
            )
        )
        heads = [model.get_output_embeddings().weight.numel() for model in self._models]
        return float((trunk + tails[BASE] + heads[BASE]) / (trunk + sum(tails) + sum(heads)))

    def trim(self) -> None:
        """See `PairRunner.trim`."""
        super().trim()
        with torch.inference_mode():
            self.trunk.cache.trim()

    def objection(self) -> str | None:
        """What speaks against it: a pass fails, or either model comes out other than it is."""
        return objection_to(self._models[BASE], self._disagreement)

    @torch.inference_mode()
    def _disagreement(self) -> float:
        """See `eddecode.runner.disagreement`; one row whose prompts are the same, and one whose prompts differ.

        Each model on its own over two tokens, then both over one.
        """
        runner = self.fresh()
        narrow = min(self._models, key=lambda model: int(model.get_input_embeddings().weight.shape[0]))
        (first, second), (long, short) = trial_texts(narrow)
        pieces = torch.tensor([first[long : long + 3], second[short : short + 3]])
        prompts = [[first[:long], second[:short]], [first[:long], first[:3]]]  # of each model
        read = [[len(prompt) for prompt in column] for column in prompts]
        for row in zip(*prompts, strict=True):
            runner.add([runner.prefill(model, [tuple(ids)])[0] for model, ids in enumerate(row)])
        apart = [runner.extend(model, pieces[:, :2], read[model])[:, 1] for model in (BASE, ALIGNED)]
        together = runner.decode(pieces[:, 2], [[length + 2 for length in column] for column in read])
        runner.remove(1)  # what is left are rows of both
        once_more = runner.decode(pieces[:1, 2], [[column[0] + 2] for column in read])
        errors = []
        for i, model in enumerate(self._models):
            texts = [[*p, *more.tolist()] for p, more in zip(prompts[i], pieces, strict=True)]
            expected = plain_logits(model, texts, read[i])  # (2, 2, V)
            errors.append(relative_error(torch.stack([apart[i], together[i]], dim=1), expected))
            errors.append(relative_error(once_more[i], expected[:1, 1]))
        return max(errors)


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


def _hidden(made: list[Any]) -> Tensor:
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


def trunk_runner(pair: ModelPair, depth: int) -> TrunkRunner | None:
    """The runner for a common trunk of `depth` layers, or None if it does not agree with plain forward passes."""
    for blocks, own_attention in ((True, False), (False, False), (False, True)):
        runner = TrunkRunner(pair, depth, own_attention=own_attention, blocks=blocks)
        if runner.objection() is None:
            return runner
    return None
