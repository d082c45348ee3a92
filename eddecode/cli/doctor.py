"""The command `doctor`: what is installed, what this machine has, and what would run how and why."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.text import Text

from eddecode.cli.common import print_json
from eddecode.cli.messages import errors_as_messages, stdout_console
from eddecode.cli.options import AsJson
from eddecode.cli.table_style import make_table

_NEEDED = ("eddecode", "torch", "transformers", "safetensors", "numpy", "scipy")
_EXTRAS = {  # package → what it is for
    "peft": "adapters",
    "accelerate": "device maps, offload",
    "bitsandbytes": "8bit and 4bit weights",
    "triton": "kernels on a GPU",
    "openai": "the moderation judge",
    "pyarrow": "Parquet",
    "pandas": "data frames",
    "inspect-ai": "Inspect",
    "lm-eval": "lm-evaluation-harness",
    "ray": "clusters",
    "datasets": "prompt sets of the hub",
    "gguf": "GGUF files",
}
_GIB = 2**30


def doctor(as_json: AsJson = False) -> None:
    """Show versions, devices, threads, and what would run how and why: for a first look, and for a bug report."""
    with errors_as_messages():
        found = diagnosis()
        print_json(found) if as_json else _print(found)


def diagnosis() -> dict[str, Any]:
    """As data: `packages`, `extras`, `machine`, `devices`, `placement`, `threads`, `execution`, `folders`."""
    import torch

    return {
        "packages": {"python": platform.python_version(), **{name: _version(name) for name in _NEEDED}},
        "extras": {name: _version(name) for name in _EXTRAS},
        "machine": _machine(),
        "devices": _devices(torch),
        "placement": _placement(),
        "threads": _threads(torch),
        "execution": [
            {"device": device, "dtype": dtype, **_execution(torch, device, dtype)}
            for device in _kinds(torch)
            for dtype in ("float32", "bfloat16")
        ],
        "folders": _folders(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    import torch

    from eddecode.audit.environment import processor_name
    from eddecode.utils.memory import free_bytes

    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor_name(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "free_memory": free_bytes(torch.device("cpu")),
    }


def _devices(torch: Any) -> list[dict[str, Any]]:
    return [
        {
            "device": f"cuda:{i}",
            "name": torch.cuda.get_device_name(i),
            "memory": torch.cuda.get_device_properties(i).total_memory,
            "capability": ".".join(map(str, torch.cuda.get_device_capability(i))),
        }
        for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    ]


def _placement() -> str:
    """Where the models of a pair go if nobody says it."""
    from eddecode.models.placement import equal_gpus

    gpus = equal_gpus()
    if not gpus:
        return "both models on the CPU"
    if len(gpus) == 1:
        return f"both models on {gpus[0]}, their steps captured together"
    return f"base on {gpus[0]}, aligned on {gpus[1]}, each captured by itself; both on one with --device {gpus[0]}"


def _kinds(torch: Any) -> list[str]:
    return ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]


def _threads(torch: Any) -> dict[str, Any]:
    """How many threads torch takes, and what limits them."""
    from eddecode.utils.threads import VARIABLES, thread_choice

    choice = thread_choice()
    return {
        "torch": torch.get_num_threads(),
        "used": choice.threads,
        "why": choice.why,
        "cores_allowed": choice.allowed,
        "trial_milliseconds": choice.milliseconds,
        **{name: os.environ.get(name) for name in VARIABLES},
    }


def _execution(torch: Any, device: str, dtype: str) -> dict[str, Any]:
    """How decoder layers of recognised families run on a device, and why."""
    from eddecode.execution.compiled.backends import BACKENDS
    from eddecode_kernels.jit import instruction_set

    place, kind = torch.device(device), getattr(torch, dtype)
    for backend in BACKENDS:
        if backend.available_for(place, kind):
            if backend.is_faster(kind):
                why = "measured to be faster than torch on this machine"
                if device != "cpu":
                    why = "in Triton, with the same bits in any batch; steps are captured as CUDA graphs"
                return {
                    "layers": "compiled",
                    "why": f"{why}, with {instruction_set()}" if device == "cpu" else why,
                }
            return {"layers": "torch", "why": "the compiled layers were measured and are not faster here"}
    return {"layers": "torch", "why": _missing(device)}


def _missing(device: str) -> str:
    from eddecode_kernels.jit import library
    from eddecode_kernels.types import UnavailableError

    if device != "cpu":
        return (
            "Triton is not installed, or did not pass its trial; models run by their own forward pass, captured as "
            "CUDA graphs where that can be (eddecode docs gpu)"
        )
    try:
        library()
    except UnavailableError as error:
        return f"the compiled layers cannot be built: {' '.join(str(error).split()):.200}"
    return "the compiled layers do not serve this type"


def _folders() -> dict[str, Any]:
    from eddecode_kernels.jit import cache_folder

    hub = os.environ.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    return {
        "program": sys.prefix,
        "hub_cache": hub,
        "offline": bool(os.environ.get("HF_HUB_OFFLINE")),
        "kernels": str(cache_folder()),
        "free_here": shutil.disk_usage(Path.cwd()).free,
    }


def _print(found: dict[str, Any]) -> None:
    console = stdout_console(highlight=False)
    for title, lines in _lines(found):
        table = make_table(title, "")
        table.columns[1].justify, table.columns[1].overflow = "left", "fold"
        for name, value in lines:
            table.add_row(Text(name), Text(value))
        console.print(table)


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    yield "packages", [(name, value or "not installed") for name, value in found["packages"].items()]
    extras = found["extras"]
    yield (
        "extras",
        [(name, value or f"not installed (for {_EXTRAS[name]})") for name, value in extras.items()],
    )
    machine, threads, folders = found["machine"], found["threads"], found["folders"]
    rows = [
        ("system", machine["system"]),
        ("processor", f"{machine['processor'] or 'unknown'}, {machine['instruction_set']}"),
        ("free memory", f"{machine['free_memory'] / _GIB:.1f} GiB"),
    ]
    rows += [
        (one["device"], f"{one['name']}, {one['memory'] / _GIB:.0f} GiB, capability {one['capability']}")
        for one in found["devices"]
    ]
    yield "machine", [*rows, *([] if found["devices"] else [("GPU", "none that torch sees")])]
    trial = ", ".join(f"{ms:.1f} ms with {n}" for n, ms in threads["trial_milliseconds"].items())
    yield (
        "threads",
        [
            ("used", f"{threads['used']}: {threads['why']}" + (f" ({trial})" if trial else "")),
            ("torch's own choice", str(threads["torch"])),
            ("cores", f"{machine['cores']}, of which this process may use {threads['cores_allowed']}"),
            ("to set it", "EDDECODE_THREADS or OMP_NUM_THREADS"),
        ],
    )
    yield (
        "what runs how",
        [
            ("a pair", found["placement"]),
            *(
                (f"{one['device']}, {one['dtype']}", f"{one['layers']} layers: {one['why']}")
                for one in found["execution"]
            ),
        ],
    )
    yield (
        "folders",
        [
            ("program", folders["program"]),
            ("hub cache", folders["hub_cache"] + (" (offline)" if folders["offline"] else "")),
            ("kernels", folders["kernels"]),
            ("free disk here", f"{folders['free_here'] / _GIB:.1f} GiB"),
        ],
    )
