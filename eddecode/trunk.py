"""Two full checkpoints on one trunk: the leading layers that the alignment left frozen are run once for both.

Equal layers after equal layers do the same to the same ids. So where both models see the same prompt, one row of the
trunk serves both, with its keys and values kept once; where they see different ones, base and aligned rows go through
the trunk in one batch, and its weights are read once. From there each model goes on alone (`eddecode.trunk_parts`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from eddecode.compare import decoder_layers
from eddecode.decoder import Prefix, SlotDecoder
from eddecode.layers import Layers
from eddecode.runner import PairRunner, objection_to, plain_logits, relative_error, trial_texts
from eddecode.trunk_cache import ALIGNED, BASE, BOTH, ONLY_ALIGNED, ONLY_BASE
from eddecode.trunk_parts import Ids, Reading, Tail, Trunk, TrunkPrefix, layer_result

if TYPE_CHECKING:
    from eddecode.pair import ModelPair


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
        self._slots, self._positions = 0, 0

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

    def reserve(self, slots: int, positions: Sequence[int] = ()) -> None:
        """See `PairRunner.reserve`."""
        self._slots, self._positions = slots, max(positions, default=0)
        super().reserve(slots, positions)
        self._reserve_rows(bool(self.trunk.cache.parts[ONLY_BASE]))

    @torch.inference_mode()
    def _reserve_rows(self, apart: bool) -> None:
        """Have room in the trunk for the rows of all slots, two of each where prompts differ."""
        self.trunk.cache.expect(self._slots * (2 if apart else 1), self._positions)

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
            first = self.decoders[BASE].whole(cache, rows[BASE], tokens, made)
            second = self._follow(ALIGNED, tokens, lengths[ALIGNED], layer_result(made))
            return [first.to(self.device), second]
        hidden = self.trunk.run(cache, tokens[slots])
        return [
            self._follow(model, tokens, before, hidden[rows[model]]) for model, before in enumerate(lengths)
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
                _stack(self._models[BASE])[:depth],
                *(_stack(model)[depth:] for model in self._models),
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
        together = runner.decode(pieces[:, 2:], [[length + 2 for length in column] for column in read])
        runner.remove(1)  # what is left are rows of both
        once_more = runner.decode(pieces[:1, 2:], [[column[0] + 2] for column in read])
        errors = []
        for i, model in enumerate(self._models):
            texts = [[*p, *more.tolist()] for p, more in zip(prompts[i], pieces, strict=True)]
            expected = plain_logits(model, texts, read[i])  # (2, 2, V)
            errors.append(relative_error(torch.stack([apart[i], together[i][:, 0]], dim=1), expected))
            errors.append(relative_error(once_more[i][:, 0], expected[:1, 1]))
        return max(errors)


def _stack(model: Any) -> list[Any]:
    return list(decoder_layers(model) or ())


def trunk_runner(pair: ModelPair, depth: int) -> TrunkRunner | None:
    """The runner for a common trunk of `depth` layers, or None if it does not agree with plain forward passes."""
    for blocks, own_attention in ((True, False), (False, False), (False, True)):
        runner = TrunkRunner(pair, depth, own_attention=own_attention, blocks=blocks)
        if runner.objection() is None:
            return runner
    return None
