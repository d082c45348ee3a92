"""What is in memory, compared with what is in the files: tensor by tensor, before anything runs.

A library reports weights that it missed and weights that it left over. It does not report that it applied an adapter
that lay in the folder, that integers were read as weights, or that a tensor was rounded. So every tensor of the files
is looked up in the model under its name in the files (transformers can undo its own renaming and joining of tensors),
and its shape, dtype and values are compared: small tensors completely, large ones at evenly spaced elements.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from eddecode.errors import PairError
from eddecode.models.checkpoint import Checkpoint
from eddecode.models.stored_elements import DTYPES, TensorReader, at_positions, sample_positions
from eddecode.models.tensor_bytes import byte_view
from eddecode.models.tensor_parallel import whole
from eddecode.models.weight_diff import layer_of

EXACT_ELEMENTS = 4096  # tensors of up to that many elements are compared completely
RUN_ELEMENTS = 16  # of a larger one, sixteen runs of that many
_FLOATS = {name: DTYPES[name] for name in ("F64", "F32", "F16", "BF16")}
_FP8_TOLERANCE = 2**-6  # relative; a scaled float8 is rounded once more when it is widened to bfloat16


@dataclass(frozen=True)
class FileComparison:
    """How a model in memory compares with its files. Tensors that differ are an error, and not counted here.

    Attributes:
        tensors: in the files.
        complete, sampled: compared element by element, and at some of their elements.
        widened: float8 tensors that are held in a wider dtype, compared through their scales.
        by_shape: quantized tensors in a form of their own: of these only the names were compared.
        unused: in the files and not part of the model (a vision tower beside a text model, leftover buffers).
        rounded: "float32 → bfloat16" → how many tensors are held in another dtype than in the files.
    """

    tensors: int
    complete: int = 0
    sampled: int = 0
    widened: int = 0
    by_shape: int = 0
    unused: int = 0
    rounded: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For json.dumps."""
        return asdict(self)


def compare_with_files(
    model: Any, checkpoint: Checkpoint, reported: frozenset[str] | None = None
) -> FileComparison:
    """Compare a model that was just loaded with the tensors of its files.

    Args:
        model: as transformers loaded it.
        checkpoint: whose files it was loaded from.
        reported: names that may be in the files and not in the model; None accepts only those that the model's class
            names, and those of other parts of a checkpoint with several (vision, audio).

    Raises:
        PairError: a tensor of the files is not in the model, or has another shape, kind of dtype or value there.
    """
    stored = checkpoint.tensors()
    quantized = bool(getattr(model, "is_quantized", False)) or "quantization_config" in checkpoint.config
    counts: Counter[str] = Counter()
    rounded: Counter[str] = Counter()
    used: set[str] = set()
    readers = {path: TensorReader(path) for path in checkpoint.files}
    for group in _groups(model):
        for name, held in _named_as_in_files(model, group, stored, quantized).items():
            if name not in stored or name in used:  # tied tensors have two names
                continue
            path, entry = stored[name]
            scale = stored.get(f"{name}_scale_inv")
            scales = None if scale is None else readers[scale[0]].whole(f"{name}_scale_inv").float()
            counts[
                _compare(_Stored(name, entry, readers[path], scales), held, quantized, checkpoint.where)
            ] += 1
            used.add(name)
            dtype = _FLOATS.get(entry["dtype"])
            if dtype is not None and held.dtype != dtype and not (quantized or held.is_meta):
                rounded[f"{_short(dtype)} → {_short(held.dtype)}"] += 1
    left = sorted(stored.keys() - used)
    wrong = [name for name in left if not _may_be_unused(name, model, checkpoint, used)]
    if wrong and not quantized and reported is None:
        raise PairError(
            f"{checkpoint.where} holds {len(wrong)} tensors that are not part of the model: {some(wrong)}. Check that "
            "config.json belongs to these files (its number of layers, its architecture); if the weights are really "
            "not needed, save the checkpoint again without them"
        )
    return FileComparison(len(stored), unused=len(left), rounded=dict(rounded), **counts)


@dataclass(frozen=True)
class _Stored:
    """One tensor of a file."""

    name: str
    entry: Mapping[str, Any]
    reader: TensorReader
    scale: Tensor | None


