"""PairRunner: (tokens, slots) → (base logits, aligned logits).

One decoder per model, kept in step: a slot is the same row in all of them, though the models have read different
prompts and stand at different positions. The runner knows nothing of sampling, and nothing of requests.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eddecode.capture import Capture
from eddecode.decoder import Decoder, Prefix, RecomputeDecoder, SlotDecoder
from eddecode.errors import EngineError
from eddecode.graph import GraphDecoder
from eddecode.layers import Layers
from eddecode.memory import is_out_of_memory

if TYPE_CHECKING:
    from eddecode.mixture import ModelGroup

# How far a cached decode may be from a plain forward pass, relative to the largest logit. Rounding stays far below
# it; a mask or a position that a model ignores lies far above it.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.06, torch.float16: 0.02}


class PairRunner:
    """Runs the models of a pair over shared slots; occupied slots are 0 … n−1.

    Each model is tried once on short texts: where decoding through the cache does not agree with a plain forward
    pass, that model is recomputed from scratch for every token, and a warning says so.

    Args:
        pair: the models.
        capture: how to capture the step of a model, so that it need not be launched from Python (`eddecode.graph`);
            None captures nothing.
    """

    _capture: Capture | None = None

    def __init__(self, pair: ModelGroup, capture: Capture | None = None) -> None:
        self._describe(pair)
        self._capture = capture
        self.decoders.extend(self.apart)

    def _describe(self, pair: ModelGroup) -> None:
        self.names = pair.names
        self.device = pair.device
        self._context_windows, self._models = pair.context_windows, pair.models
        self.decoders: list[Decoder] = []

    @property
    def windows(self) -> list[int | None]:
        """Per model, the longest text that it can be decoded on; None where there is no limit."""
        limits = [
            [limit for limit in (window, rope_window(model)) if limit is not None]
            for window, model in zip(self._context_windows, self._models, strict=True)
        ]
        return [min(limit, default=None) for limit in limits]

    @cached_property
    def apart(self) -> list[SlotDecoder | RecomputeDecoder]:
        """Decoders of each model on its own weights, also where the runner decodes several in one pass."""
        return [
            decoder_for(model, name, self._capture)
            for model, name in zip(self._models, self.names, strict=True)
        ]

    def fresh(self) -> PairRunner:
        """The same models with no slot occupied.

        Every engine gets one of its own: two that decode in turns, or one that was given up half-way, would
        otherwise leave their rows in each other's slots.
        """
        other = copy.copy(self)
        other.decoders = [decoder.fresh() for decoder in self.decoders]
        return other

    def prefill(self, model: int, texts: Sequence[tuple[int, ...]]) -> list[Prefix]:
        """Let one model read texts, in one padded batch, without touching a slot."""
        prefixes = self.decoders[model].prefill(texts)
        for prefix in prefixes:
            prefix.logits = prefix.logits.to(self.device)
        return prefixes

    def reserve(self, slots: int, positions: Sequence[int] = ()) -> None:
        """Have room for that many rows, so that adding them does not grow the buffers one by one.

        Args:
            slots: rows.
            positions: per model, how many positions a row may come to have; empty if that is not known.
        """
        for decoder, most in zip(self.decoders, positions or [0] * len(self.decoders), strict=True):
            decoder.reserve(slots, most)

    def add(self, prefixes: Sequence[Prefix]) -> None:
        """Occupy the next slot with a row that has read one prefix per model: in all models, or in none."""
        for done, (decoder, prefix) in enumerate(zip(self.decoders, prefixes, strict=True)):
            try:
                decoder.add(prefix)
            except BaseException:
                for earlier in self.decoders[:done]:
                    earlier.remove(earlier.occupied - 1)
                raise

    def remove(self, slot: int) -> None:
        """Vacate a slot; the last occupied one moves into its place."""
        for decoder in self.decoders:
            decoder.remove(slot)

    def decode(self, tokens: Tensor, lengths: Sequence[Sequence[int]]) -> list[Tensor]:
        """Append tokens to every row, in all models.

        Args:
            tokens: (n, T) int64, those of each occupied slot.
            lengths: per model, how many tokens each row has read before. A pass that failed half-way is repeated
                from there.

        Returns:
            Per model (n, T, V_i) float32: the logits after each token.
        """
        return [self.extend(model, tokens, before) for model, before in enumerate(lengths)]

    def extend(self, model: int, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """Append (n, T) tokens to every row of one model, of the given lengths before; logits after each, (n, T, V)."""
        decoder = self.decoders[model]
        decoder.rewind(lengths)
        return decoder.extend(tokens).to(self.device)

    @property
    def base_share(self) -> float:
        """The base model's share of all models' parameters: about its share of a step's time."""
        sizes = [sum(p.numel() for p in model.parameters()) for model in self._models]
        return float(sizes[0] / sum(sizes))

    def trim(self) -> None:
        """Give back memory that the occupied slots do not need."""
        for decoder in self.decoders:
            decoder.trim()


