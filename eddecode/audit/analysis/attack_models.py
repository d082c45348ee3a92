"""What a run recorded of the models of its attacks, beside the figures of the worst attack."""

from __future__ import annotations

from eddecode.audit.analysis.release_parts import AttackModel, ReleaseFigures, WorstAttack
from eddecode.audit.store.queries import ATTACK_NOTE
from eddecode.audit.store.store import Store


def with_attack_models(release: ReleaseFigures, worst: WorstAttack, store: Store) -> ReleaseFigures:
    """The figures with the layer, the refusal left and the damage of every attack with models of its own."""
    notes, known = store.notes(), set(AttackModel.model_fields)
    models = tuple(
        AttackModel(condition=name, **{key: value for key, value in found.items() if key in known})
        for name in worst.attacks
        if (found := notes.get(f"{ATTACK_NOTE}{name}")) is not None
    )
    return ReleaseFigures(
        **{**dict(release), "worst_attack": WorstAttack(**{**dict(worst), "models": models})}
    )
