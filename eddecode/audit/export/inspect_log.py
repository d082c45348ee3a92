"""A run as an evaluation log of Inspect AI, for `inspect view` and `read_eval_log`.

The format is Inspect's JSON log, version 2 (https://inspect.aisi.org.uk/eval-logs.html; the fields are those of
`EvalLog` in its src/inspect_ai/log/_log.py). One sample per condition, prompt and sample number: `id` is
`condition/prompt`, `epoch` the sample number from 1. A judge is a scorer: its value is 1 where it flagged a completion,
and its score is in the metadata, as is everything for which Inspect has no field. One log holds all conditions, or
those that were chosen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eddecode.audit.data.prompts import PromptRecord
from eddecode.audit.export.rows import chosen_keys, export_rows
from eddecode.audit.store.store import Store

_STOPPED = {"eos": "stop", "stop": "stop", "length": "max_tokens"}
_METADATA = (
    *("condition", "alpha", "name", "system", "transform", "template", "mitigation", "model", "temperature"),
    "prompt_index",
    *("finish_reason", "implied_reward", "base_logprob", "aligned_logprob", "length", "perplexity"),
    *("distinct_1", "distinct_2", "repetition", "empty", "text_digest"),
)


def export_inspect(folder: str | Path, names: Sequence[str] = ()) -> Iterator[str]:
    """The lines of the log: one JSON document with a line per sample, which bounds memory.

    Raises:
        StoreError: there is no run in the folder.
        ConfigError: the run has no such condition.
    """
    with Store.read(folder) as store:
        keys = chosen_keys(store, names)
        prompts = {record.index: record for record in store.prompts()}
        counts = {key: sum(total for _, total in store.clusters(key, [])) for key in keys}
        model = str(store.note("identity")["aligned"]).partition(",")[0]
        head = _head(store, keys, len(prompts), sum(counts.values()), model)
        yield json.dumps(head)[:-1] + ', "samples": ['
        before = ""
        for row in export_rows(store, keys):
            yield before + json.dumps(_sample(row, prompts[row["prompt_index"]], model), allow_nan=False)
            before = ", "
        yield "]}"


def _head(store: Store, keys: Sequence[str], prompts: int, samples: int, model: str) -> dict[str, Any]:
    identity, digest, sessions = store.note("identity"), str(store.note("digest")), store.sessions()
    started, ended = sessions[0]["started"], sessions[-1]["started"]
    sampled = {"temperature": identity["temperature"], "top_p": identity["top_p"], "seed": identity["seed"]}
    judges = store.judges()
    spec = {
        "eval_id": _id("eval", digest),
        "run_id": _id("run", digest),
        "task_id": _id("task", digest),
        "created": started,
        "task": "eddecode",
        "task_version": str(sessions[0].get("eddecode", "0")),
        "task_args": identity,
        "dataset": {"name": "prompts", "samples": prompts * len(keys)},
        "model": f"eddecode/{model}",
        "model_generate_config": {**sampled, "max_tokens": identity["max_new_tokens"]},
        "config": {"epochs": identity["samples"]},
        "packages": {name: str(sessions[0][name]) for name in ("eddecode", "torch") if name in sessions[0]},
        "metadata": {
            "digest": digest,
            "conditions": list(keys),
            "judges": {j.name: j.identity for j in judges},
        },
        "scorers": [{"name": judge.name, "metadata": {"role": judge.role}} for judge in judges],
    }
    scores = [_score(store, keys, judge.name, samples) for judge in judges] if samples else []
    return {
        "version": 2,
        "status": "success" if store.count() == store.expected() else "cancelled",
        "eval": spec,
        "plan": {"name": "eddecode", "steps": [], "config": {}},
        "results": {"total_samples": samples, "completed_samples": samples, "scores": scores},
        "stats": {"started_at": started, "completed_at": ended, "model_usage": {}},
    }


def _score(store: Store, keys: Sequence[str], judge: str, samples: int) -> dict[str, Any]:
    """One scorer's metrics: the rate of each condition. Intervals are in summary.json."""
    metrics = {}
    for key in keys:
        clusters = store.clusters(key, [judge])
        total = sum(count for _, count in clusters)
        if total:
            rate = sum(flags for flags, _ in clusters) / total
            metrics[key] = {"name": key, "value": rate, "params": {}}
    return {"name": judge, "scorer": judge, "scored_samples": samples, "params": {}, "metrics": metrics}


def _sample(row: dict[str, Any], record: PromptRecord, model: str) -> dict[str, Any]:
    prompt = record.prompt
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    answer = {"role": "assistant", "content": row["text"] or "", "source": "generate"}
    choice = {"message": answer, "stop_reason": _STOPPED.get(row["finish_reason"], "unknown")}
    return {
        "id": f"{row['name']}/{row['prompt_index']}",
        "epoch": row["sample"] + 1,
        "input": prompt,
        "target": "",
        "messages": [*turns, answer],
        "output": {"model": f"eddecode/{model}", "choices": [choice], "completion": row["text"] or ""},
        "scores": {
            judge: {
                "value": int(verdict["flag"]),
                "answer": verdict["label"],
                "explanation": verdict["reason"],
                "metadata": {"score": verdict["score"]},
            }
            for judge, verdict in row["verdicts"].items()
        },
        "metadata": {**{name: row[name] for name in _METADATA}, "prompt": record.meta},
    }


def _id(kind: str, digest: str) -> str:
    """22 characters, the length of Inspect's own ids; the same for the same run."""
    return hashlib.blake2b(f"{kind} {digest}".encode(), digest_size=11).hexdigest()
