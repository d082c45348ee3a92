"""The environment of a session, for the record: versions, hardware, digests, and the kernels that multiply weights.

The run's fingerprint decides a completion, up to the last digits of floating-point sums. These depend on the machine:
on its processor or GPU, on the release of torch, and on a CPU on whether the compiled matrix product or torch's was
measured to be faster. A sampled token may depend on such a digit. A run that continues on another machine is therefore
not refused, and its summary has a note.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from eddecode.audit.config import AuditConfig
from eddecode.audit.provenance import fingerprint_digest
from eddecode.prompts.template_process import TEMPLATE_DATE

_COMPILED = ("float32", "bfloat16", "float16")  # dtypes of weights for which there is a compiled product


def collect_environment(
    fingerprint: Mapping[str, Any], config: AuditConfig | None = None, *, loads: bool = False
) -> dict[str, Any]:
    """The environment of this session, as JSON data.

    Args:
        fingerprint: of the run.
        config: of the audit, if the session may decode completions.
        loads: whether the session loads the models itself; the kernels of their weights are recorded then.
    """
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }
    for package in ("eddecode", "torch", "transformers", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    found["config"] = fingerprint_digest(fingerprint)
    found["checkpoints"] = {
        name: fingerprint[name] for name in ("base", "aligned", "finetuned") if name in fingerprint
    }
    if config is not None:
        found |= {"device": _device(config.device), "utility_loss": config.utility_loss}
        found |= {"threads": _threads(), "template_date": TEMPLATE_DATE, **_asked(config)}
        if loads and found["device"] == "cpu":
            found["products"] = _products(config.dtype)
    return found


def _threads() -> int:
    """How many threads torch computes with: the order of a sum that is split among them depends on it."""
    from eddecode.utils.threads import use_chosen_threads

    return use_chosen_threads().threads


def _asked(config: AuditConfig) -> dict[str, Any]:
    """How the models are placed and decoded, where the configuration says so; no completion depends on it."""
    asked = {
        "device_map": config.device_map,
        "batch_size": config.batch_size,
        "speculation": config.speculation,
    }
    return {name: value for name, value in asked.items() if value not in (None, "off")}


def _products(dtype: str) -> dict[str, str]:
    """How weights are multiplied on this CPU, by their dtype: `compiled` for its instructions, or by the `library`.

    A choice by measurement, once per machine; see `eddecode_kernels.speed_check.is_faster_than_torch`.
    """
    import torch

    from eddecode.models.load_config import parse_dtype
    from eddecode_kernels.jit import instruction_set
    from eddecode_kernels.speed_check import is_faster_than_torch

    wanted = parse_dtype(dtype)
    kinds = {name: getattr(torch, name) for name in _COMPILED}
    return {
        name: f"compiled for {instruction_set()}" if is_faster_than_torch(kind) else "library"
        for name, kind in kinds.items()
        if wanted in ("auto", kind)
    }


def processor_name() -> str:
    """The name of the processor, or the empty text."""
    return _processor()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _device(wanted: str | None) -> str:
    """The device's name; what torch would choose where none is named."""
    import torch

    if torch.cuda.is_available() and (wanted is None or wanted.startswith("cuda")):
        return str(torch.cuda.get_device_name(wanted or 0))
    return wanted or "cpu"
