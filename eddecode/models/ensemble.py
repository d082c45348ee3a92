"""More than two models in one contrast: an ensemble of aligned models, or a small pair that steers a larger base.

The contrast is a weighted sum of any number of logits. A group of models defines which of a prompt's two texts each
model gets, and how α is distributed over the weights; an id must mean the same token to all of its models. A group is
built from pairs, each checked as a `ModelPair` is, and can be used in the place of a pair: `Sampler` takes either.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, Unpack

import torch
from torch import Tensor

from eddecode.errors import PairError
from eddecode.models.checkpoint import Checkpoint
from eddecode.models.description import describe_model, describe_shared, logit_width
from eddecode.models.diagnostics import Diagnostic
from eddecode.models.load_config import LoadConfig
from eddecode.models.load_group import CheckpointRef, LoadedModels, MemoryRequirement, load_group
from eddecode.models.pair import MaskIds, ModelPair, check_ids
from eddecode.models.tensor_bytes import model_digest
from eddecode.models.tokenizer_compat import partial_vocabularies
from eddecode.prompts.types import RenderedPrompt


class LoadOptions(TypedDict, total=False):
    """Options of loading a group, the same for all of its models; see `ModelPair.load`."""

    dtype: str | torch.dtype
    device: str | torch.device | None
    device_map: Any
    quantization: str | None
    offload_folder: str | Path | None
    long_context: bool
    check_memory: bool
    slots: int
    length: int | None
    mask_ids: MaskIds


class LogitMixture:
    """Models over one vocabulary whose logits are summed with weights that depend on α. Use `Ensemble` or `Transfer`.

    Attributes:
        models, names: in the order of the terms; term 0 is what is sampled from at α = 0, and the plausibility
            constraint is relative to it.
        sides: per model, "base" or "aligned": which of a prompt's two texts it gets.
        base_tokenizer, aligned_tokenizer: those that render the two texts (the first model's of each side).
        tokenizer, vocabulary, partial_vocabularies, eos_ids, context_windows, device, notes: as in `ModelPair`, over
            all models.
    """

    sides: tuple[str, ...]

    def __init__(self, pairs: Sequence[tuple[ModelPair, tuple[int, int]]], names: Sequence[str]) -> None:
        """pairs: checked pairs that together contain every model, each with the positions of its two models."""
        self.names = tuple(names)
        self.notes: list[Diagnostic] = []
        found: dict[int, tuple[Any, Any, frozenset[int], int | None, Checkpoint | None]] = {}
        masks: list[Tensor] = []
        for pair, positions in pairs:
            self._add_notes(pair.notes_named((self.names[positions[0]], self.names[positions[1]])))
            masks.append(pair.vocabulary)
            for k, i in enumerate(positions):
                tokenizer = (pair.base_tokenizer, pair.aligned_tokenizer)[k]
                checkpoint = pair.checkpoints[k] if pair.checkpoints else None
                found[i] = pair.models[k], tokenizer, pair.eos_ids[k], pair.context_windows[k], checkpoint
        ordered = [found[i] for i in range(len(self.names))]
        self.models: tuple[Any, ...] = tuple(entry[0] for entry in ordered)
        self.tokenizers: tuple[Any, ...] = tuple(entry[1] for entry in ordered)
        self.eos_ids: tuple[frozenset[int], ...] = tuple(entry[2] for entry in ordered)
        self.context_windows: tuple[int | None, ...] = tuple(entry[3] for entry in ordered)
        self.checkpoints: tuple[Checkpoint | None, ...] = tuple(entry[4] for entry in ordered)
        width = min(len(mask) for mask in masks)
        self.vocabulary: Tensor = torch.stack([mask[:width] for mask in masks]).all(dim=0)
        if not self.vocabulary.any():
            raise PairError(
                f"no id is known to all of {', '.join(self.names)}; every model of a group must share one tokenizer"
            )
        self.partial_vocabularies = partial_vocabularies(
            list(map(logit_width, self.models)), self.tokenizers, self.vocabulary
        )
        self.device: torch.device = pairs[0][0].device
        self._pairs = list(pairs)
        self._digests: tuple[str, ...] | None = None
        self._check_templates()
        self.notes.sort(key=lambda note: note.level != "warning")

    def _add_notes(self, notes: Sequence[Diagnostic]) -> None:
        """Add notes, each once: several pairs may have the same model."""
        self.notes += [note for note in dict.fromkeys(notes) if note not in self.notes]

    def _check_templates(self) -> None:
        """Models of one side get the same text: a note where their tokenizers have different chat templates."""
        for side in ("base", "aligned"):
            members = [i for i, other in enumerate(self.sides) if other == side]
            templates = {getattr(self.tokenizers[i], "chat_template", None) for i in members}
            if len(templates - {None}) > 1:
                self.notes.append(
                    Diagnostic(
                        "warning",
                        "templates",
                        f"{', '.join(self.names[i] for i in members)} have different chat templates",
                        f"All use the template of {self.names[members[0]]}; put first the one whose template you want",
                    )
                )

    @property
    def base_tokenizer(self) -> Any:
        """The tokenizer that renders the base prompt."""
        return self.tokenizers[self.sides.index("base")]

    @property
    def aligned_tokenizer(self) -> Any:
        """The tokenizer that renders the aligned prompt."""
        return self.tokenizers[self.sides.index("aligned")]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that decodes completions, or None."""
        return self.aligned_tokenizer or self.base_tokenizer

    def logit_weights(self, alpha: float) -> tuple[float, ...]:
        """The weight of each model's logits at α."""
        raise NotImplementedError

    def input_ids(self, prompt: RenderedPrompt) -> tuple[tuple[int, ...], ...]:
        """The token ids of a prompt for each model: base_ids on the base side, aligned_ids on the aligned side."""
        return tuple(prompt.base_ids if side == "base" else prompt.aligned_ids for side in self.sides)

    def check_prompt(self, prompt: RenderedPrompt) -> None:
        """PromptError for an id that one of the models has no embedding for."""
        for name, model, ids in zip(self.names, self.models, self.input_ids(prompt), strict=True):
            check_ids(name, model, ids)

    def digests(self) -> tuple[str, ...]:
        """Per model 32 hexadecimal digits, a fingerprint of weights and settings; see `ModelPair.digests`."""
        if self._digests is None:
            found: dict[int, bytes] = {}
            for pair, positions in self._pairs:
                for i, model, eos, checkpoint in zip(
                    positions, pair.models, pair.eos_ids, pair.checkpoints or (None, None), strict=True
                ):
                    if i not in found and checkpoint is None:
                        found[i] = model_digest(model, eos)
                    elif i not in found and checkpoint is not None:
                        found[i] = checkpoint.digest(found[positions[0]] if checkpoint.is_adapter else b"")
            self._digests = tuple(found[i].hex() for i in range(len(self.names)))
        return self._digests

    def describe(self) -> dict[str, Any]:
        """What was loaded, as data for json.dumps.

        {"kind": the class, "names": [of the models], "sides": ["base" | "aligned"],
         "models": {name: as "base" in `ModelPair.describe`},
         "vocabulary", "memory", "notes": as in `ModelPair.describe`, over all models}
        """
        models = {
            name: describe_model(*facts)
            for name, *facts in zip(
                self.names,
                self.models,
                self.tokenizers,
                self.checkpoints,
                self.eos_ids,
                self.context_windows,
                strict=True,
            )
        }
        described = {"kind": type(self).__name__, "names": list(self.names), "sides": list(self.sides)}
        return described | {"models": models} | describe_shared(self.models, self.vocabulary, self.notes)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.names)}, vocabulary={int(self.vocabulary.sum())})"


