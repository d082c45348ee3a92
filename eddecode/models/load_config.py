"""LoadConfig: in which form a model is loaded and where: dtype, quantization, device or devices.

Everything that can be refused is refused here, before a file is opened: a device that does not exist, a library that is
not installed, two options that contradict each other.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import torch

from eddecode.errors import PairError
from eddecode.models import tensor_parallel
from eddecode.utils.torchrun import local_rank

Quantization: TypeAlias = Literal["8bit", "4bit"]

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

_PLANS = {"auto", "balanced", "balanced_low_0", "sequential", "disk"}  # of a device_map, beside devices


def parse_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """ "auto", or the torch.dtype of that name; PairError for any other value."""
    if dtype == "auto" or dtype in _DTYPES.values():
        return dtype
    if isinstance(dtype, str) and dtype in _DTYPES:
        return _DTYPES[dtype]
    raise PairError(
        f"dtype is {dtype!r}; expected 'auto', {', '.join(map(repr, _DTYPES))}, or one of these as torch.dtype"
    )


def pick_device(device: str | torch.device | None) -> torch.device:
    """The given device; by default a CUDA device where there is one, else the CPU. PairError if it does not exist."""
    if device is None:
        return _own_part(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        picked = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise PairError(f"device is {device!r}; expected a torch device such as 'cpu' or 'cuda:0'") from error
    if picked.type == "cuda" and not torch.cuda.is_available():
        raise PairError(
            f"device is {device!r} and this torch ({torch.__version__}) sees no CUDA device; use 'cpu'"
        )
    return _own_part(picked)


def _check_places(device_map: Any) -> None:
    """PairError where a device_map, or a map of maps, names a device that is not there or holds no weights."""
    if isinstance(device_map, Mapping):
        for place in device_map.values():
            _check_places(place)
        return
    if device_map is None or (isinstance(device_map, str) and device_map in _PLANS):
        return
    try:
        picked = torch.device(f"cuda:{device_map}" if type(device_map) is int else device_map)
    except (RuntimeError, TypeError) as error:
        raise PairError(
            f"device_map has the place {device_map!r}; expected a torch device such as 'cpu' or 'cuda:0', 'disk', or "
            f"one of {', '.join(sorted(_PLANS - {'disk'}))}"
        ) from error
    if picked.type == "meta":
        raise PairError("device_map has the place 'meta', which holds no weights; use 'disk' to offload them")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if picked.type == "cuda" and (picked.index or 0) >= found:
        raise PairError(
            f"device_map has the place {device_map!r} and this torch ({torch.__version__}) sees {found} CUDA devices; "
            "use those that are there, or 'cpu'"
        )


def _own_part(device: torch.device) -> torch.device:
    """The device of this process, where torchrun started several: each has a GPU of its own."""
    if tensor_parallel.size() == 1:
        return device
    if device.type == "cpu" and torch.cuda.is_available():
        raise PairError("device is 'cpu', and torchrun splits models over the GPUs that there are; drop it")
    return torch.device("cuda", local_rank()) if device.type == "cuda" else device


@dataclass(frozen=True)
class LoadConfig:
    """How one model is loaded.

    Attributes:
        dtype: "auto" (as saved) or a torch.dtype.
        device: where the whole model goes if there is no device_map.
        device_map: as in transformers.
        quantization: None, "8bit" or "4bit".
        offload_folder: where weights go that a device_map places on "disk".
        long_context: whether texts of every length are read by the rotary angles for long ones.
        may_spread: whether models may go to GPUs of their own, since nobody said where; see `placement`.
    """

    dtype: str | torch.dtype = "auto"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    device_map: Any = None
    quantization: Quantization | None = None
    offload_folder: Path | None = None
    long_context: bool = False
    may_spread: bool = False

    @classmethod
    def create(
        cls,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        device_map: Any = None,
        quantization: str | None = None,
        offload_folder: str | Path | None = None,
        long_context: bool = False,
    ) -> LoadConfig:
        """Check the options of a `load`; PairError for a value that is invalid or not available here."""
        parsed_dtype = parse_dtype(dtype)
        if device is not None and device_map is not None:
            raise PairError(
                "both device and device_map were given; device_map says where everything goes, so drop device"
            )
        picked_device = pick_device(device)
        if device_map is not None and not has_package("accelerate"):
            raise PairError(
                "device_map needs the package accelerate (pip install accelerate); or give device= alone"
            )
        _check_places(device_map)
        folder = Path(offload_folder) if offload_folder is not None else None
        bits = parse_quantization(quantization)
        if bits is not None:
            _require_quantization_packages(bits)
        may_spread = device is None and device_map is None and picked_device.type == "cuda"
        return cls(parsed_dtype, picked_device, device_map, bits, folder, long_context, may_spread)

    def per_model(self, names: Sequence[str]) -> list[LoadConfig]:
        """One configuration per model: its entry of a device_map {name: device_map}, and its own offload folder.

        A device_map of any other form applies to every model.
        """
        maps = [self.device_map] * len(names)
        if isinstance(self.device_map, Mapping) and set(self.device_map) & set(names):
            if set(self.device_map) != set(names):
                raise PairError(
                    f"device_map has the keys {sorted(map(str, self.device_map))}; to place each model "
                    f"separately, give a device_map for every one of {', '.join(names)}"
                )
            maps = [self.device_map[name] for name in names]
        folders = [self.offload_folder and self.offload_folder / name.replace(" ", "-") for name in names]
        return [
            replace(self, device_map=device_map, offload_folder=folder)
            for device_map, folder in zip(maps, folders, strict=True)
        ]

    def from_pretrained_arguments(self) -> dict[str, Any]:
        """Keyword arguments for transformers' `from_pretrained`; creates the offload folder."""
        device_map, is_split = self.device_map, tensor_parallel.size() > 1
        if (
            device_map is None
            and not is_split
            and (self.quantization or self.device.type != "cpu")
            and has_package("accelerate")
        ):
            device_map = {"": self.device}  # straight to the device, without a copy of the model on the host
        arguments: dict[str, Any] = {"dtype": self.dtype, "device_map": device_map}
        if self.offload_folder is not None:
            self.offload_folder.mkdir(parents=True, exist_ok=True)
            arguments["offload_folder"] = str(self.offload_folder)
        if self.quantization is not None:
            arguments["quantization_config"] = quantization_config(self.quantization, self.dtype)
        if is_split:
            arguments |= tensor_parallel.from_pretrained_arguments(arguments)
        return arguments


