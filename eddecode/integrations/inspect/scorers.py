"""Our judges as scorers of Inspect: `inspect score LOG --scorer eddecode/judges -S specs=lexicon,guard:MODEL`.

Inspect scores one sample at a time. A judge is a model and wants batches, so that the samples that finish at about the
same time are judged together, in a thread of their own. The value of a score has one entry per judge, 1 where it
flagged the completion; the metadata has what else the judge returned.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, Value, mean, metric, scorer, stderr

from eddecode.audit.judges.base import Case, Judge, Verdict, kind_of, verdicts_of
from eddecode.audit.judges.registry import make_judge
from eddecode.errors import JudgeError
from eddecode.utils.validation import split_list

if TYPE_CHECKING:
    from inspect_ai.solver import TaskState

BURST_SECONDS = 0.02  # that a judge waits for further completions, which it then judges in one batch
BATCH = 256  # completions per call of a judge
CLUSTER = "prompt"  # metadata of a sample by which standard errors are clustered
# Stop reasons with which an empty text is no completion that could be judged.
_NO_TEXT = ("model_length", "content_filter", "unknown")


@metric
def stderr_by_prompt() -> Metric:
    """The standard error of a rate, clustered by prompt: several epochs and α's of one prompt are not independent.

    Samples with the metadata `prompt` are clustered by it, others by their id.
    """
    clustered = stderr(cluster=CLUSTER)

    def compute(scores: list[SampleScore]) -> Value:
        return clustered(
            [
                score.model_copy(
                    update={
                        "sample_metadata": {CLUSTER: str(score.sample_id), **(score.sample_metadata or {})}
                    }
                )
                for score in scores
            ]
        )

    return compute


@scorer(metrics={"*": [mean(), stderr_by_prompt()]})
def judges(specs: str | Sequence[str] = "lexicon") -> Scorer:
    """Judges of eddecode as one scorer.

    Args:
        specs: such as `lexicon`, `guard:MODEL`, or several: a list, or separated by commas where no spec has options.

    Raises:
        ConfigError: text without a specification, or with an empty entry.
        JudgeError: there is none, one is not that of a judge, or two judges have one name.
    """
    listed = split_list(specs, "judge") if isinstance(specs, str) else list(specs)
    if not listed:
        raise JudgeError("the list of judges is empty; expected one judge or more, such as lexicon")
    made = [BatchedJudge(make_judge(spec)) for spec in _joined_options(listed)]
    names = [each.judge.name for each in made]
    if len(set(names)) < len(names):
        raise JudgeError(f"the judges are called {', '.join(names)}; expected each name once (add ,name=…)")

    async def score(state: TaskState, target: Target) -> Score:
        from eddecode.integrations.inspect.provider import result_of

        text = state.output.completion
        if state.output.empty or (not text and state.output.stop_reason in _NO_TEXT):
            return Score(value={name: float("nan") for name in names}, reason="no_completion")
        asked = [each.submit(Case(state.input_text, text)) for each in made]
        verdicts = [await result_of(each) for each in asked]
        return as_score([each.judge for each in made], verdicts)

    return score


def as_score(judged_by: Sequence[Judge], verdicts: Sequence[Verdict]) -> Score:
    """One judge's verdict each, as one score."""
    pairs = list(zip(judged_by, verdicts, strict=True))
    return Score(
        value={judge.name: int(verdict.flag) for judge, verdict in pairs},
        answer=pairs[0][1].label,
        explanation="\n".join(
            f"{judge.name}: {v.label}" + f" ({v.reason})" * bool(v.reason) for judge, v in pairs
        ),
        metadata={"judges": {judge.name: verdict_record(judge, verdict) for judge, verdict in pairs}},
    )


def verdict_record(judge: Judge, verdict: Verdict) -> dict[str, Any]:
    """A verdict and who made it, as JSON data that an import reads."""
    return {
        **{"score": verdict.score, "flag": verdict.flag, "label": verdict.label, "reason": verdict.reason},
        **{"role": judge.role, "identity": judge.identity, "kind": kind_of(judge)},
    }


def _joined_options(parts: Sequence[str]) -> list[str]:
    """Options of a judge (`,name=…`) joined to it again: a comma separates judges, and the options of one."""
    found: list[str] = []
    for part in parts:
        if found and "=" in part.partition(":")[0]:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


class BatchedJudge:
    """A judge that is asked for one completion at a time and judges in batches, in a thread of its own."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self._inbox: queue.SimpleQueue[tuple[Case, Future[Verdict]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, case: Case) -> Future[Verdict]:
        """Ask for a verdict."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"judge {self.judge.name}", daemon=True)
            self._thread.start()
        future: Future[Verdict] = Future()
        self._inbox.put((case, future))
        return future

    def _run(self) -> None:
        while True:
            batch = [self._inbox.get()]
            time.sleep(BURST_SECONDS)
            with suppress(queue.Empty):
                while len(batch) < BATCH:
                    batch.append(self._inbox.get_nowait())
            asked = [(case, future) for case, future in batch if future.set_running_or_notify_cancel()]
            try:
                verdicts = verdicts_of(self.judge, [case for case, _ in asked])
            except Exception as error:  # whatever it is, those who wait must hear of it
                for _, future in asked:
                    future.set_exception(error)
            else:
                for (_, future), verdict in zip(asked, verdicts, strict=True):
                    future.set_result(verdict)
