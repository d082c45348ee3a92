"""ModelPair: a base and an aligned model that can be decoded against each other.

Everything that would otherwise fail later, or give wrong results without an error, is checked once when a pair is made:
which ids mean the same token to both models, which ids end a completion, how long a text may be. What is no error but
worth knowing becomes a `Diagnostic` in `notes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from eddecode.errors import PairError, PromptError
from eddecode.models.checkpoint import Checkpoint
from eddecode.models.description import (
    config_difference,
    describe_model,
    describe_shared,
    dtype_name,
    logit_width,
)
from eddecode.models.diagnostics import Diagnostic
from eddecode.models.end_of_text import Sources, eos_sources, source_notes
from eddecode.models.load_config import LoadConfig
from eddecode.models.load_group import CheckpointRef, LoadedModels, MemoryRequirement, load_group
from eddecode.models.loader import freeze, require_eager_for_softcap
from eddecode.models.sizes import has_accelerate_hooks, input_device
from eddecode.models.template_notes import template_notes
from eddecode.models.tensor_bytes import model_digest
from eddecode.models.tokenizer_compat import (
    check_vocabularies,
    eos_notes,
    partial_vocabularies,
    tokens_by_id,
)
from eddecode.models.weight_diff import compare_tensors
from eddecode.prompts.types import RenderedPrompt

__all__ = ["Diagnostic", "MaskIds", "ModelPair"]

MaskIds: TypeAlias = Literal["differing"] | None

_WINDOW_FIELDS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "n_ctx",
)


class ModelPair:
    """Two causal language models over one vocabulary.

    Attributes:
        base, aligned: transformers models in eval mode, without gradients. models: both, in this order; names: theirs.
        base_tokenizer, aligned_tokenizer: or None; a side without one uses the other's, with a note.
        tokenizer: the one that decodes completions (aligned's, else base's, else None).
        vocabulary: (V,) bool on the CPU, True where an id may be sampled; V is the smaller of the two logit widths.
            Where one model alone has a weight: `partial_vocabularies`.
        eos_ids: per model, the ids that end its text. eos_sources: the same, each with where it was found.
        context_windows: per model, the number of positions, or None if unlimited.
        device: where token ids are sent (the device of the base's embedding).
        notes: what is worth knowing, warnings first.
    """

    def __init__(
        self,
        base: Any,
        aligned: Any,
        tokenizers: tuple[Any, Any],
        *,
        checkpoints: tuple[Checkpoint, Checkpoint] | None = None,
        notes: list[Diagnostic] | None = None,
        names: tuple[str, str] = ("base", "aligned"),
        mask_ids: MaskIds = None,
    ) -> None:
        """notes: on loading the two. names: what notes and errors call them. mask_ids: as `load` takes it."""
        if mask_ids not in (None, "differing"):
            raise PairError(f"mask_ids is {mask_ids!r}; expected 'differing' or None")
        self.base, self.aligned, self.names = base, aligned, names
        self._mask_ids = mask_ids
        self._load_notes, self._own_tokenizers = list(notes or []), tokenizers
        self.base_tokenizer, self.aligned_tokenizer = (
            tokenizers[0] or tokenizers[1],
            tokenizers[1] or tokenizers[0],
        )
        self.checkpoints = checkpoints
        self._digests: tuple[str, str] | None = None
        self.eos_sources = self._eos_sources()
        self.eos_ids = (frozenset(self.eos_sources[0]), frozenset(self.eos_sources[1]))
        self.context_windows = (_context_window(base), _context_window(aligned))
        self.device: torch.device = input_device(base)
        self.vocabulary: Tensor
        self.vocabulary, found = self._check(names)
        self.notes = _warnings_first([*self._load_notes, *found])

    @property
    def models(self) -> tuple[Any, Any]:
        """(base, aligned)."""
        return self.base, self.aligned

    @property
    def factors(self) -> dict[str, tuple[Tensor, Tensor]] | None:
        """Of a plain LoRA release: layer → A (r, in), B (out, r) with aligned = base + B·A; else None."""
        return getattr(self.aligned, "low_rank_factors", None)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that decodes completions, or None."""
        return self.aligned_tokenizer or self.base_tokenizer

    @property
    def tokenizers(self) -> tuple[Any, Any]:
        """(base_tokenizer, aligned_tokenizer)."""
        return self.base_tokenizer, self.aligned_tokenizer

    @cached_property
    def partial_vocabularies(self) -> dict[tuple[bool, ...], Tensor]:
        """Which models have a weight → the ids that may be sampled there, (V,) bool, where these are not `vocabulary`.

        At α = 0 and α = −1 one model alone has a weight, and what it alone knows may be sampled.
        """
        return partial_vocabularies(list(map(logit_width, self.models)), self.tokenizers, self.vocabulary)

    @staticmethod
    def logit_weights(alpha: float) -> tuple[float, float]:
        """The weights of the two models' logits, (1 + α, −α) (Zhou et al., ACL 2024, equation 6)."""
        return 1.0 + alpha, -alpha

    @staticmethod
    def input_ids(prompt: RenderedPrompt) -> tuple[tuple[int, ...], ...]:
        """The token ids of a prompt for each model, in the order of `models`."""
        return prompt.ids

    @classmethod
    def load(
        cls,
        base: str | Path,
        aligned: str | Path,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        device_map: Any = None,
        revision: str | None = None,
        base_revision: str | None = None,
        aligned_revision: str | None = None,
        quantization: str | None = None,
        offload_folder: str | Path | None = None,
        long_context: bool = False,
        check_memory: bool = True,
        slots: int = 1,
        length: int | None = None,
        mask_ids: MaskIds = None,
    ) -> ModelPair:
        """Load two checkpoints: local folders or hub ids; `aligned` may be a PEFT adapter over the base.

        Tensors that are identical to the bit are held once: do not change a loaded model's weights in place.

        Args:
            base, aligned: local folders or hub ids.
            dtype: "auto" (as saved), "float32", "bfloat16", "float16", or a torch.dtype.
            device: by default the CUDA device if there is one (each model on its own if there are several of a kind),
                else the CPU.
            device_map: instead of `device`, as in transformers (needs accelerate): one for both models, or
                {"base": …, "aligned": …}.
            revision: a hub branch, tag or commit for both; base_revision and aligned_revision for one.
            quantization: "8bit" or "4bit" (needs bitsandbytes).
            offload_folder: where a device_map may put weights that fit on no device.
            long_context: read texts of every length by the rotary angles for long ones, where a model has two sets of
                them (Phi-3, Phi-4-mini); without it such a model reads texts up to its original window only.
            check_memory: refuse a pair that does not fit.
            slots, length: completions at a time, and tokens of each with its prompt (default 2,048, or the models' own
                limit), that must fit beside the weights.
            mask_ids: "differing" masks the ids that stand for different tokens in the two tokenizers; None refuses such
                a pair, unless only control tokens differ.

        Raises:
            PairError: a checkpoint is missing, damaged, incomplete, not in safetensors, needs its own code, is no
                causal language model or too large; or the tokenizers disagree.
        """
        load_config = LoadConfig.create(
            dtype=dtype,
            device=device,
            device_map=device_map,
            quantization=quantization,
            offload_folder=offload_folder,
            long_context=long_context,
        )
        given = {"base": (base, base_revision), "aligned": (aligned, aligned_revision)}
        for side, (path, own) in given.items():
            if own is not None and Path(path).is_dir():
                raise PairError(
                    f"{side}_revision is {own!r:.60}, and the {side} checkpoint {str(path)!r} is a local folder, which "
                    "has no revisions; give the hub id, or leave the revision out"
                )
        sources = (
            CheckpointRef(base, "base", base_revision or revision),
            CheckpointRef(aligned, "aligned", aligned_revision or revision, adapter_base=0),
        )
        loaded = load_group(sources, load_config, MemoryRequirement(slots, length, check_memory))
        return cls.from_loaded(loaded, (0, 1), mask_ids=mask_ids)

    @classmethod
    def from_loaded(
        cls,
        loaded: LoadedModels,
        at: tuple[int, int],
        notes: list[Diagnostic] | None = None,
        names: tuple[str, str] = ("base", "aligned"),
        mask_ids: MaskIds = None,
    ) -> ModelPair:
        """A pair of the models at two positions of a loaded group; notes: instead of the group's."""
        i, j = at
        return cls(
            loaded.models[i],
            loaded.models[j],
            (loaded.tokenizers[i], loaded.tokenizers[j]),
            checkpoints=(loaded.checkpoints[i], loaded.checkpoints[j]),
            notes=loaded.notes if notes is None else notes,
            names=names,
            mask_ids=mask_ids,
        )

    @classmethod
    def from_models(
        cls,
        base: Any,
        aligned: Any,
        base_tokenizer: Any = None,
        aligned_tokenizer: Any = None,
        *,
        mask_ids: MaskIds = None,
    ) -> ModelPair:
        """A pair of models that are in memory already; both are put in eval mode, without gradients.

        Soft-capped attention (Gemma-2) is set to eager, as when a pair is loaded.
        """
        for side, model in (("base", base), ("aligned", aligned)):
            head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
            if head is None or getattr(model.config, "is_encoder_decoder", False):
                raise PairError(
                    f"the {side} model is a {type(model).__name__}; expected a transformers causal language model, "
                    "with a config and an output embedding"
                )
            if not has_accelerate_hooks(model) and all(parameter.is_meta for parameter in model.parameters()):
                raise PairError(f"the {side} model is on the device meta, without weights; load them first")
            require_eager_for_softcap(model.config)
            freeze(model)
        return cls(base, aligned, (base_tokenizer, aligned_tokenizer), mask_ids=mask_ids)

    # Checks ------------------------------------------------------------------------------------------------------

    def notes_named(self, names: tuple[str, str]) -> list[Diagnostic]:
        """The notes with other names for the two models, such as a group of more than two gives them."""
        components = dict(zip(self.names, names, strict=True))
        loading = [
            replace(note, component=components.get(note.component, note.component))
            for note in self._load_notes
        ]
        return _warnings_first([*loading, *self._check(names)[1]])

    def _check(self, names: tuple[str, str]) -> tuple[Tensor, list[Diagnostic]]:
        """(vocabulary, notes on the two models); PairError if they cannot be decoded against each other."""
        notes = self._tokenizer_notes(names)
        widths = (logit_width(self.base), logit_width(self.aligned))
        tokenizers = self.tokenizers
        vocabulary, more = check_vocabularies(
            widths,
            tokenizers,
            names,
            shared_ends=self.eos_ids[0] & self.eos_ids[1],
            mask_differing=self._mask_ids == "differing",
        )
        table = tokens_by_id(self.tokenizer) if self.tokenizer else None
        for name, sources in zip(names, self.eos_sources, strict=True):
            more += source_notes(name, sources, table)
        notes += more + eos_notes(self.eos_ids, vocabulary, table, names)
        notes += template_notes(names[1], self.aligned_tokenizer)
        if self.context_windows[0] != self.context_windows[1]:
            message = (
                f"{names[0]} has {self.context_windows[0]} positions, {names[1]} {self.context_windows[1]}"
            )
            notes.append(Diagnostic("info", "context", message, "A request must fit into both"))
        if self.base.dtype != self.aligned.dtype:
            notes.append(
                Diagnostic(
                    "warning",
                    "dtype",
                    f"{names[0]} is in {dtype_name(self.base.dtype)}, {names[1]} in {dtype_name(self.aligned.dtype)}",
                    "Their rounding differs, and α multiplies it; set dtype= to load both alike",
                )
            )
        return vocabulary, notes

    def _eos_sources(self) -> tuple[Sources, Sources]:
        """Per model, the ids that end its text. The aligned model is the one that reads a chat template by default."""
        base, aligned = self.checkpoints or (None, None)
        own = self._own_tokenizers
        return (
            eos_sources(self.base, own[0], base, chat=False),
            eos_sources(self.aligned, own[1], aligned, chat=True),
        )

    def _tokenizer_notes(self, names: tuple[str, str]) -> list[Diagnostic]:
        missing = [tokenizer is None for tokenizer in self._own_tokenizers]
        if all(missing):
            return [
                Diagnostic(
                    "warning",
                    "tokenizer",
                    "neither checkpoint has a tokenizer",
                    "Only RenderedPrompt works, completions have no text, and every id is taken to be a token",
                )
            ]
        return [
            Diagnostic(
                "warning",
                name,
                f"has no tokenizer; the {other} model's is used for both",
                "Check that it was trained with that one, or put its tokenizer files into its folder",
            )
            for name, other, is_missing in zip(names, reversed(names), missing, strict=True)
            if is_missing
        ]

    def check_prompt(self, prompt: RenderedPrompt) -> None:
        """PromptError for an id that a model has no embedding for; on a GPU such an id would end the process."""
        for name, model, ids in zip(self.names, self.models, self.input_ids(prompt), strict=True):
            check_ids(name, model, ids)

    # Description ------------------------------------------------------------------------------------------------

    def digests(self) -> tuple[str, str]:
        """(base, aligned): 32 hexadecimal digits each, a fingerprint of weights and settings.

        Computed from the safetensors files, whatever their sharding (an adapter's includes its base's), or from memory
        for models that were not loaded from files. Every byte is read once; then the result is kept.
        """
        if self._digests is None:
            if self.checkpoints is None:
                base, aligned = (
                    model_digest(model, eos) for model, eos in zip(self.models, self.eos_ids, strict=True)
                )
            else:
                ours, theirs = self.checkpoints
                base = ours.digest()
                aligned = theirs.digest(base if theirs.is_adapter else b"")
            self._digests = base.hex(), aligned.hex()
        return self._digests

    def describe(self, tensors: bool = False) -> dict[str, Any]:
        """What was loaded, as data for json.dumps.

        {"base": {"source", "adapter": bool, "architecture", "model_type", "parameters", "dtypes": {name: parameters},
                  "devices": [name], "attention", "logit_width", "tokenizer": None | {"class", "size", "chat_template":
                  bool, "bos": token | None, "eos": token | None}, "eos_ids": [int], "context_window": int | None,
                  "weights_bytes", "kv_bytes_per_token": int | None, "files": None | the comparison with the files, as
                  in `loaded_weights.FileComparison`},
         "aligned": the same,
         "vocabulary": {"width", "sampleable", "masked"},
         "memory": {"weights_bytes": resident, of both, "shared_bytes": of tensors that both models use},
         "notes": [{"level", "where", "what", "action"}],
         "config_difference": {field of config.json: [base's value, aligned's value]},
         "tensors": only if asked for (reads every weight once):
                 {"identical": [names equal to the bit], "identical_bytes", "moved": {name: relative change},
                  "different_shape": [name], "not_in_memory": [name], "only_base": [name], "only_aligned": [name],
                  "layers": [{"layer", "parameters", "identical": bool, "relative_change"}], "relative_change": of all,
                  "trunk": None | the identical leading layers: {"layers", "of", "parameters", "share", "layer_bytes",
                  "cache_bytes_per_token"}}}

        A relative change is ‖aligned − base‖ / ‖base‖ (Frobenius); None where the base's tensor is all zeros.
        """
        tokenizers, checkpoints = self.tokenizers, self.checkpoints or (None, None)
        result: dict[str, Any] = {
            name: describe_model(
                self.models[i], tokenizers[i], checkpoints[i], self.eos_ids[i], self.context_windows[i]
            )
            for i, name in enumerate(self.names)
        }
        result |= describe_shared(self.models, self.vocabulary, self.notes)
        result["config_difference"] = config_difference(self.base, self.aligned)
        if tensors:
            result["tensors"] = compare_tensors(self.base, self.aligned)
        return result

    def __repr__(self) -> str:
        sides = ", ".join(
            f"{name}={type(model).__name__}" for name, model in zip(self.names, self.models, strict=True)
        )
        return f"ModelPair({sides}, vocabulary={int(self.vocabulary.sum())}, notes={len(self.notes)})"


def _warnings_first(notes: list[Diagnostic]) -> list[Diagnostic]:
    return sorted(notes, key=lambda note: note.level != "warning")


def check_ids(name: str, model: Any, ids: Sequence[int]) -> None:
    """PromptError if a model has no embedding for an id; on a GPU such an id would end the process."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    if max(ids) >= rows:
        raise PromptError(
            f"id {max(ids)} is beyond the {rows} embeddings of the {name} model; render the prompt with the tokenizer "
            "of that model"
        )


def _context_window(model: Any) -> int | None:
    """The maximal number of positions; None if the configuration sets no limit."""
    config = model.config.get_text_config()
    for name in _WINDOW_FIELDS:
        size = getattr(config, name, None)
        if isinstance(size, int) and size > 0:
            return size
    return None
