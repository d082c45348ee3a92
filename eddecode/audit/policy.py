"""The policy of a release: limits, the evidence that a PASS needs, and what was promised before the run.

A policy is written before the audit, best by `eddecode policy init`. Its digest can be made part of the run
(`policy = "policy.toml"` in the audit file). Every key is described in docs/gate.md.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
    model_validator,
)

from eddecode.audit.conditions import NO_PENALTIES, alpha_text
from eddecode.audit.judges.base import KINDS
from eddecode.errors import ConfigError
from eddecode.utils.files import read_text
from eddecode.utils.validation import did_you_mean, explain

LIMITS = (
    "max_reversal",
    "max_harm_rate",
    "max_any_of_k",
    "max_uplift",
    "max_corrected_reversal",
    "max_worst_attack",
)


def _expected(text: str) -> WrapValidator:
    """What a message says of a value that the field's type refuses."""

    def check(value: Any, validate: Callable[[Any], Any]) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError(f"expected {text}") from None

    return WrapValidator(check)


def _check_kind(value: str) -> str:
    if value not in KINDS:
        raise ValueError(
            f"expected the kind of a judge: {', '.join(KINDS)} ({did_you_mean(value, KINDS)}); "
            'one judge and no other is pinned by judges = ["NAME, digest …"] under [pin]'
        )
    return value


_POINTS = "write 0.05 for 5 percentage points, 0.01 for 1"
_Difference = Annotated[
    float,
    Field(strict=True, ge=-1, lt=1, allow_inf_nan=False),
    _expected(f"a fraction from -1 to below 1 ({_POINTS})"),
]
_Rate = Annotated[
    float,
    Field(strict=True, ge=0, lt=1, allow_inf_nan=False),
    _expected(f"a fraction from 0 to below 1 ({_POINTS})"),
]
_Share = Annotated[
    float, Field(strict=True, ge=0, le=1, allow_inf_nan=False), _expected("a share from 0 to 1")
]
_Count = Annotated[int, Field(strict=True, ge=0, lt=2**63), _expected("a whole number from 0 up")]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False), _expected("a number, as in the run")]
_Whole = Annotated[int, Field(strict=True), _expected("a whole number, as in the run")]
_Name = Annotated[str, Field(min_length=1), _expected("a name")]
_Alpha = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False), _expected("an α above 0")]


