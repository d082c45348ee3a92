"""All checks of one run's evidence, in the order in which they are reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from eddecode.audit.analysis.summary import FILE, Summary
from eddecode.audit.analysis.summary_parts import MitigationSummary
from eddecode.audit.evidence import alpha_checks, judge_checks, run_checks
from eddecode.audit.evidence.check import EvidenceCheck, first_problem
from eddecode.audit.evidence.recompute import check_agreement, check_finished, check_judged, recomputed
from eddecode.audit.policy import Policy
from eddecode.audit.store.schema import FILE as STORE_FILE
from eddecode.audit.store.store import Store
from eddecode.errors import ConfigError
from eddecode.utils.terminal import escape_control_chars
from eddecode.utils.validation import did_you_mean


@dataclass(frozen=True)
class Evidence:
    """What a verdict rests on.

    Attributes:
        run: name of the run.
        digest: of its identity.
        summary: computed from the store; None where the run is not complete enough for figures.
        checks: in the order of a report.
        models: what the run is of: `base`, `aligned` (names with revision or digest), `started`, `ended` (of its first
            and last session, ISO 8601).
    """

    run: str
    digest: str
    summary: Summary | None
    checks: tuple[EvidenceCheck, ...]
    models: Mapping[str, str | None] = field(default_factory=dict)


def gather(run: str | Path, policy: Policy, *, other_policy: bool = False) -> Evidence:
    """Open a run's store, compute its figures anew, and check what they rest on.

    Args:
        run: folder of the run, or the summary.json in it.
        policy: by which the run will be judged.
        other_policy: whether a policy other than the one that the run was started with is accepted.

    Raises:
        StoreError: there is no run in the folder, or no summary.
        ConfigError: the store is not there, or the run has no such mitigation as the policy requires.
    """
    folder = Path(run).parent if Path(run).is_file() else Path(run)
    if (folder / FILE).is_file() and not (folder / STORE_FILE).is_file():
        raise ConfigError(
            f"{folder} has a {FILE} and no {STORE_FILE}, and the gate computes its figures from the store; give it the "
            "folder of the run with all its files"
        )
    with Store.read(folder) as store:
        digest, name = str(store.note("digest") or ""), folder.resolve().name
        finished, models = check_finished(store), _models(store)
        first = [finished, check_judged(store)] if finished.word == "pass" else [finished]
        first += run_checks.check_source(store)
        if any(check.word != "pass" and check.name != "source" for check in first):
            return Evidence(name, digest, None, tuple(first), models)
        written, summary = Summary.read(run), recomputed(store)
        checks = [*first, check_agreement(written, summary), *_checks(store, summary, policy, other_policy)]
    return Evidence(name, digest, summary, tuple(checks), models)


def _models(store: Store) -> dict[str, str | None]:
    identity, sessions = store.note("identity") or {}, store.sessions()
    return {
        **{side: identity.get(side) for side in ("base", "aligned")},
        "started": sessions[0]["started"] if sessions else None,
        "ended": sessions[-1]["started"] if sessions else None,
    }


def _checks(store: Store, summary: Summary, policy: Policy, other_policy: bool) -> list[EvidenceCheck]:
    plain = alpha_checks.sweep(summary)
    points, changed = plain, alpha_checks.setting_sweeps(summary)
    last = [alpha_checks.check_settings(summary, policy, plain, changed)] if changed else []
    if policy.require_mitigation is not None:
        points = alpha_checks.mitigated_sweep(summary, mitigation_row(summary, policy.require_mitigation))
        changed = {}  # the figures are those under the mitigation, which is measured in the plain setting
        last.append(alpha_checks.check_mitigation(policy.require_mitigation, plain, points))
    sweeps = [points, *changed.values()]
    names = ["base", *(point.name for each in sweeps for point in each if not point.outside)]
    if changed:
        alone = [c for c in summary.conditions if c.condition == "base" and not c.plain]
        names += [entry.name for entry in alone if not (entry.mitigation or entry.model)]
    if policy.max_worst_attack is not None and (worst := summary.release.worst_attack) is not None:
        within = [c.condition for c in worst.candidates if c.state != "outside"]
        names += [name for name in within if name not in names]
    limits = alpha_checks.harm_limits(summary, policy)
    return [
        run_checks.check_policy(store, summary, policy, other_policy),
        first_problem(run_checks.check_models(store, summary), run_checks.check_mask(summary, policy)),
        first_problem(
            judge_checks.check_judge(summary, policy),
            judge_checks.check_other_judges(summary, policy),
            judge_checks.check_replaced(store, summary, policy),
        ),
        judge_checks.check_sight(store, summary),
        run_checks.check_completions(store, names, policy),
        run_checks.check_prompts(store, ["aligned", *names], policy),
        *run_checks.check_attempts(store, names, policy),
        *run_checks.check_skipped(store, policy),
        run_checks.check_room(summary, policy),
        alpha_checks.check_range(points, policy),
        first_problem(alpha_checks.check_bound(summary, policy), judge_checks.check_validity(summary)),
        alpha_checks.check_grid(sweeps, summary.headline.bound, limits),
        *last,
    ]


def mitigation_row(summary: Summary, mitigation: str) -> MitigationSummary:
    """The row of a mitigation.

    Raises:
        ConfigError: the run has no such mitigation.
    """
    rows = {row.mitigation: row for row in summary.mitigations if row.mitigation}
    if mitigation not in rows:
        tried = f"tried were {escape_control_chars(', '.join(rows))}" if rows else "it tried none"
        hint = did_you_mean(mitigation, list(rows)) if rows else "add it to the audit"
        raise ConfigError(
            f"{summary.folder} has no mitigation {mitigation!r:.60}: {tried}; {escape_control_chars(hint)}"
        )
    return rows[mitigation]
