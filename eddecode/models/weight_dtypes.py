"""Whether the dtypes that the headers of the files give can be those that the tensors were written in.

A header can be relabelled: float16 and bfloat16 have the same size, and the same bits mean other numbers. Two things
show it. No checkpoint mixes the two. And matrices of a trained model have values of all sizes around zero: bfloat16
bits read as float16 have nearly all magnitudes between 0.5 and 2, and float16 bits read as bfloat16 spread over thirty
powers of ten.
"""

from __future__ import annotations

import math

from eddecode.errors import PairError
from eddecode.models.checkpoint import Checkpoint
from eddecode.models.stored_elements import TensorReader, sample_positions

_RUN_ELEMENTS = 64  # sixteen such runs of a matrix are looked at
_MIN_ELEMENTS = 256  # of a matrix; fewer show nothing
_SMALL = 0.25  # of the root mean square: a normal distribution has a fifth of its values below it
_MIN_SMALL_SHARE = 0.005
_MIN_MEDIAN = 1e-4  # of the root mean square


def check_dtypes(checkpoint: Checkpoint) -> None:
    """PairError where the labels of float16 and bfloat16 tensors cannot be right."""
    if "quantization_config" in checkpoint.config:
        return  # scales have dtypes of their own
    halves = {
        name: (path, entry)
        for name, (path, entry) in checkpoint.tensors().items()
        if entry["dtype"] in ("F16", "BF16")
    }
    kinds = {
        kind: [name for name, (_, entry) in halves.items() if entry["dtype"] == kind]
        for kind in ("F16", "BF16")
    }
    if all(kinds.values()):
        few = min(kinds, key=lambda kind: len(kinds[kind]))
        raise PairError(
            f"{checkpoint.where} has {len(kinds['F16'])} tensors in float16 and {len(kinds['BF16'])} in bfloat16; "
            f"expected one of the two. Those in {few}, such as {kinds[few][0]}, were relabelled or are from another "
            "save; fetch the checkpoint again, or save it in one dtype"
        )
    matrices = {
        name: (path, entry)
        for name, (path, entry) in halves.items()
        if len(entry["shape"]) == 2 and math.prod(entry["shape"]) >= _MIN_ELEMENTS
    }
    readers = {path: TensorReader(path) for path in {path for path, _ in matrices.values()}}
    implausible = [
        name
        for name, (path, entry) in matrices.items()
        if not _is_plausible(readers[path], name, entry["shape"])
    ]
    if len(implausible) > len(matrices) / 2:
        kind = "float16" if kinds["F16"] else "bfloat16"
        raise PairError(
            f"{checkpoint.where} labels its tensors as {kind}, and the numbers in {implausible[0]} and "
            f"{len(implausible) - 1} others are not those of a trained model in {kind}; they were probably written as "
            f"{'bfloat16' if kind == 'float16' else 'float16'} and relabelled. Fetch the checkpoint again"
        )


def _is_plausible(reader: TensorReader, name: str, shape: list[int]) -> bool:
    """Whether a sample of a matrix has the spread of trained weights."""
    runs = sample_positions(math.prod(shape), _MIN_ELEMENTS, _RUN_ELEMENTS)
    size = reader.read(name, runs).double().abs()
    rms = float(size.square().mean().sqrt())
    if rms == 0 or not math.isfinite(rms) or float((size == size[0]).double().mean()) > 0.5:
        return True  # zeros, NaN and constants: not a question of the label
    small = float((size < _SMALL * rms).double().mean())
    return small >= _MIN_SMALL_SHARE and float(size.median()) >= _MIN_MEDIAN * rms
