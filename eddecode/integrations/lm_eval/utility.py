"""What a reversal costs on benchmarks: tasks of lm-evaluation-harness at every α of a pair.

An attacker who gives up what the model knows has gained less. The audit's own measure of utility is about its prompts;
a benchmark is about what else the model can do. Log-likelihoods at all α's come from one pass of each model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lm_eval
from lm_eval.tasks import TaskManager

from eddecode.audit.analysis.benchmark_parts import BenchmarkFigure
from eddecode.audit.analysis.summarize import summarize
from eddecode.audit.conditions import Condition
from eddecode.audit.config import AuditConfig
from eddecode.audit.config_file import FILE as AUDIT_FILE
from eddecode.audit.config_file import read_config_file
from eddecode.audit.environment import collect_environment
from eddecode.audit.samplers import load_sampler
from eddecode.audit.store.store import Store
from eddecode.errors import ConfigError
from eddecode.integrations.lm_eval.model import PairLM, PairScores
from eddecode.models.fingerprint import checkpoint_identity

if TYPE_CHECKING:
    from eddecode.audit.analysis.summary import Summary
    from eddecode.sampler import Sampler

BOOTSTRAPS = 1000  # of metrics whose standard error has no formula


def measure_utility(
    sampler: Sampler,
    alphas: Sequence[str],
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: str | Path | None = None,
    apply_chat_template: bool = False,
    on_alpha: Callable[[str], None] = lambda alpha: None,
) -> list[BenchmarkFigure]:
    """The metrics of tasks at every α.

    Args:
        sampler: of the pair.
        alphas: exact texts; "0" is the base model, "-1" the aligned one.
        tasks: names that the harness knows, or that are in `include_path`.
        limit: documents per task; None: all.
        num_fewshot: examples in front of each document; None: as the task says.
        include_path: folder with further tasks (YAML).
        apply_chat_template: whether contexts are rendered by the aligned model's chat template, for both models.
        on_alpha: called with an α before its evaluation.

    Raises:
        ConfigError: a task is unknown, or cannot be loaded.
    """
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    manager = _task_manager(tasks, include_path)
    scores, found = PairScores(sampler, [float(alpha) for alpha in alphas]), []
    for alpha in alphas:
        on_alpha(alpha)
        results = lm_eval.simple_evaluate(
            model=PairLM(alpha=float(alpha), scores=scores),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            num_fewshot=num_fewshot,
            apply_chat_template=apply_chat_template,
            bootstrap_iters=BOOTSTRAPS,
            log_samples=False,
        )
        found += _figures(alpha, results)
    return found


def measure_run(
    run: str | Path, tasks: Sequence[str], **settings: Any
) -> tuple[list[BenchmarkFigure], Summary | None]:
    """Run benchmarks at every α of a run, and record them in it.

    Args:
        run: folder of a run, with its `audit.toml`.
        tasks, settings: see `measure_utility`.

    Returns:
        The figures, and the run's new summary; None where the run is not finished or not judged.

    Raises:
        ConfigError: the folder has no audit file, the checkpoints are no longer those of the run, or a task is unknown.
        StoreError: there is no run in the folder, or it is in use.
    """
    folder = Path(run)
    with Store.read(folder) as store:
        identity, conditions = store.note("identity"), store.conditions()
    config = AuditConfig(**{**read_config_file(folder / AUDIT_FILE), "out": folder})
    for name in ("base", "aligned"):
        found = checkpoint_identity(getattr(config, name), getattr(config, f"{name}_revision"))
        if found != identity[name]:
            raise ConfigError(
                f"the {name} model of the run was {identity[name]}, and {getattr(config, name)} is {found} now; "
                "benchmarks of another model would say nothing about the run"
            )
    alphas = [condition.alpha for condition in conditions if condition.plain]
    sampler: Any = load_sampler(config)
    figures = measure_utility(sampler, list(dict.fromkeys(alphas)), tasks, **settings)
    with Store.open(folder) as store:
        store.resume(datetime.now(UTC).isoformat(timespec="seconds"), collect_environment(identity))
        store.add_benchmarks([figure.model_dump(mode="json") for figure in figures])
        judged = any(judge.role == "harm" for judge in store.judges())
        if store.missing() or not judged:
            return figures, None
        summary = summarize(store, store.conditions(), store.judges(), store.labels() or None)
    summary.write()
    return figures, summary


def _figures(alpha: str, results: dict[str, Any]) -> list[BenchmarkFigure]:
    figures = []
    condition = Condition({"0": "base", "-1": "aligned"}.get(alpha, "ed"), alpha)
    for task, own in results["results"].items():
        count = results.get("n-samples", {}).get(task, {}).get("effective", own.get("sample_len", 0))
        for key, value in own.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or not _is_number(value):
                continue
            error = own.get(f"{metric}_stderr,{filtered}")
            figures.append(
                BenchmarkFigure(
                    condition=condition.name,
                    alpha=alpha,
                    task=task,
                    metric=metric if filtered == "none" else f"{metric} ({filtered})",
                    value=float(value),
                    error=float(error) if _is_number(error) else None,
                    higher_is_better=results.get("higher_is_better", {}).get(task, {}).get(metric),
                    documents=int(count),
                    version=str(results.get("versions", {}).get(task, "")),
                )
            )
    return figures


def _task_manager(tasks: Sequence[str], include_path: str | Path | None) -> TaskManager:
    """A manager that knows the tasks; the harness's own are indexed (some seconds) only if they are asked for."""

    def unknown(manager: TaskManager) -> list[str]:
        return [name for name in tasks if not Path(name).is_file() and not manager.match_tasks([name])]

    folder = None if include_path is None else str(include_path)
    manager = TaskManager(include_path=folder, include_defaults=False)
    if unknown(manager):
        manager = TaskManager(include_path=folder)
    missing = unknown(manager)
    if missing or not tasks:
        raise ConfigError(
            f"lm-evaluation-harness has no task {', '.join(missing) or '(none given)'}; expected names as `lm_eval ls "
            "tasks` prints them, or a folder with further tasks (--include-path)"
        )
    return manager


def _is_number(value: Any) -> bool:
    try:
        return value is not None and not isinstance(value, str) and float(value) == float(value)  # no NaN
    except (TypeError, ValueError):
        return False
