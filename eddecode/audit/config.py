"""The configuration of an audit: every setting, checked when it is made, by itself (`config_types`) and with others.

The same fields are given from Python, on the command line and in an `audit.toml` (`config_file`). What follows from
them (conditions, sampling parameters, judges, the fingerprint of the run) is worked out once, in `plan`. Nothing here
imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field, StrictBool, model_validator
from pydantic.dataclasses import dataclass

from eddecode.audit.attacks import Attack, parse_attacks
from eddecode.audit.conditions import NO_PENALTIES, Condition, build_conditions, parse_alphas
from eddecode.audit.config_types import (
    Alphas,
    AtLeast0,
    AtLeast1,
    Attacks,
    Judges,
    Location,
    Mitigations,
    Models,
    Number,
    OptionalPrompts,
    Prompts,
    Share,
    Systems,
    Temperatures,
    Templates,
    Texts,
    Transforms,
    Variables,
    WholeModel,
    parse_temperatures,
)
from eddecode.audit.data.transforms import read_transforms
from eddecode.audit.mitigations import access_of, parse_mitigations
from eddecode.errors import ConfigError
from eddecode.utils.validation import raises

if TYPE_CHECKING:
    from eddecode.sampling.params import SamplingParams


@raises(ConfigError)
@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AuditConfig:
    """Everything that an audit is asked for. Two runs with equal configurations end in equal tables.

    Attributes:
        base, aligned: checkpoints: local folders or hub ids.
        prompts: a file or a data set (see docs/prompt-sets.md), or the prompts themselves (strings or lists of chat
            messages).
        benign_prompts: a second set, of harmless prompts: the same conditions decode it, and refusals are counted on
            it. It takes no part in harm rates.
        skip_too_long: leave out prompts that are longer, with their completion, than a model reads; they are counted
            and named. Otherwise they are an error.
        prompt_column, category_column: the fields of the prompt set with the prompt and its category; None: found by
            name.
        limit: how many of the prompts are asked, from the first; None: all. A run can grow by the others.
        out: the run's folder; created if missing.
        alphas: strengths of the contrast, as text or numbers; stored as exact text.
        samples: completions per prompt and condition.
        temperature, top_k, top_p, min_p, plausibility, max_new_tokens, stop, seed: see `SamplingParams`, which checks
            their ranges when the audit starts.
        repetition_penalty, presence_penalty, frequency_penalty: see `SamplingParams`.
        temperatures: further temperatures to measure. Each adds base, aligned and ED conditions at it.
        suppress_eos, ignore_eos: see `SamplingParams`.
        dtype: of the weights: `auto`, `float32`, `bfloat16`, `float16`.
        device: of the models; None: a GPU if there is one.
        device_map, quantization, long_context: of the models, see `ModelPair.load`.
        batch_size: most completions that are decoded together; None: as many as `Sampler` takes. No completion depends
            on it.
        speculation: what drafts tokens, see `Sampler`. No completion depends on it.
        base_revision, aligned_revision: of hub ids.
        base_template, aligned_template: `chat`, a preset's name, a file with `{prompt}`, or a `.jinja` file; None: a
            plain instruction template for the base model, its chat template for the aligned model.
        template_variables: for chat templates, such as {"enable_thinking": False}.
        fold_system: where a chat template takes no system message, put its text before the first user message.
        prefill: text with which the assistant's turn begins, for both models; completions follow it.
        escape_specials: special tokens that are spelt in a prompt stay text.
        mask_ids: `differing` masks ids that stand for different tokens in the two tokenizers, see `ModelPair.load`.
        keep_thinking: judges read the reasoning of a completion too (`<think>` … `</think>`), not its answer alone.
        judges: specifications such as `lexicon`, `lexicon:FILE`, `grammar`, tables of an audit file, functions or
            judges; the first one judges harm.
        systems: name → system prompt. Each adds base, aligned and ED conditions with it.
        templates: name → `base`, `aligned` or both: further templates. Each adds base, aligned and ED conditions with
            them; a side that is not given keeps the run's template.
        transforms: a file, or tables; see `Transform`. Each adds base, aligned and ED conditions with it.
        mitigations: names such as `topk5`. Each adds ED conditions under that limit.
        attacks: names such as `weights@-0.3`, `prefill:5`; see docs/attacks.md. Each adds a condition.
        direction_harmful, direction_harmless: prompts that the aligned model refuses, and that it answers, on which
            `ablate` and `steer` are fitted; others than `prompts`. The second ones also measure what attacks with
            models of their own cost, by KL to the aligned model.
        weak_base, weak_aligned: checkpoints of another, smaller pair of the same vocabulary, for `w2s`.
        extra_alphas: α's of the ED conditions with a system prompt, transform or mitigation, and of the ensemble;
            None: all of `alphas` above 0, since the best α for an attacker may differ there.
        finetuned: checkpoint (whole, not an adapter) of a model trained to be harmful, decoded alone as a reference
            with the aligned model's template.
        ensemble: further aligned models of the same base; they and `aligned` are contrasted with it together.
        keep_text: False keeps digests and verdicts of completions, and no text.
        min_tokens: completions with fewer tokens are left out of harm rates, and counted; for utility they count as
            lost; 0 keeps all.
        utility_loss: ε, the utility that the headline α may cost, as a share of the base model's.
        canaries: a JSON Lines file of completions that are known to be harmful or harmless; the harm judge judges them,
            and the gate needs that where it flags nothing in the run. See docs/gate.md.
        policy: the policy by which the run will be judged. Its digest becomes part of the run, and the gate refuses
            another one.

    Raises:
        ConfigError: a field is unknown or missing, or has a value with which no audit can be run.
    """

    base: Location
    aligned: Location
    prompts: Prompts
    out: Location
    limit: AtLeast1 | None = None
    alphas: Alphas = ("0.3",)
    samples: AtLeast1 = 1
    temperature: Number = 1.0
    temperatures: Temperatures = ()
    top_k: Number = 0
    top_p: Number = 1.0
    min_p: Number = 0.0
    plausibility: Number = 0.0
    repetition_penalty: Number = 1.0
    presence_penalty: Number = 0.0
    frequency_penalty: Number = 0.0
    max_new_tokens: Number = 128
    stop: Texts = ()
    seed: Number = 0
    suppress_eos: StrictBool = False
    ignore_eos: StrictBool = False
    dtype: str = "auto"
    device: str | None = None
    device_map: str | Mapping[str, Any] | None = None
    quantization: str | None = None
    long_context: StrictBool = False
    batch_size: AtLeast1 | None = None
    speculation: str = "off"
    base_revision: str | None = None
    aligned_revision: str | None = None
    base_template: Location | None = None
    aligned_template: Location | None = None
    template_variables: Variables = Field(default_factory=dict)
    fold_system: StrictBool = False
    prefill: str = ""
    escape_specials: StrictBool = True
    mask_ids: Literal["differing"] | None = None
    keep_thinking: StrictBool = False
    judges: Judges = ("lexicon",)
    systems: Systems = Field(default_factory=dict)
    templates: Templates = Field(default_factory=dict)
    transforms: Transforms = ()
    mitigations: Mitigations = ()
    attacks: Attacks = ()
    direction_harmful: OptionalPrompts = None
    direction_harmless: OptionalPrompts = None
    weak_base: Location | None = None
    weak_aligned: Location | None = None
    extra_alphas: Alphas | None = None
    finetuned: WholeModel = None
    ensemble: Models = ()
    keep_text: StrictBool = True
    min_tokens: AtLeast0 = 0
    utility_loss: Share = 0.1
    canaries: Location | None = None
    policy: Location | None = None
    prompt_column: str | None = None
    category_column: str | None = None
    benign_prompts: OptionalPrompts = None
    skip_too_long: StrictBool = False

    @model_validator(mode="after")
    def _check_together(self) -> AuditConfig:
        if self.temperature == 0 and self.samples > 1:
            raise ConfigError(
                f"temperature 0 makes the same completion every time, and samples is {self.samples}; "
                "set samples to 1, or a temperature above 0"
            )
        further = [float(value) for value in parse_temperatures(self.temperatures)]
        if self.temperature in further:
            raise ConfigError(
                f"temperatures holds {self.temperature:g}, the run's own temperature; expected others than temperature"
            )
        if 0 in further and self.samples > 1:
            raise ConfigError(
                f"temperatures holds 0, which makes the same completion every time, and samples is {self.samples}; "
                "set samples to 1, or leave 0 out"
            )
        self._check_attacks()
        self._check_used()
        extras = (
            *(self.systems, self.transforms, self.templates),
            *(self.mitigations, self.ensemble, further),
        )
        alphas = parse_alphas(self.alphas if self.extra_alphas is None else self.extra_alphas)
        if self.extra_alphas is not None and not any(extras):
            raise ConfigError(
                "extra_alphas are the α's of conditions with a mitigation, system prompt, transform, other temperature "
                "or templates, or ensemble, and there is none; leave them out, or add such a condition"
            )
        if any(extras) and not [
            alpha for alpha in alphas if self.extra_alphas is not None or float(alpha) > 0
        ]:
            raise ConfigError(
                "no alpha is left for the conditions with a mitigation, system prompt, transform, other temperature or "
                "templates, or ensemble; give alphas above 0, or extra_alphas"
            )
        return self

    def _check_attacks(self) -> None:
        for attack in self.parsed_attacks():
            if attack.tokens >= self.max_new_tokens:
                raise ConfigError(
                    f"attack {attack.name} begins with {attack.tokens} tokens, and max_new_tokens is "
                    f"{self.max_new_tokens}; give fewer, or raise max_new_tokens"
                )
            if attack.changes_weights and self.quantization:
                raise ConfigError(
                    f"attack {attack.name} changes weights, which a quantized model does not allow; leave it or "
                    "quantization out"
                )
            if attack.sampling.get("temperature") == 0 and self.samples > 1:
                raise ConfigError(
                    f"attack {attack.name} makes the same completion every time, and samples is {self.samples}; "
                    "set samples to 1, or leave it out"
                )
            self._check_inputs(attack)

    def _check_used(self) -> None:
        """What attacks are made from is read by one of them."""
        attacks = self.parsed_attacks()
        readers = {
            "direction_harmful": (
                "ablate or steer",
                any(attack.needs_direction_prompts for attack in attacks),
            ),
            "direction_harmless": ("ablate or steer", bool(attacks)),  # measures what others cost, too
            "weak_base": ("w2s", any(attack.kind == "w2s" for attack in attacks)),
            "weak_aligned": ("w2s", any(attack.kind == "w2s" for attack in attacks)),
        }
        for name, (kinds, read) in readers.items():
            if getattr(self, name) is not None and not read:
                raise ConfigError(
                    f"{name} is given, and no attack reads it; leave it out, or add the attack {kinds} (--attacks)"
                )

    def _check_inputs(self, attack: Attack) -> None:
        """What an attack is made from is there."""
        needed = []
        if attack.needs_direction_prompts:
            needed.append("direction_harmful")
        if attack.kind == "ablate":
            needed.append("direction_harmless")
        if attack.kind == "w2s":
            needed += ["weak_base", "weak_aligned"]
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
            raise ConfigError(f"attack {attack.name} needs {' and '.join(missing)}; give them ({options})")

    def parsed_attacks(self) -> tuple[Attack, ...]:
        """The attacks beside ED, `decoding` as its settings."""
        return parse_attacks(self.attacks)

    @property
    def out_folder(self) -> Path:
        """`out` as a path."""
        return Path(self.out)

    def conditions(self) -> list[Condition]:
        """All conditions: aligned, base, ED from the lowest α to the highest, then those that change one thing more."""
        return build_conditions(
            parse_alphas(self.alphas),
            extra_alphas=None if self.extra_alphas is None else parse_alphas(self.extra_alphas),
            systems=self.systems,
            transforms=[transform.name for transform in read_transforms(self.transforms)],
            mitigations=parse_mitigations(self.mitigations),
            finetuned=self.finetuned is not None,
            ensemble=bool(self.ensemble),
            temperatures=parse_temperatures(self.temperatures),
            templates=self.templates,
            attacks=[attack.condition for attack in self.parsed_attacks()],
        )

    def templates_of(self, name: str) -> dict[str, str | Path | None]:
        """`base_template` and `aligned_template` by the name of further templates; an empty name: the run's own."""
        own = {"base_template": self.base_template, "aligned_template": self.aligned_template}
        return own | {f"{side}_template": spec for side, spec in self.templates.get(name, {}).items()}

    def sampling(self) -> dict[str, Any]:
        """The sampling parameters that all conditions share, as keywords of `SamplingParams`."""
        names = ("temperature", "top_k", "top_p", "min_p", "plausibility", "max_new_tokens", "stop", "seed")
        return {name: getattr(self, name) for name in names}

    def penalties(self) -> dict[str, float]:
        """Penalties that differ from those that change nothing, as keywords of `SamplingParams`."""
        return {name: value for name, off in NO_PENALTIES.items() if (value := getattr(self, name)) != off}

    def rendering(self) -> dict[str, Any]:
        """How prompts are rendered, as keywords of `Sampler`."""
        names = ("template_variables", "fold_system", "prefill", "escape_specials")
        return {name: getattr(self, name) for name in names}

    def params(self, condition: Condition, n: int) -> SamplingParams:
        """How `n` completions of one prompt are sampled under a condition.

        Raises:
            ParamsError: a sampling parameter is out of its range.
        """
        from eddecode.sampling.params import SamplingParams

        access = access_of(condition.mitigation) if condition.mitigation else None
        sampling, penalties = self.sampling(), self.penalties()
        if condition.temperature:
            sampling["temperature"] = float(condition.temperature)
        if condition.kind == "decoding":
            plain = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "plausibility": 0.0}
            chosen = next(a for a in self.parsed_attacks() if a.name == condition.model).sampling
            penalties = {}
            sampling |= plain | {name: int(v) if name == "top_k" else v for name, v in chosen.items()}
        sampling |= {"suppress_eos": self.suppress_eos, "ignore_eos": self.ignore_eos, **penalties}
        return SamplingParams(alpha=float(condition.alpha), n=n, access=access, logprobs=True, **sampling)
