"""From the configuration of an audit to the samplers of its models: the pair, the fine-tuned model, attacks' models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eddecode.audit.conditions import ENSEMBLE, FINETUNED, PAIR
from eddecode.audit.config import AuditConfig
from eddecode.errors import ConfigError

if TYPE_CHECKING:
    from eddecode.sampler import Sampler


def load_sampler(config: AuditConfig, model: str = PAIR) -> Sampler:
    """The sampler of a configuration's pair, of its base with the fine-tuned model, of its ensemble, or of an attack.

    The fine-tuned model takes the aligned model's place and is decoded at α = −1, which is that model alone. So the
    base log-probabilities of its completions are those of the base, as for all other conditions.

    Args:
        config: of the audit.
        model: `""`, `"finetuned"`, `"ensemble"`, or the name of an attack with models of its own.

    Raises:
        PairError: the checkpoints cannot be decoded against each other.
        PromptError: a template cannot be used.
    """
    from eddecode.models.pair import ModelPair
    from eddecode.sampler import MAX_SLOTS, Sampler

    models: dict[str, Any] = {
        "dtype": config.dtype,
        "device": config.device,
        "device_map": config.device_map,
        "quantization": config.quantization,
        "long_context": config.long_context,
        "mask_ids": config.mask_ids,
    }
    sampling: dict[str, Any] = {
        "base_template": config.base_template,
        "aligned_template": config.aligned_template,
        "max_slots": config.batch_size or MAX_SLOTS,
        "speculation": config.speculation,
        **config.rendering(),
    }
    attack = next((a for a in config.parsed_attacks() if a.has_own_models and a.name == model), None)
    if attack is not None:
        from eddecode.audit.attack_models.load import load_attack

        return load_attack(config, attack, models, sampling)
    group: Any
    if model == ENSEMBLE:
        from eddecode.models.ensemble import Ensemble

        if config.base_revision or config.aligned_revision:
            raise ConfigError(
                "an ensemble takes no revisions, since one would hold for all of its models; give local folders"
            )
        group = Ensemble.load(config.base, [config.aligned, *config.ensemble], **models)
    elif model == FINETUNED:
        assert config.finetuned is not None  # or there would be no such condition
        group = ModelPair.load(config.base, config.finetuned, base_revision=config.base_revision, **models)
    else:
        group = ModelPair.load(
            config.base,
            config.aligned,
            base_revision=config.base_revision,
            aligned_revision=config.aligned_revision,
            **models,
        )
    return Sampler(group, **sampling)
