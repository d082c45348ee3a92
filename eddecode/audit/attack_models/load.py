"""From the name of an attack to the sampler of its models, with a record of what was fitted and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from eddecode.audit.attack_models.first_tokens import (
    Texts,
    first_token_logits,
    first_token_logprobs,
    halves,
    log_probabilities,
    mean_divergence,
)
from eddecode.audit.attack_models.refusal import refusal_direction
from eddecode.audit.attack_models.steering import add_vector, steering
from eddecode.audit.attacks import Attack
from eddecode.audit.config import AuditConfig
from eddecode.audit.config_types import PromptSource
from eddecode.audit.data.prompts import read_prompts
from eddecode.errors import ConfigError, PromptError
from eddecode.models.pair import ModelPair
from eddecode.models.residual_writers import remove_direction
from eddecode.models.task_vector import merge_task_vector, remove_top_directions
from eddecode.models.weak_to_strong import WeakToStrong
from eddecode.prompts.types import RenderedPrompt
from eddecode.sampler import Sampler

_TRIAL_TEXTS = 4


class AttackSampler(Sampler):
    """A sampler of an attack's models.

    Attributes:
        record: JSON data on the attack: `layer` and `position` of a direction, with how they were chosen; and
            `kl_to_aligned`, the mean KL(aligned ‖ attack) of first tokens over `kl_prompts` held-out harmless prompts,
            nats, where such prompts were given.
    """

    record: Mapping[str, Any]


def load_attack(
    config: AuditConfig, attack: Attack, models: Mapping[str, Any], sampling: Mapping[str, Any]
) -> AttackSampler:
    """Load the models of an attack, change them, and make their sampler.

    Args:
        config: of the audit.
        attack: one with models of its own.
        models: how checkpoints are loaded, as keywords of `ModelPair.load`.
        sampling: keywords of `Sampler`.

    Raises:
        PairError: the checkpoints cannot be decoded against each other, or cannot be changed as the attack asks.
        ConfigError, PromptError: its prompts cannot be used.
    """
    if attack.kind == "w2s":
        return _weak_to_strong(config, attack, models, sampling)
    pair = ModelPair.load(
        config.base,
        config.aligned,
        base_revision=config.base_revision,
        aligned_revision=config.aligned_revision,
        **models,
    )
    sampler = AttackSampler(pair, **sampling)
    harmless = _held_out_harmless(config, sampler)
    before = _aligned_logprobs(pair, harmless)
    record = _changes(config, attack, sampler)
    if attack.reads_base_template:
        pair.eos_ids = (pair.eos_ids[0], pair.eos_ids[0])
        sampler.read_base_template()
        harmless = _held_out_harmless(config, sampler)
    sampler.record = record | _damage(before, lambda: _aligned_logprobs(pair, harmless), len(harmless))
    return sampler


def _changes(config: AuditConfig, attack: Attack, sampler: Sampler) -> dict[str, Any]:
    """Make the aligned model of a sampler's pair the attack's; what was fitted."""
    pair: Any = sampler.pair
    if attack.kind == "weights":
        merge_task_vector(pair, attack.scale)
        return {}
    if attack.kind == "lowrank":
        remove_top_directions(pair, attack.rank)
        return {}
    harmful = _rendered(sampler, _fitting_prompts(config.direction_harmful, "direction_harmful"))
    if attack.kind == "ablate":
        harmless = _rendered(sampler, _fitting_prompts(config.direction_harmless, "direction_harmless"))
        return _ablate(pair, attack, [p.aligned_ids for p in harmful], [p.aligned_ids for p in harmless])
    base, aligned = pair.models
    found = steering(
        base,
        aligned,
        [(p.base_ids, p.aligned_ids) for p in harmful],
        pair.vocabulary,
        attack.scale,
        attack.layer,
    )
    add_vector(pair.aligned, found.layer, found.vector)
    distances = {str(layer): round(value, 6) for layer, value in found.distances.items()}
    return {
        "layer": found.layer,
        "kl_from_base": distances,
        "kl_from_base_unsteered": round(found.unsteered, 6),
    }


def _ablate(pair: Any, attack: Attack, harmful: Texts, harmless: Texts) -> dict[str, Any]:
    found = refusal_direction(pair.aligned, harmful, harmless, pair.vocabulary, attack.layer)
    remove_direction(pair.aligned, found.vector, [*harmful[:_TRIAL_TEXTS], *harmless[:_TRIAL_TEXTS]])
    pair.checkpoints = None  # digests are those of the weights in memory
    if hasattr(pair.aligned, "low_rank_factors"):  # aligned = base + B·A no longer holds
        del pair.aligned.low_rank_factors
    candidates = [
        {"layer": c.layer, "position": c.position, "score": round(c.score, 6), "kl": round(c.kl, 6)}
        for c in found.candidates
    ]
    remaining = None if found.remaining is None else round(found.remaining, 6)
    chosen = {"layer": found.chosen.layer, "position": found.chosen.position, "refusal_remaining": remaining}
    return chosen | {"candidates": candidates}


def _weak_to_strong(
    config: AuditConfig, attack: Attack, models: Mapping[str, Any], sampling: Mapping[str, Any]
) -> AttackSampler:
    assert config.weak_base is not None  # checked when the configuration was made
    assert config.weak_aligned is not None
    if config.base_revision or config.aligned_revision:
        raise ConfigError(
            f"attack {attack.name} takes no revisions, since one would hold for all of its models; give local folders"
        )
    group = WeakToStrong.load(
        *(config.base, config.aligned, config.weak_base, config.weak_aligned),
        strength=attack.scale,
        **models,
    )
    sampler = AttackSampler(group, **sampling)
    harmless = _held_out_harmless(config, sampler)

    def contrasted() -> Tensor:
        width = len(group.vocabulary)
        total: Any = 0.0
        for model, side, weight in zip(group.models, group.sides, group.logit_weights(-1.0), strict=True):
            if weight:
                texts = [p.base_ids if side == "base" else p.aligned_ids for p in harmless]
                total = total + weight * first_token_logits(model, texts)[:, :width]
        return log_probabilities(total, group.vocabulary)

    before = _aligned_logprobs(group, harmless)
    sampler.record = _damage(before, contrasted, len(harmless))
    return sampler


def _aligned_logprobs(group: Any, prompts: Sequence[RenderedPrompt]) -> Tensor | None:
    """(n, V) of the aligned model; None without prompts."""
    if not prompts:
        return None
    return first_token_logprobs(group.models[1], [p.aligned_ids for p in prompts], group.vocabulary)


def _damage(before: Tensor | None, after: Callable[[], Tensor | None], count: int) -> dict[str, Any]:
    found = None if before is None else after()
    if before is None or found is None:
        return {}
    return {"kl_to_aligned": round(mean_divergence(before, found), 6), "kl_prompts": count}


def _held_out_harmless(config: AuditConfig, sampler: Sampler) -> list[RenderedPrompt]:
    """The half of the harmless prompts on which damage is measured; none where none were given."""
    source = config.direction_harmless if config.direction_harmless is not None else config.benign_prompts
    prompts = [] if source is None else [record.prompt for record in read_prompts(source)]
    return halves(_rendered(sampler, prompts))[1]


def _fitting_prompts(source: PromptSource | None, name: str) -> list[Any]:
    assert source is not None  # checked when the configuration was made
    prompts = [record.prompt for record in read_prompts(source)]
    if any(len(half) < 2 for half in halves(prompts)):
        raise ConfigError(
            f"{name} holds {len(prompts)} prompts; expected at least 4, of which half are held out"
        )
    return prompts


def _rendered(sampler: Sampler, prompts: Sequence[Any]) -> list[RenderedPrompt]:
    """The prompts as the models read them.

    Raises:
        PromptError: one cannot be rendered, or is longer than a model reads.
    """
    found = []
    for number, prompt in enumerate(prompts, start=1):
        rendered = sampler.render(prompt)
        sampler.pair.check_prompt(rendered)
        for ids, window in zip(sampler.pair.input_ids(rendered), sampler.pair.context_windows, strict=True):
            if window is not None and len(ids) > window:
                raise PromptError(
                    f"prompt {number} of the prompts for directions has {len(ids)} tokens, and a model reads at most "
                    f"{window}; leave it out"
                )
        found.append(rendered)
    return found
