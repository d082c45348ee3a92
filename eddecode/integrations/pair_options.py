"""The pair that the arguments of another tool name (`-M base=… -M aligned=…`), and the sampler that decodes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from eddecode.errors import ConfigError
from eddecode.models.fingerprint import checkpoint_identity
from eddecode.utils.validation import Integer, raises

if TYPE_CHECKING:
    from eddecode.sampler import Sampler


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _as_json_text(value: Any) -> Any:
    """A mapping as text, so that options can be compared and hashed."""
    if value is None:
        return None
    try:
        found = dict(value) if isinstance(value, Mapping) else json.loads(value)
        text = json.dumps(found, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError):
        found, text = None, ""
    if not isinstance(found, dict):
        raise ValueError('expected a table of variables, or JSON such as {"enable_thinking": false}')
    return text


Text = Annotated[str | None, BeforeValidator(_as_text)]
_SAMPLER_OPTIONS = (
    *("base_template", "aligned_template", "max_slots", "memory_budget", "speculation", "cuda_graphs"),
    *("fold_system", "prefill", "escape_specials"),
)
_LOAD_OPTIONS = (
    "dtype",
    "device",
    "device_map",
    "base_revision",
    "aligned_revision",
    "quantization",
    "long_context",
    "mask_ids",
)


@raises(ConfigError)
@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PairOptions:
    """Two checkpoints, and how they are loaded and decoded; without both checkpoints, the bundled pair.

    Attributes:
        base, aligned: local folders or hub ids; `aligned` may be an adapter.
        base_template, aligned_template: see `eddecode.Sampler`.
        dtype, device, device_map, base_revision, aligned_revision, quantization, long_context, mask_ids: see
            `eddecode.ModelPair.load`.
        max_slots, memory_budget, speculation, cuda_graphs, fold_system, prefill, escape_specials: see
            `eddecode.Sampler`.
        template_variables: the same; a mapping, or JSON.

    Raises:
        ConfigError: an option is unknown or out of its range, or one checkpoint is given without the other.
    """

    base: Text = None
    aligned: Text = None
    base_template: Text = None
    aligned_template: Text = None
    dtype: str = "auto"
    device: str | None = None
    device_map: str | None = None
    base_revision: str | None = None
    aligned_revision: str | None = None
    quantization: str | None = None
    long_context: bool = False
    max_slots: Annotated[Integer, Field(ge=1)] = 256
    memory_budget: Annotated[Integer, Field(ge=1)] | None = None
    speculation: str = "off"
    cuda_graphs: bool | Literal["auto"] = "auto"
    template_variables: Annotated[str | None, BeforeValidator(_as_json_text)] = None
    fold_system: bool = False
    prefill: str = ""
    escape_specials: bool = True
    mask_ids: Literal["differing"] | None = None

    @model_validator(mode="after")
    def _check_both(self) -> PairOptions:
        if (self.base is None) != (self.aligned is None):
            missing = "aligned" if self.aligned is None else "base"
            raise ConfigError(
                f"{missing} is missing; give base and aligned (checkpoint folders or hub ids), or neither for the "
                "bundled pair"
            )
        return self

    @property
    def is_bundled(self) -> bool:
        """Whether it is the pair of small models that ships with eddecode."""
        return self.base is None

    def resolved(self) -> PairOptions:
        """The same with the bundled pair's files, where no checkpoints are given."""
        if not self.is_bundled:
            return self
        from eddecode.testbed.bundled import bundled_pair

        files = bundled_pair()
        given = asdict(self)
        given |= {"base": str(files.base), "aligned": str(files.aligned)}
        given["base_template"] = self.base_template or str(files.base_template)
        return PairOptions(**given)

    def identities(self) -> dict[str, str]:
        """The two checkpoints as a run records them: name, and digest of the files or revision."""
        own = self.resolved()
        return {
            "base": checkpoint_identity(str(own.base), own.base_revision),
            "aligned": checkpoint_identity(str(own.aligned), own.aligned_revision),
        }

    def load(self) -> Sampler:
        """The sampler of the pair.

        Raises:
            PairError: the checkpoints cannot be loaded, or cannot be decoded against each other.
        """
        from eddecode.models.pair import ModelPair
        from eddecode.sampler import Sampler

        own = self.resolved()
        pair = ModelPair.load(
            str(own.base), str(own.aligned), **{name: getattr(own, name) for name in _LOAD_OPTIONS}
        )
        variables = None if own.template_variables is None else json.loads(own.template_variables)
        options = {name: getattr(own, name) for name in _SAMPLER_OPTIONS}
        return Sampler(pair, template_variables=variables, **options)