def _check_range(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:  # a range from 1 to 0.1 would hold for any sweep
        raise ValueError(f"expected the smaller α first: [{value[1]:g}, {value[0]:g}]")
    return value


_Texts = Annotated[tuple[str, ...], _expected("a list of texts")]
_Some = Annotated[tuple[str, ...], Field(min_length=1), _expected("a list of texts, at least one")]


class Pin(BaseModel):
    """What was promised of the run before it was made; None: not promised.

    The values are those of the run's identity in summary.json. The run may have more α's than were promised (one more
    can only raise the upper bound that a PASS needs), and more judges; every other value must be equal.

    Attributes:
        alphas: of the sweep.
        prompts, base: digests, such as `200 distinct prompts, digest 0f…`; a file or folder may have another name. The
            order of the prompts does not count; the digest in the order of the file, as the run's identity has it, is
            accepted too.
        judges: `NAME, digest …`; the first judges harm.
        utility_loss: ε, the bound on lost utility.
        base_template, aligned_template: a name, a text or `FILE, digest …`; `default` without one.
        samples, temperature, top_k, top_p, min_p, plausibility, max_new_tokens, stop, seed, dtype: sampling.
        repetition_penalty, presence_penalty, frequency_penalty: sampling; a run without them has 1, 0 and 0.
        min_tokens: length below which a completion is left out.
        systems, templates, temperatures, transforms, mitigations, attacks: that must have been measured; a run may have
            more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    alphas: Annotated[tuple[Any, ...], Field(min_length=1), _expected("a list of α's")] | None = None
    prompts: str | None = None
    base: str | None = None
    judges: _Some | None = None
    utility_loss: _Number | None = None
    base_template: str | None = None
    aligned_template: str | None = None
    samples: _Whole | None = None
    temperature: _Number | None = None
    top_k: _Number | None = None
    top_p: _Number | None = None
    min_p: _Number | None = None
    plausibility: _Number | None = None
    repetition_penalty: _Number | None = None
    presence_penalty: _Number | None = None
    frequency_penalty: _Number | None = None
    max_new_tokens: _Whole | None = None
    stop: _Texts | None = None
    seed: _Whole | None = None
    dtype: str | None = None
    min_tokens: _Whole | None = None
    systems: _Texts | None = None
    templates: _Texts | None = None
    temperatures: tuple[Any, ...] | None = None
    transforms: _Texts | None = None
    mitigations: _Texts | None = None
    attacks: _Texts | None = None

    def differences(self, facts: Mapping[str, Any]) -> list[str]:
        """One line per promise that the run does not keep: `samples: 4 in the policy, 1 in the run`.

        Args:
            facts: see `run_facts`.
        """
        lines = []
        for name in Pin.model_fields:
            promised, found = getattr(self, name), facts.get(name)
            if promised is None or _kept(name, promised, found):
                continue
            if name == "prompts" and _kept(name, promised, facts.get("prompts in order")):
                continue
            lines.append(f"{name}: {_shown(promised)} in the policy, {_shown(found)} in the run")
        return lines


_NUMBERS = ("alphas", "temperatures")
_AT_LEAST = ("judges", "systems", "templates", "transforms", "mitigations", "attacks")
_DIGESTS = ("prompts", "base", "base_template", "aligned_template")


def run_facts(
    identity: Mapping[str, Any],
    judges: Sequence[str],
    utility_loss: float | None,
    prompts: Iterable[str] = (),
) -> dict[str, Any]:
    """What a run is held to by `Pin`.

    Args:
        identity: the run's fingerprint, see `run_fingerprint`.
        judges: those that its figures are by, each as `NAME, digest …`; the first judges harm.
        utility_loss: ε.
        prompts: digests of the run's prompts, in any order.
    """
    facts = {name: identity.get(name) for name in Pin.model_fields}
    facts |= {
        "judges": list(judges),
        "utility_loss": utility_loss,
        "min_tokens": identity.get("min_tokens", 0),
        **{name: identity.get(name, off) for name, off in NO_PENALTIES.items()},
    }
    for name in _NUMBERS:
        facts[name] = list(dict.fromkeys(text for text in str(identity.get(name, "")).split(",") if text))
    if distinct := sorted(set(prompts)):
        facts["prompts"] = f"{len(distinct)} distinct prompts, digest {_digest(distinct)}"
        facts["prompts in order"] = identity.get("prompts")
    for name in ("base_template", "aligned_template"):
        facts[name] = facts[name] or "default"
    return facts


def _digest(digests: Sequence[str]) -> str:
    return hashlib.blake2b("\n".join(digests).encode(), digest_size=8).hexdigest()


def _kept(name: str, promised: Any, found: Any) -> bool:
    if name in _NUMBERS:
        return {alpha_text(alpha) for alpha in promised} <= {alpha_text(alpha) for alpha in found or ()}
    if name == "judges" and promised and list(promised[:1]) != list(found or ())[:1]:
        return False
    if name in _AT_LEAST:
        return set(promised) <= set(found or ())
    if name in _DIGESTS and found is not None:
        return _content(promised) == _content(str(found))
    if isinstance(promised, tuple):
        return list(promised) == list(found or ())
    return bool(promised == found)


def _content(text: str) -> str:
    """The digest of `NAME, digest …`, without the name; other text as it is."""
    return text.rpartition(", digest ")[2]


def _shown(value: Any) -> str:
    if value is None or value in ([], ()):
        return "nothing"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


class Policy(BaseModel):
    """The limits of a release, and the evidence that a PASS needs. Rates are fractions: 0.05 is 5 percentage points.

    Attributes:
        max_reversal: most that contrasting the pair may add to the base's harm rate, on the same prompts.
        max_harm_rate: highest harm rate of the attack, whatever the base's.
        max_any_of_k: highest share of prompts with at least one harmful completion among several attempts.
        max_uplift: most that the attack may add to the aligned model's harm rate.
        max_corrected_reversal: as max_reversal, of rates that are corrected by human labels.
        max_worst_attack: highest harm rate of the worst attack without training, within the bound on lost utility: ED,
            the base alone, and the run's `attacks`.
        require_attacks: names or kinds of the attacks that must have been measured for max_worst_attack.
        min_prompts: least number of distinct prompts that have completions in every condition of the figures.
        judge: kind of the judge that must have judged harm, such as `guard`; None: any.
        require_mitigation: a mitigation that the release comes with: the figures are those that remain under it.
        alpha_range: the sweep must reach from the first value or below to the second or above.
        max_alpha_step: neighbours in the sweep differ by this factor at most.
        max_truncated, max_empty, max_dropped: largest shares of completions that were cut off by the length limit, are
            empty, or are left out as shorter than the run's min_tokens. Being cut off is no fault by itself: harm that
            comes before the cut is judged, so that the share may be 1 by default. See enough_tokens.
        enough_tokens, max_short: the largest share of completions that are too short to show harm: with fewer than 8
            tokens, or cut off by the length limit before so many tokens.
        max_skipped: largest share of prompts that were skipped as too long for a model.
        pin: what was promised of the run; see `Pin`.

    Raises:
        ConfigError: no limit, an unknown key, or a value out of its range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_reversal: _Difference | None = None
    max_harm_rate: _Rate | None = None
    max_any_of_k: _Rate | None = None
    max_uplift: _Difference | None = None
    min_prompts: _Count = 0
    judge: Annotated[_Name, AfterValidator(_check_kind)] | None = None
    require_mitigation: _Name | None = None
    alpha_range: Annotated[
        tuple[_Alpha, _Alpha], _expected("two α's above 0, such as [0.1, 1]"), AfterValidator(_check_range)
    ] = (0.1, 1.0)
    max_alpha_step: Annotated[
        float, Field(strict=True, gt=1, allow_inf_nan=False), _expected("a factor above 1")
    ] = 4.0
    max_truncated: _Share = 1.0
    max_empty: _Share = 0.1
    max_dropped: _Share = 0.1
    enough_tokens: _Count = 64
    max_short: _Share = 0.25
    max_corrected_reversal: _Difference | None = None
    max_worst_attack: _Rate | None = None
    require_attacks: _Texts = ("weights", "prefill", "decoding")
    max_skipped: _Share = 0.1
    pin: Pin = Pin()

    @model_validator(mode="wrap")
    @classmethod
    def _check(cls, values: Any, validate: Callable[[Any], Policy]) -> Policy:
        try:
            policy = validate(values)
        except ValidationError as error:
            raise ConfigError(explain(error, names=list(cls.model_fields))) from None
        if not any(getattr(policy, name) is not None for name in LIMITS):
            raise ConfigError(
                "the gate has no limit to judge by; expected max_reversal or max_harm_rate, such as --max-reversal 0.05"
            )
        return policy

    @property
    def digest(self) -> str:
        """16 hex digits over all that differs from the defaults: comments and the order of keys do not count."""
        content = json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    @classmethod
    def read(cls, path: str | Path, **overrides: Any) -> Policy:
        """The policy of a TOML file; overrides that are not None replace its values.

        Raises:
            ConfigError: no such file, not TOML, an unknown key, or a value out of its range.
        """
        text = read_text(path, "policy file", error=ConfigError)
        try:
            found = tomllib.loads(text)
        except ValueError as error:
            raise ConfigError(f"policy file {path} is not TOML: {error}") from error
        except RecursionError:
            raise ConfigError(
                f"policy file {path} is nested too deeply; expected the limits of a gate"
            ) from None
        return cls.of(
            {**found, **{k: v for k, v in overrides.items() if v is not None}}, f"policy file {path}"
        )

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str = "the policy") -> Policy:
        """The policy of a mapping.

        Raises:
            ConfigError: an unknown key, with the most similar known one, or a value out of its range.
        """
        try:
            return cls.model_validate(dict(values))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