class Ensemble(LogitMixture):
    """One base and several aligned models: weights (1+α, −α/n, …, −α/n).

    The contrast reverses the geometric mean of the aligned models; an ensemble of one is the pair itself. The
    aligned_logprob of a completion is the mean of theirs.
    """

    def __init__(self, pairs: Sequence[ModelPair]) -> None:
        """pairs: one base (the same object in each) with each aligned model."""
        if not pairs:
            raise PairError("an ensemble was given no aligned model; expected at least one")
        if any(pair.base is not pairs[0].base for pair in pairs):
            raise PairError(
                "the pairs of an ensemble have different bases; expected one base for all of them"
            )
        self.sides = ("base", *("aligned" for _ in pairs))
        super().__init__(
            [(pair, (0, i)) for i, pair in enumerate(pairs, 1)], ("base", *_aligned_names(len(pairs)))
        )

    def logit_weights(self, alpha: float) -> tuple[float, ...]:
        """(1 + α, −α/n, …, −α/n)."""
        count = len(self.models) - 1
        return (1.0 + alpha, *(-alpha / count for _ in range(count)))

    @classmethod
    def load(
        cls,
        base: str | Path,
        aligned: Sequence[str | Path],
        *,
        revision: str | None = None,
        **options: Unpack[LoadOptions],
    ) -> Ensemble:
        """Load a base and its aligned models (each may be a PEFT adapter over the base).

        options: see `LoadOptions`. PairError as in `ModelPair.load`.
        """
        if isinstance(aligned, str | Path):
            raise PairError(f"aligned is {str(aligned)!r}; expected a list of checkpoints")
        refs = [
            CheckpointRef(base, "base", revision),
            *(
                CheckpointRef(path, name, revision, adapter_base=0)
                for path, name in zip(aligned, _aligned_names(len(aligned)), strict=True)
            ),
        ]
        pairs, notes = load_pairs(refs, [(0, i) for i in range(1, len(refs))], **options)
        group = cls(pairs)
        group._add_notes(notes)
        return group

    @classmethod
    def from_models(
        cls,
        base: Any,
        aligned: Sequence[Any],
        base_tokenizer: Any = None,
        aligned_tokenizers: Sequence[Any] | None = None,
    ) -> Ensemble:
        """An ensemble of models that are in memory already; all are put in eval mode, without gradients."""
        tokenizers = list(aligned_tokenizers) if aligned_tokenizers is not None else [None] * len(aligned)
        return cls(
            [
                ModelPair.from_models(base, model, base_tokenizer, tokenizer)
                for model, tokenizer in zip(aligned, tokenizers, strict=True)
            ]
        )


