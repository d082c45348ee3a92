"""What may be added to a run: α's and other conditions, prompts, samples, judges; what is there stays as it is.

A completion depends on its prompt, its condition and its sample's number alone, so a grown run ends in the figures of
one that had everything from the beginning. What decides the completions that are there (models, templates, sampling,
seed) cannot change: that would be another run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eddecode.audit.plan import AuditPlan
from eddecode.audit.provenance import diff
from eddecode.audit.store.grow import grow_run
from eddecode.audit.store.schema import FILE
from eddecode.audit.store.store import Store

GROWN = (
    *("alphas", "extra_alphas", "temperatures", "mitigations", "systems", "transforms", "templates"),
    *("attacks", "direction_prompts", "weak_pair", "finetuned", "ensemble"),
    *("prompts", "benign_prompts", "samples", "judges", "skip_too_long"),
)  # fields of a run's identity that may grow


def obstacles(store: Store, plan: AuditPlan) -> list[str]:
    """Why the run in a store cannot become the run of a plan; empty where it can."""
    old, new = store.note("identity") or {}, plan.fingerprint
    fixed = [{name: value for name, value in part.items() if name not in GROWN} for part in (old, new)]
    found = diff(*fixed)
    if int(new["samples"]) < int(old["samples"]):
        found.append(f"samples: {old['samples']} in the run, {new['samples']} now, which is less")
    now = {record.index: record.prompt for record in plan.prompts}
    for name, benign in (("prompts", False), ("benign_prompts", True)):
        was = [record for record in store.prompts() if record.benign == benign]
        if any(now.get(record.index) != record.prompt for record in was):
            found.append(
                f"{name}: the first {len(was)} are not those of the run; add further ones at the end"
            )
    kept = {c.key for c in plan.conditions}
    lost = [name for name in store.decoded() if name not in kept]
    if lost:
        found.append(
            f"conditions: the run has completions of {', '.join(sorted(lost))}, which are left out now"
        )
    found += _changed(store, old, new)
    if old.get("no_text") and old["judges"] != new["judges"]:
        found.append("judges: the run keeps no text that other judges could judge")
    return found


def grow(plan: AuditPlan) -> None:
    """Make the run in the plan's folder the run of the plan, if that only adds to it; else leave it as it is."""
    folder = plan.config.out_folder
    if not (folder / FILE).is_file():
        return
    with Store.read(folder) as store:
        old = store.note("identity")
        same = old is None or old == plan.fingerprint or obstacles(store, plan)
    if not same:
        grow_run(folder, plan.notes(), plan.conditions, plan.prompts)


def _changed(store: Store, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Texts and models that completions of the run were made with, and that are others now."""
    conditions = [c for c in store.conditions() if c.name in store.decoded()]
    found = []
    for field, names in (
        ("systems", {c.system for c in conditions if c.system}),
        ("transforms", {c.transform for c in conditions if c.transform}),
        ("templates", {c.template for c in conditions if c.template}),
    ):
        before, after = _digests(old.get(field)), _digests(new.get(field))
        found += [
            f"{field}: {name} has another text than in the run"
            for name in sorted(names)
            if name in after and before.get(name) != after[name]
        ]
    for field, kinds in (
        *(("finetuned", ()), ("ensemble", ())),
        *(("direction_prompts", ("ablate", "steer")), ("weak_pair", ("w2s",))),
    ):
        used = any(c.model == field or c.kind in kinds for c in conditions)
        if used and new.get(field) and old.get(field) != new[field]:
            found += diff({field: old.get(field)}, {field: new[field]})
    return found


def _digests(entries: Any) -> dict[str, str]:
    """name → digest of entries such as `rude, digest 0123`."""
    pairs = (str(entry).rpartition(", digest ") for entry in entries or ())
    return {name: digest for name, _, digest in pairs}
