"""eddecode: how far can an aligned model be reversed by anyone who also has its base model?

The public names are imported on first use, so that `import eddecode` and `eddecode --help` stay fast: torch and
transformers are loaded only by the call that needs them.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from eddecode.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from eddecode.errors import EddecodeError
    from eddecode.models.ensemble import Ensemble, Transfer
    from eddecode.models.pair import ModelPair
    from eddecode.outputs import Completion
    from eddecode.prompts.types import RenderedPrompt
    from eddecode.sampler import Sampler
    from eddecode.sampling.access import Access
    from eddecode.sampling.contrast import contrast
    from eddecode.sampling.params import SamplingParams


def _version() -> str:
    """Of the installed package; of pyproject.toml in a checkout that runs without being installed."""
    try:
        return version("eddecode")
    except PackageNotFoundError:
        import tomllib
        from pathlib import Path

        project = Path(__file__).resolve().parent.parent / "pyproject.toml"
        if not project.is_file():
            return "unknown"
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])


__version__ = _version()

_HOMES = {
    "Access": "eddecode.sampling.access",
    "Completion": "eddecode.outputs",
    "EddecodeError": "eddecode.errors",
    "Ensemble": "eddecode.models.ensemble",
    "ModelPair": "eddecode.models.pair",
    "RenderedPrompt": "eddecode.prompts.types",
    "Sampler": "eddecode.sampler",
    "SamplingParams": "eddecode.sampling.params",
    "Transfer": "eddecode.models.ensemble",
    "contrast": "eddecode.sampling.contrast",
}

__all__ = [
    "Access",
    "Completion",
    "EddecodeError",
    "Ensemble",
    "ModelPair",
    "RenderedPrompt",
    "Sampler",
    "SamplingParams",
    "Transfer",
    "__version__",
    "contrast",
]

__getattr__ = lazy_exports(__name__, _HOMES)


def __dir__() -> list[str]:
    """Public names only."""
    return sorted(__all__)
