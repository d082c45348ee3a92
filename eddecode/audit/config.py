"""What an audit will run: its configuration, and the conditions and parameters that follow from it.

The same fields are given from Python, from a command line and from an `audit.toml` (`config_file`). Nothing here
imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eddecode.audit.conditions import (
    ALIGNED,
    BASE,
    Condition,
    alpha_text,
    checked_label,
    lineup,
    parse_alphas,
)
from eddecode.audit.data.transforms import Transform, read_transforms
from eddecode.audit.mitigations import access_of, parse_mitigations
from eddecode.errors import ConfigError

if TYPE_CHECKING:
    from eddecode.sampling.params import SamplingParams

__all__ = ["ALIGNED", "BASE", "AuditConfig", "Condition", "PromptSource", "alpha_text", "parse_alphas"]

PromptSource = str | Path | Sequence[str | Sequence[Mapping[str, str]] | Mapping[str, Any]]
TransformSource = str | Path | Sequence[Transform | Mapping[str, Any]]


@dataclass(frozen=True)
class AuditConfig:
    """Everything that an audit is asked for. Two runs with equal configurations end in equal tables.

    Attributes:
        base, aligned: checkpoints: local folders or hub ids.
        prompts: a file (.jsonl, .csv, plain text), or the prompts themselves (strings or chat message lists).
        out: the run's folder; created if missing.
        alphas: strengths of the contrast, as text or numbers; stored as exact text.
        samples: completions per prompt and condition.
        temperature, top_k, top_p, min_p, plausibility, max_new_tokens, stop, seed: see `SamplingParams`.
        dtype: of the weights: `auto`, `float32`, `bfloat16`, `float16`.
        device: where the models go; None chooses.
        base_revision, aligned_revision: of hub ids.
        base_template, aligned_template: `chat`, a preset's name, or a file with `{prompt}`; None: a plain instruction
            template for the base, its chat template for the aligned model.
        judges: specifications such as `lexicon`, `lexicon:FILE`, `grammar`, or tables of an audit file; the first is
            the one that judges harm.
        systems: name → system prompt; each gives base, aligned and ED conditions of its own.
        transforms: a file, or tables; see `transforms.Transform`. Each gives base, aligned and ED conditions.
        mitigations: names such as `topk5`; each gives ED conditions under that limit.
        extra_alphas: of the ED conditions with a system prompt, transform or mitigation, and of the ensemble; None:
            all of `alphas` above 0, since what is best for an attacker may move.
        finetuned: checkpoint (whole, not an adapter) of a model that was trained to be harmful, run alone as a
            reference; it reads the aligned model's template.
        ensemble: further aligned models of the same base; with `aligned` they are contrasted together.
        keep_text: False keeps digests and verdicts of completions, and no text.
        min_tokens: completions with fewer tokens are left out of the figures, and counted; 0 keeps all.
        utility_loss: ε, how much utility the headline α may cost, as a share of the base's.

    Raises:
        ConfigError: a value that no audit can be run with. Sampling parameters are checked when the audit starts.
    """

    base: str | Path
    aligned: str | Path
    prompts: PromptSource
    out: str | Path
    alphas: Sequence[str | float] | str = ("0.3",)
    samples: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    plausibility: float = 0.0
    max_new_tokens: int = 128
    stop: Sequence[str] = ()
    seed: int = 0
    dtype: str = "auto"
    device: str | None = None
    base_revision: str | None = None
    aligned_revision: str | None = None
    base_template: str | Path | None = None
    aligned_template: str | Path | None = None
    judges: Sequence[str | Mapping[str, Any]] = ("lexicon",)
    systems: Mapping[str, str] = field(default_factory=dict)
    transforms: TransformSource = ()
    mitigations: Sequence[str] | str = ()
    extra_alphas: Sequence[str | float] | str | None = None
    finetuned: str | Path | None = None
    ensemble: Sequence[str | Path] = ()
    keep_text: bool = True
    min_tokens: int = 0
    utility_loss: float = 0.1

    def __post_init__(self) -> None:
        for name, value in (
            ("alphas", parse_alphas(self.alphas)),
            ("extra_alphas", None if self.extra_alphas is None else parse_alphas(self.extra_alphas)),
            ("mitigations", parse_mitigations(self.mitigations)),
            ("transforms", read_transforms(self.transforms)),
            ("stop", _listed(self.stop)),
            ("judges", _listed(self.judges)),
            ("ensemble", _listed(self.ensemble)),
        ):
            object.__setattr__(self, name, value)
        self._check_numbers()
        if not self.judges:
            raise ConfigError("no judge is named; expected at least one, such as lexicon")
        if self.finetuned is not None and (Path(self.finetuned) / "adapter_config.json").is_file():
            raise ConfigError(
                f"finetuned {self.finetuned} is an adapter, and an audit cannot tell which model it belongs on; "
                "merge it into that model and give the result"
            )
        for name, text in self.systems.items():
            checked_label(name, "a system prompt")
            if not isinstance(text, str) or not text.strip():
                raise ConfigError(f"system prompt {name} is {text!r}; expected text")

    def _check_numbers(self) -> None:
        if not _whole(self.samples, 1):
            raise ConfigError(f"samples is {self.samples!r}; expected 1 or more completions per prompt")
        if not _whole(self.min_tokens, 0):
            raise ConfigError(f"min_tokens is {self.min_tokens!r}; expected a whole number of at least 0")
        if isinstance(self.utility_loss, bool) or not 0 <= self.utility_loss <= 1:
            raise ConfigError(f"utility_loss is {self.utility_loss!r}; expected a share from 0 to 1")
        if self.temperature == 0 and self.samples > 1:
            raise ConfigError(
                f"temperature 0 makes the same completion every time, and samples is {self.samples}; "
                "set samples to 1, or a temperature above 0"
            )
        extras = self.systems or self.transforms or self.mitigations or self.ensemble
        alphas = self.alphas if self.extra_alphas is None else self.extra_alphas
        positive = [alpha for alpha in alphas if float(alpha) > 0]
        if extras and not (alphas if self.extra_alphas is not None else positive):
            raise ConfigError(
                "a mitigation, system prompt, transform or ensemble has no alpha to be run at; give alphas above 0, "
                "or extra_alphas"
            )

    @property
    def out_folder(self) -> Path:
        """`out` as a path."""
        return Path(self.out)

    def conditions(self) -> list[Condition]:
        """The aligned model, the base model, the contrast at each α from low to high; then what is set beside them."""
        return lineup(
            parse_alphas(self.alphas),
            extra_alphas=None if self.extra_alphas is None else parse_alphas(self.extra_alphas),
            systems=self.systems,
            transforms=[transform.name for transform in read_transforms(self.transforms)],
            mitigations=parse_mitigations(self.mitigations),
            finetuned=self.finetuned is not None,
            ensemble=bool(self.ensemble),
        )

    def sampling(self) -> dict[str, Any]:
        """The sampling parameters that all conditions share, as keywords of `SamplingParams`."""
        names = ("temperature", "top_k", "top_p", "min_p", "plausibility", "max_new_tokens", "stop", "seed")
        return {name: getattr(self, name) for name in names}

    def params(self, condition: Condition, n: int) -> SamplingParams:
        """How `n` completions of one prompt are sampled under a condition.

        Raises:
            ParamsError: a sampling parameter is out of its range.
        """
        from eddecode.sampling.params import SamplingParams

        access = access_of(condition.mitigation) if condition.mitigation else None
        return SamplingParams(
            alpha=float(condition.alpha), n=n, access=access, logprobs=True, **self.sampling()
        )


def _listed(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, str | Path | Mapping) else tuple(value)


def _whole(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low
