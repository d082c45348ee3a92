"""The plan of an audit: everything that follows from its configuration, worked out once before anything is decoded.

`audit` resolves an `AuditConfig` into an `AuditPlan` and hands it on. The later steps read it and never go back to the
files and names of the configuration, so that a file that changes during a run cannot give two answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eddecode.audit.conditions import Condition
from eddecode.audit.config import AuditConfig
from eddecode.audit.data.canaries import Canary, read_canaries
from eddecode.audit.data.prompts import Messages, PromptRecord, read_benign_prompts, read_prompts
from eddecode.audit.data.shards import Shard
from eddecode.audit.data.transforms import Transform, read_transforms, with_system, without_system
from eddecode.audit.judges.base import Judge, JudgeLike
from eddecode.audit.judges.registry import make_judge, make_judges
from eddecode.audit.mitigations import meaning, parse_mitigations
from eddecode.audit.policy import Policy, run_facts
from eddecode.audit.provenance import fingerprint_digest, run_fingerprint
from eddecode.audit.store.queries import SHARD_NOTE
from eddecode.errors import ConfigError

if TYPE_CHECKING:
    from eddecode.sampling.params import SamplingParams

LATER = "later"  # in the place of a judge: decode now, and choose the judge of harm afterwards


@dataclass(frozen=True)
class AuditPlan:
    """What an audit decodes and how it is judged.

    Attributes:
        config: as it was given.
        prompts: in the order of their file, then the benign ones.
        conditions: in the order of the run's table.
        params: a condition's key → how its completions are sampled, `config.samples` of them per prompt.
        transforms: name → transform of the prompt.
        judges: the first one judges harm; none where they are chosen later.
        fingerprint: what decides the run's completions and verdicts, see `run_fingerprint`.
        canaries: completions whose harm is known, for the harm judge.
        shard: the part of the prompts that is decoded here; None: all of them.
    """

    config: AuditConfig
    prompts: tuple[PromptRecord, ...]
    conditions: tuple[Condition, ...]
    params: Mapping[str, SamplingParams]
    transforms: Mapping[str, Transform]
    judges: tuple[Judge, ...]
    fingerprint: Mapping[str, Any]
    canaries: tuple[Canary, ...] = ()
    shard: Shard | None = None

    @property
    def own_prompts(self) -> tuple[PromptRecord, ...]:
        """The prompts that this process decodes: all of them, or those of its shard."""
        return self.prompts if self.shard is None else self.shard.of_prompts(self.prompts)

    def prompt_under(self, condition: Condition, record: PromptRecord) -> str | Messages:
        """A prompt as a condition gives it to the models: transformed, with a system prompt, or as it is."""
        prompt = record.prompt
        if condition.transform:
            prompt = self.transforms[condition.transform](prompt)
        if condition.kind == "decoding":
            prompt = without_system(prompt)
        if condition.system:
            prompt = with_system(prompt, self.config.systems[condition.system])
        return prompt

    def notes(self) -> dict[str, Any]:
        """What the store records of the run: its fingerprint, and the texts behind the names of conditions."""
        part = {} if self.shard is None else {SHARD_NOTE: self.shard.note(len(self.prompts))}
        return {
            **part,
            "identity": self.fingerprint,
            "digest": fingerprint_digest(self.fingerprint),
            "systems": dict(self.config.systems),
            "templates": {
                name: {side: str(spec) for side, spec in sides.items()}
                for name, sides in self.config.templates.items()
            },
            "transforms": [transform.to_dict() for transform in self.transforms.values()],
            "mitigations": {name: meaning(name) for name in parse_mitigations(self.config.mitigations)},
            "attacks": {
                attack.name: {"meaning": attack.meaning, **({"text": attack.text} if attack.text else {})}
                for attack in self.config.parsed_attacks()
            },
        }


def resolve(
    config: AuditConfig, judges: Sequence[JudgeLike] | None = None, shard: Shard | None = None
) -> AuditPlan:
    """Read the files that a configuration names, and work out what it asks for.

    Args:
        config: of the audit.
        judges: take the place of those that the configuration names.
        shard: the part of the prompts to decode; None: all of them.

    Raises:
        PromptError: the prompts cannot be read, or are none.
        JudgeError: a judge cannot be made.
        ParamsError: a sampling parameter is out of its range.
        ConfigError: the policy or the canaries cannot be read, or the audit differs from what its policy pins.
    """
    prompts = read_prompts(
        config.prompts, prompt_column=config.prompt_column, category_column=config.category_column
    )[: config.limit]
    if config.benign_prompts is not None:
        prompts += read_benign_prompts(config.benign_prompts)[: config.limit]
    transforms = read_transforms(config.transforms)
    wanted = config.judges if judges is None else judges
    made = [] if tuple(wanted) == (LATER,) and config.keep_text else make_judges(wanted)
    if config.benign_prompts is not None and made and not any(judge.role == "refusal" for judge in made):
        made.append(make_judge("refusal"))  # or no false refusal would be counted
    conditions = config.conditions()
    fingerprint = run_fingerprint(config, prompts, conditions, transforms, made)
    if config.policy is not None:
        _check_pins(config, fingerprint, prompts)
    return AuditPlan(
        config=config,
        prompts=tuple(prompts),
        conditions=tuple(conditions),
        params={condition.key: config.params(condition, config.samples) for condition in conditions},
        transforms={transform.name: transform for transform in transforms},
        judges=tuple(made),
        fingerprint=fingerprint,
        canaries=() if config.canaries is None else tuple(read_canaries(config.canaries)),
        shard=shard,
    )


def _check_pins(config: AuditConfig, fingerprint: Mapping[str, Any], prompts: Sequence[PromptRecord]) -> None:
    """Refuse an audit that its own policy would refuse: better now than after hours of decoding."""
    assert config.policy is not None
    digests = [record.digest for record in prompts if not record.benign]
    facts = run_facts(fingerprint, fingerprint["judges"], config.utility_loss, digests)
    differences = Policy.read(config.policy).pin.differences(facts)
    if differences:
        lines = "\n  ".join(differences)
        raise ConfigError(
            f"the audit differs from what its policy {config.policy} pins:\n  {lines}\n"
            "Change the audit to what was promised, or promise something else in the policy."
        )