def _compare(stored: _Stored, held: Tensor, quantized: bool, where: str) -> str:
    """Compare one tensor; returns under which count of `FileComparison` it goes."""
    entry, shape = stored.entry, list(held.shape)
    is_float = entry["dtype"] in _FLOATS
    if quantized and not (is_float and held.is_floating_point() and shape == entry["shape"]):
        return _compare_float8(stored, held, where)
    where = f"{where}: the tensor {stored.name}"
    if shape != entry["shape"]:
        raise PairError(
            f"{where} is {entry['shape']} in the files and {shape} in memory; config.json does not fit"
        )
    if held.is_floating_point() and not is_float and not entry["dtype"].startswith("F8"):
        raise PairError(
            f"{where} holds {entry['dtype']} in the files, and the model has {_short(held.dtype)} there; the file was "
            "relabelled or is quantized in an unknown form. Fetch the checkpoint again"
        )
    if held.is_meta or entry["dtype"] not in DTYPES:  # offloaded by a device_map, or a form that torch lacks
        return "by_shape"
    runs = sample_positions(held.numel(), EXACT_ELEMENTS, RUN_ELEMENTS)
    expected = stored.reader.read(stored.name, runs).to(held.dtype)
    found = at_positions(held, runs)
    if not torch.equal(byte_view(expected), byte_view(found)) and not _same_numbers(expected, found):
        raise PairError(
            f"{where} has other values in memory than in the files; something else was loaded or applied. Check the "
            "folder for leftover files"
        )
    return "complete" if len(runs) == 1 else "sampled"


def _compare_float8(stored: _Stored, held: Tensor, where: str) -> str:
    """Compare a quantized tensor: float8 with scales by its values, any other form by its name."""
    scales = stored.scale
    if (
        stored.entry["dtype"] != "F8_E4M3"
        or scales is None
        or held.is_meta
        or held.itemsize < 2
        or held.dim() != 2
    ):
        return "by_shape"
    if list(held.shape) != stored.entry["shape"]:
        raise PairError(
            f"{where}: the tensor {stored.name} is {stored.entry['shape']} in the files and {list(held.shape)} in "
            "memory; config.json does not fit"
        )
    runs = sample_positions(held.numel(), EXACT_ELEMENTS, RUN_ELEMENTS)
    index = torch.cat([torch.arange(start, end) for start, end in runs])
    rows, columns = index // held.shape[1], index % held.shape[1]
    if scales.dim() == 2:
        blocks = [-(-size // count) for size, count in zip(held.shape, scales.shape, strict=True)]
        factor = scales[rows // blocks[0], columns // blocks[1]]
    else:
        factor = scales.reshape(-1)[0].expand(len(index))
    expected = stored.reader.read(stored.name, runs).float() * factor
    found = at_positions(held, runs).float()
    if not torch.allclose(found, expected, rtol=_FP8_TOLERANCE, atol=float(expected.abs().max()) * 1e-6):
        raise PairError(
            f"{where}: the float8 tensor {stored.name} has other values in memory than its scales give; fetch the "
            "checkpoint again, or use a release in bfloat16"
        )
    return "widened"


def _same_numbers(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same numbers, and NaN at the same places whatever its bits."""
    return bool(torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num()))


# Names -----------------------------------------------------------------------------------------------------------


def _groups(model: Any) -> Iterator[dict[str, Tensor]]:
    """The tensors of a model, layer by layer: what is joined in memory is taken apart one layer at a time."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        layer = layer_of(name) if re.search(r"\.\d+(\.|$)", name) else ""
        groups.setdefault(layer, {})[name] = tensor
    for group in groups.values():
        yield {name: whole(tensor) for name, tensor in group.items()}  # of a split model a layer at a time


def _named_as_in_files(
    model: Any, tensors: dict[str, Tensor], stored: Mapping[str, Any], quantized: bool
) -> dict[str, Tensor]:
    """Tensors of a model by their names in the files; of quantized ones, undoing the conversion would round again."""
    found = dict(tensors) if quantized else revert_weight_conversion(model, tensors)
    prefix = _common_prefix([name for name in found if name not in stored], stored)
    return {name if name in stored else f"{prefix}{name}": tensor for name, tensor in found.items()}


def _common_prefix(names: Sequence[str], stored: Mapping[str, Any]) -> str:
    """What the files write before most of these names (a language model within a larger one)."""
    prefixes = Counter(
        other.removesuffix(name) for name in names for other in stored if other.endswith(f".{name}")
    )
    return prefixes.most_common(1)[0][0] if prefixes else ""


def _may_be_unused(name: str, model: Any, checkpoint: Checkpoint, used: set[str]) -> bool:
    """Whether a tensor may be in the files and not in the model.

    So it is where the model's class says it, and in a checkpoint with other parts than the language model, of which
    only that was loaded: then the tensor must not lie among those of the language model.
    """
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    if "rotary_emb.inv_freq" in name or any(re.search(pattern, name) for pattern in patterns):
        return True
    if not isinstance(checkpoint.config.get("text_config"), Mapping):
        return False
    layers = {_before_number(other) for other in used if _before_number(other) != other}
    parts = {root.rpartition(".")[0] for root in layers} - {"", "model"}
    return _before_number(name) not in layers and not any(name.startswith(f"{part}.") for part in parts)


def _before_number(name: str) -> str:
    """`model.layers` for `model.layers.3.mlp.up_proj.weight`; the name itself where it has no number."""
    return re.split(r"\.\d+(?:\.|$)", name, maxsplit=1)[0]


def some(names: Sequence[str]) -> str:
    """The first five names, for messages."""
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
