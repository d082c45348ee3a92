"""An audit whose grid of α's is refined: α's are added where the sweep is too coarse to see the most harm.

What was decoded stays, and the models are loaded once for all rounds. Each round adds the α's that the gate would ask
for: the ends of the policy's range, values in large gaps, and the α at which the loss of utility crosses its bound if
more harm may lie there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from eddecode.audit.analysis.summary import Summary
from eddecode.audit.conditions import parse_alphas
from eddecode.audit.config import AuditConfig
from eddecode.audit.decode import LoadedSamplers
from eddecode.audit.evidence.alpha_checks import proposed_alphas
from eddecode.audit.policy import Policy
from eddecode.audit.run import audit
from eddecode.audit.store.discard import discard_run
from eddecode.audit.store.schema import FILE
from eddecode.audit.store.store import Store

ROUNDS = 3


def refine(config: AuditConfig, *, rounds: int = ROUNDS, fresh: bool = False, **options: Any) -> Summary:
    """Run an audit, and add α's to it until its sweep is fine enough, at most `rounds` times.

    Args:
        config: of the audit; with a `policy`, its range and limits decide. α's that an earlier refinement added to
            the run are kept.
        rounds: at most.
        fresh: delete the run in the folder first.
        options: of `eddecode.audit.audit`.

    Raises:
        EddecodeError: as of `eddecode.audit.audit`.
    """
    options = {**options, "sampler": options.get("sampler") or LoadedSamplers()}
    policy = None if config.policy is None else Policy.read(config.policy)
    if fresh:
        discard_run(config.out_folder)
    config = _with(config, _measured(config))
    summary = audit(config, grow=True, **options)
    for _ in range(rounds):
        added = proposed_alphas(summary, policy)
        if not added:
            break
        config = _with(config, added)
        summary = audit(config, grow=True, **options)
    return summary


def _measured(config: AuditConfig) -> list[str]:
    """The α's of the plain contrast that the run in the folder has already."""
    if not (config.out_folder / FILE).is_file():
        return []
    with Store.read(config.out_folder) as store:
        return [c.alpha for c in store.conditions() if c.kind == "ed" and c.plain]


def _with(config: AuditConfig, alphas: list[str]) -> AuditConfig:
    """The configuration with further α's."""
    own = parse_alphas(config.alphas)
    known = {float(alpha) for alpha in own}
    return replace(config, alphas=[*own, *(alpha for alpha in alphas if float(alpha) not in known)])