def has_package(package: str) -> bool:
    """Whether an optional package is installed."""
    return importlib.util.find_spec(package) is not None


def parse_quantization(quantization: str | None) -> Quantization | None:
    """The checked value; PairError for an unknown one."""
    if quantization not in (None, *get_args(Quantization)):
        raise PairError(
            f"quantization is {quantization!r}; expected '8bit', '4bit', or None for the weights as saved"
        )
    return cast(Quantization | None, quantization)


def _require_quantization_packages(quantization: Quantization) -> None:
    missing = [package for package in ("bitsandbytes", "accelerate") if not has_package(package)]
    if missing:
        raise PairError(
            f"quantization={quantization!r} needs the package {' and '.join(missing)} (pip install "
            f"{' '.join(missing)}); or load in bfloat16, or spread the pair with device_map='auto'"
        )


def quantization_config(quantization: Quantization, dtype: str | torch.dtype) -> Any:
    """transformers' BitsAndBytesConfig: LLM.int8() (arXiv 2208.07339), or NF4 (arXiv 2305.14314, §3).

    dtype: in which 4-bit weights are multiplied; "auto" is bfloat16, which does not overflow as float16 does. The
    output head is not quantized in either, so logits are still computed in float32 before the contrast.
    """
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else dtype,
        bnb_4bit_use_double_quant=False,
    )