def decoder_for(model: Any, name: str, capture: Capture | None = None) -> SlotDecoder | RecomputeDecoder:
    """The fastest decoder that agrees with a plain forward pass of the model."""
    if capture is not None:
        graphs = GraphDecoder(model, capture)
        objection = objection_to(model, partial(disagreement, graphs, (1, 1, 1)))
        if objection is None:
            return graphs.fresh()
        warn_without_graphs(name, model, objection)
    for decoder in _ladder(model):
        objection = objection_to(model, partial(disagreement, decoder))
        if objection is None:
            return decoder.fresh()
    warnings.warn(
        f"{name} ({model.config.model_type}): decoding through a key-value cache {objection}; the whole text is "
        "recomputed for every token instead, which is exact but slow",
        stacklevel=2,
    )
    return RecomputeDecoder(model)


def _ladder(model: Any) -> Iterator[SlotDecoder]:
    """Ways to decode a model through a cache, the fastest first; a slower one is made when it is needed."""
    decoder = SlotDecoder(model)
    yield decoder
    if decoder.layers.blocks:
        decoder = SlotDecoder(model, layers=Layers(model, blocks=False))
        yield decoder
    if not decoder.own_attention:
        yield SlotDecoder(model, own_attention=True, layers=decoder.layers)


def warn_without_graphs(name: str, model: Any, objection: str) -> None:
    """Say that a model's steps are not captured although that was asked for, and why."""
    warnings.warn(
        f"{name} ({model.config.model_type}): decoding by CUDA graphs {objection}; its steps are launched one by one "
        "instead, which gives the same and is slower",
        stacklevel=3,
    )


def objection_to(model: Any, trial: Callable[[], float]) -> str | None:
    """What speaks against a way to decode a model: its trial fails, or differs from a plain forward pass.

    Raises:
        EngineError: there is no memory for the trial.
    """
    try:
        error = trial()
    except (EngineError, ValueError, TypeError, AttributeError, RuntimeError, IndexError, KeyError) as why:
        if is_out_of_memory(why):
            raise EngineError(
                f"not enough memory to try the model ({model.config.model_type}) on a few tokens: use a "
                'smaller dtype, a larger device, or device_map="auto"'
            ) from why
        return f"failed: {type(why).__name__}: {str(why).splitlines()[0] if str(why) else 'no message'}"
    limit = TOLERANCE.get(model.dtype, 0.06)
    return None if error <= limit else f"was off by {error:.2g} of the largest logit, above {limit:g}"


def rope_window(model: Any) -> int | None:
    """Positions up to which the model's rotary frequencies stay the same, or None if they always do.

    "longrope" (Phi-3) and "dynamic" choose them by the longest text in the batch: beyond this length a row would
    depend on its mates, and keys that are cached already would have been turned by other angles.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    by_kind = [
        part for part in rope.values() if isinstance(part, dict)
    ]  # one per kind of layer, or one for all
    changing = [part for part in by_kind or [rope] if part.get("rope_type") in ("longrope", "dynamic")]
    originals = [
        part.get("original_max_position_embeddings") or config.max_position_embeddings for part in changing
    ]
    return min(map(int, originals), default=None)


@torch.inference_mode()
def disagreement(decoder: SlotDecoder, pieces: tuple[int, ...] = (2, 1)) -> float:
    """Largest difference between cached decoding and plain forward passes, relative to the largest logit.

    Two rows of different lengths read a text through the cache, and then three tokens in `pieces`: of several and of
    one, or one by one where a step of one token is what is tried. Each is also run alone and whole.
    """
    texts, read = trial_texts(decoder.model)
    for text, length in zip(texts, read, strict=True):
        decoder.add(decoder.prefill([tuple(text[:length])])[0])
    more = torch.tensor([text[length : length + 3] for text, length in zip(texts, read, strict=True)])
    after = [decoder.extend(piece) for piece in torch.split(more, list(pieces), dim=1)]
    found = torch.cat(after, dim=1)[:, 1:]  # (2, 2, V)
    return relative_error(found, plain_logits(decoder.model, texts, read))


def trial_texts(model: Any) -> tuple[list[list[int]], list[int]]:
    """Two texts to try a decoder on, and how much of each it reads at first."""
    width = model.get_input_embeddings().weight.shape[0]
    return [[(7 * i * i + 3 * i + 1) % width for i in range(start, start + 7)] for start in (2, 5)], [4, 2]


def plain_logits(model: Any, texts: Sequence[Sequence[int]], read: Sequence[int]) -> Tensor:
    """Logits after two and after three tokens more than `read`, (texts, 2, V), by plain forward passes."""
    plain = RecomputeDecoder(model)
    rows = [
        [plain.prefill([tuple(text[: length + more])])[0].logits for more in (2, 3)]
        for text, length in zip(texts, read, strict=True)
    ]
    return torch.stack([torch.stack(row) for row in rows])


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest error, relative to the size of a large logit, or to its own where a logit is larger still.

    A padded id may stand at −1e4 or −inf in a sound model: it must not set the scale for the others.
    """
    finite = expected.isfinite()
    if not torch.equal(finite, found.isfinite()) or not torch.equal(expected[~finite], found[~finite]):
        return math.inf  # NaN equals nothing, not even itself
    found, expected = found[finite].double(), expected[finite].double()
    size = expected.abs()
    large = size.sort().values[int(0.99 * (size.numel() - 1))].clamp(min=torch.finfo(torch.float32).tiny)
    return ((found - expected).abs() / size.clamp(min=large)).max().item()