class Transfer(LogitMixture):
    """A larger base, steered by the difference that the alignment made to a small pair: weights (1, α, −α).

    Emulated fine-tuning (arXiv 2310.12962, §3) and proxy-tuning (arXiv 2401.08565, §3) add the small pair's difference,
    aligned minus base, to a larger base; here α > 0 subtracts it, and α = −1 is their distribution. A completion's
    aligned_logprob is log p_large + log p_aligned − log p_base, the emulated aligned large model up to a constant per
    token; so the implied reward is the small pair's.

    The models are named "large", "base" and "aligned"; large and base get a prompt's base_ids.
    """

    sides = ("base", "base", "aligned")

    def __init__(self, small: ModelPair, steered: ModelPair) -> None:
        """small: the pair whose difference steers. steered: the large base with the small pair's aligned model."""
        if steered.aligned is not small.aligned:
            raise PairError(
                "the two pairs of a transfer have different aligned models; expected the same in both"
            )
        super().__init__([(small, (1, 2)), (steered, (0, 2))], ("large", "base", "aligned"))
        self.device = steered.device

    def logit_weights(self, alpha: float) -> tuple[float, ...]:
        """(1, α, −α)."""
        return 1.0, alpha, -alpha

    @classmethod
    def load(
        cls,
        large: str | Path,
        base: str | Path,
        aligned: str | Path,
        *,
        revision: str | None = None,
        **options: Unpack[LoadOptions],
    ) -> Transfer:
        """Load a larger base and a small pair (whose aligned side may be a PEFT adapter over its base).

        options: see `LoadOptions`. PairError as in `ModelPair.load`.
        """
        refs = [
            CheckpointRef(large, "large", revision),
            CheckpointRef(base, "base", revision),
            CheckpointRef(aligned, "aligned", revision, adapter_base=1),
        ]
        (small, steered), notes = load_pairs(refs, [(1, 2), (0, 2)], **options)
        group = cls(small, steered)
        group._add_notes(notes)
        return group

    @classmethod
    def from_models(
        cls,
        large: Any,
        base: Any,
        aligned: Any,
        large_tokenizer: Any = None,
        base_tokenizer: Any = None,
        aligned_tokenizer: Any = None,
    ) -> Transfer:
        """A transfer of models that are in memory already; all are put in eval mode, without gradients."""
        small = ModelPair.from_models(base, aligned, base_tokenizer, aligned_tokenizer)
        return cls(small, ModelPair.from_models(large, aligned, large_tokenizer, small.aligned_tokenizer))


ModelGroup: TypeAlias = ModelPair | LogitMixture


def _aligned_names(count: int) -> list[str]:
    """The names of an ensemble's aligned models."""
    return ["aligned"] if count == 1 else [f"aligned {i}" for i in range(1, count + 1)]


def load_pairs(
    refs: Sequence[CheckpointRef],
    pairs: Sequence[tuple[int, int]],
    *,
    check_memory: bool = True,
    slots: int = 1,
    length: int | None = None,
    mask_ids: MaskIds = None,
    **options: Any,
) -> tuple[list[ModelPair], list[Diagnostic]]:
    """Load checkpoints, each once, and pair them: (one ModelPair per two positions in `pairs`, notes on all models)."""
    loaded = load_group(refs, LoadConfig.create(**options), MemoryRequirement(slots, length, check_memory))
    return [_pair(loaded, positions, refs, mask_ids) for positions in pairs], loaded.notes


def _pair(
    loaded: LoadedModels, positions: tuple[int, int], refs: Sequence[CheckpointRef], mask_ids: MaskIds
) -> ModelPair:
    """Two of the loaded models as a pair; errors use the group's names for them."""
    names = refs[positions[0]].side, refs[positions[1]].side
    return ModelPair.from_loaded(loaded, positions, notes=[], names=names, mask_ids=mask_ids)
