"""Queries of a run: what statistics, tables and exports read from its store, as SQL.

Kept apart from how completions get in (`store`). A query about a judge is about the active judge of that name. A run
with a minimum length (`min_tokens`) leaves shorter completions out of its harm rates: `clusters` does not count them,
and everything else returns all completions. Queries of one condition are about the prompts of the audit; those of the
benign set are in `flags(benign=True)`, exports and counts alone.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from eddecode.audit.attacks import own_temperature
from eddecode.audit.conditions import Condition, Key, condition_name, temperature_in, template_in
from eddecode.audit.data.prompts import BENIGN_FROM, PromptRecord
from eddecode.errors import StoreError

METRICS = ("length", "perplexity", "distinct_1", "distinct_2", "repetition", "empty", "implied_reward")
_EXPORTED = (
    *("prompt_index", "sample", "text", "text_digest", "token_ids", "finish_reason", "implied_reward"),
    *("base_logprob", "aligned_logprob", "length", "perplexity", "distinct_1", "distinct_2", "repetition"),
    "empty",
)
# Columns of an export that hold numbers with a fraction, which may be infinite.
REALS = (
    *("implied_reward", "base_logprob", "aligned_logprob"),
    *("perplexity", "distinct_1", "distinct_2", "repetition"),
)

ATTACK_NOTE = "attack "  # the notes on what was fitted for attacks are called so, with the attack's name
SHARD_NOTE = "shard"  # the note that says which shard a store holds; a whole run has none
CANARIES = "canaries "  # the notes with results of canary sets are called so, with a number
REASONED = "reasoned "  # and those on the reasoning of completions whose text is not kept
BENCHMARKS = "benchmarks "  # and those with figures of benchmarks so
SKIPPED = "skipped "  # the notes on prompts that were left out are called so, with the prompt's index
_decode = json.JSONDecoder().raw_decode  # of text that begins with a value; made once for millions of rows
_PART = 512  # completions whose verdicts are read together
AUDITED = f"prompt_index < {BENIGN_FROM}"  # in SQL: a prompt of the audit, not of the benign set


def kind_note(name: str, identity: str) -> str:
    """The name of the note that records the kind of a judge."""
    return f"kind of {name}, digest {identity}"


class StoreQueries:
    """Queries of an open run; `Store` adds the connection."""

    def _query(self, statement: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        raise NotImplementedError

    def _row(self, statement: str, values: Sequence[Any] = ()) -> tuple[Any, ...]:
        """The first row of a query that always has one."""
        return next(self._query(statement, values))

    def note(self, name: str) -> Any:
        """What the run records about itself under a name (`identity`: its fingerprint, `digest`, …), or None."""
        rows = list(self._query("SELECT value FROM run WHERE name = ?", (name,)))
        return json.loads(rows[0][0]) if rows else None

    def notes(self) -> dict[str, Any]:
        """Everything that the run records about itself, by name."""
        return {
            name: json.loads(value)
            for name, value in self._query("SELECT name, value FROM run ORDER BY name")
        }

    def sessions(self) -> list[dict[str, Any]]:
        """The sessions of the run: when each started, and in which environment (versions, hardware, digests)."""
        rows = self._query("SELECT id, started, environment FROM session ORDER BY id")
        return [{"id": id_, "started": started, **json.loads(facts)} for id_, started, facts in rows]

    def decoded_in(self) -> list[dict[str, Any]]:
        """The sessions that decoded something, in the form of `sessions`."""
        decoding = {row[0] for row in self._query("SELECT DISTINCT session FROM completion")}
        return [session for session in self.sessions() if session["id"] in decoding]

    def prompts(self) -> list[PromptRecord]:
        """The run's prompts, in order."""
        rows = self._query("SELECT prompt_index, prompt, meta FROM prompt ORDER BY prompt_index")
        return [PromptRecord(index, json.loads(prompt), json.loads(meta)) for index, prompt, meta in rows]

    def audited_prompts(self) -> list[PromptRecord]:
        """The prompts that harm rates are about: without the benign set."""
        return [record for record in self.prompts() if not record.benign]

    def conditions(self) -> list[Condition]:
        """The run's conditions, in the order of its table: aligned, base, ED by α, then the others."""
        rows = self._query(
            "SELECT kind, alpha, system, transform, mitigation, model, name FROM condition ORDER BY position"
        )
        return [
            Condition(
                kind, alpha, system, transform, mitigation, model, temperature_in(name), template_in(name)
            )
            for kind, alpha, system, transform, mitigation, model, name in rows
        ]

    def count(self) -> int:
        """Completions on disk."""
        return int(self._row("SELECT count(*) FROM completion")[0])

    def expected(self) -> int:
        """Completions that the finished run has.

        Raises:
            StoreError: the run was never started, or lacks the digest of its identity.
        """
        fingerprint = self.note("identity")
        if fingerprint is None:
            raise StoreError("the run was not started; start it with eddecode audit")
        if self.note("digest") is None:
            raise StoreError("the run has no digest of its identity: the file is damaged; restore a copy")
        conditions, prompts = self._row(
            "SELECT (SELECT count(*) FROM condition), (SELECT count(*) FROM prompt)"
        )
        return int(conditions) * (int(prompts) - len(self.skipped())) * int(fingerprint["samples"])

    def skipped(self) -> dict[int, str]:
        """Index of a prompt that was left out because it is too long → what it is too long for."""
        return {int(name): str(why) for name, why in self._notes_under(SKIPPED)}

    def judge_id(self, name: str) -> int:
        """The id of the active judge of a name: of several, the one that took over last.

        Raises:
            StoreError: the run has no judge of that name.
        """
        rows = list(
            self._query(
                "SELECT judge FROM sitting WHERE judge IN (SELECT id FROM judge WHERE name = ?)"
                " ORDER BY id DESC LIMIT 1",
                (name,),
            )
        )
        if not rows:
            raise StoreError(
                f"the run has no judge called {name} that has judged every completion; add it with eddecode judge"
            )
        return int(rows[0][0])

    def asked_judge(self) -> str:
        """Name of the judge of harm that the audit asks for; empty where none was chosen yet."""
        judges = (self.note("identity") or {}).get("judges")
        return str(judges[0]).rpartition(", digest ")[0] if judges else ""

    def unjudged_count(self, judge: int) -> int:
        """How many completions have no verdict of the judge with this id."""
        rows = self._query(
            "SELECT (SELECT count(*) FROM completion) - (SELECT count(*) FROM verdict WHERE judge = ?)",
            (judge,),
        )
        return int(next(rows)[0])

    def canary_results(self) -> list[dict[str, Any]]:
        """The results of canary sets, in the order in which they were recorded."""
        return [result for _, result in self._notes_under(CANARIES)]

    def benchmark_results(self) -> list[dict[str, Any]]:
        """Figures of benchmarks, in the order in which they were recorded."""
        return [figure for _, figures in self._notes_under(BENCHMARKS) for figure in figures]

    def reasoned(self) -> Iterator[tuple[str, int, bool, bool]]:
        """(condition's name, prompt index, whether the reasoning ends, whether there is an answer) of completions that
        reason and whose text is not kept."""
        for _, facts in self._notes_under(REASONED):
            yield tuple(facts)

    def _notes_under(self, prefix: str) -> Iterator[tuple[str, Any]]:
        """(rest of the name, value) of the notes whose names begin so, by name."""
        rows = self._query(
            "SELECT name, value FROM run WHERE substr(name, 1, ?) = ? ORDER BY name", (len(prefix), prefix)
        )
        for name, value in rows:
            yield name.removeprefix(prefix), json.loads(value)

    def texts(self, marks: Sequence[str], conditions: Sequence[str] = ()) -> Iterator[tuple[str, int, str]]:
        """(condition's name, prompt index, text) of completions of some conditions, and of those with one mark."""
        wanted = [*("instr(text, ?)" for _ in marks), f"condition IN ({', '.join('?' * len(conditions))})"]
        return self._query(
            "SELECT condition, prompt_index, text FROM completion WHERE text IS NOT NULL"
            f" AND ({' OR '.join(wanted)}) ORDER BY id",
            (*marks, *conditions),
        )

    def places(self) -> Iterator[tuple[int, str, int, int, str]]:
        """(id, condition's name, prompt index, sample, digest of the text) of every completion of an audited prompt."""
        yield from self._query(
            f"SELECT id, condition, prompt_index, sample, text_digest FROM completion WHERE {AUDITED} ORDER BY id"
        )

    def text(self, completion: int) -> str:
        """The text of the completion with this id; empty where none is kept."""
        rows = self._query("SELECT coalesce(text, '') FROM completion WHERE id = ?", (completion,))
        return str(next(rows)[0])

    def min_tokens(self) -> int:
        """Tokens of text below which a completion is left out of harm rates; 0: none is."""
        return int((self.note("identity") or {}).get("min_tokens", 0))

    def clusters(self, key: Key, judges: Sequence[str]) -> list[tuple[int, int]]:
        """(completions flagged by all of the judges, completions) per distinct prompt, of one condition.

        Completions below the run's minimum length are not among them.
        """
        flagged = " AND ".join(
            "EXISTS (SELECT 1 FROM verdict WHERE completion = c.id AND judge = ? AND flag)" for _ in judges
        )
        rows = self._query(
            f"SELECT sum({flagged or 1}), count(*) FROM completion c JOIN prompt USING (prompt_index)"
            f" WHERE condition = ? AND length >= ? AND {AUDITED} GROUP BY digest ORDER BY min(prompt_index)",
            (*map(self.judge_id, judges), condition_name(key), self.min_tokens()),
        )
        return [(int(flags), int(total)) for flags, total in rows]

    def flags(
        self, key: Key, judges: Sequence[str], *, benign: bool = False
    ) -> Iterator[tuple[str, int, int, tuple[bool | None, ...]]]:
        """(prompt digest, prompt index, sample, a flag per judge) of one condition, by prompt and sample.

        benign: of the benign set, in the place of the audit's prompts. A flag is None where that judge has not judged
        the completion.
        """
        columns = ", ".join(
            "(SELECT flag FROM verdict WHERE completion = c.id AND judge = ?)" for _ in judges
        )
        rows = self._query(
            f"SELECT digest, prompt_index, sample{', ' if columns else ''}{columns} FROM completion c"
            f" JOIN prompt USING (prompt_index) WHERE condition = ? AND ({AUDITED}) = ? ORDER BY prompt_index, sample",
            (*map(self.judge_id, judges), condition_name(key), not benign),
        )
        for digest, index, sample, *flags in rows:
            yield digest, index, sample, tuple(None if flag is None else bool(flag) for flag in flags)

    def records(self, key: Key, judges: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """What statistics need of each completion of one condition, by prompt and sample.

        Args:
            key: of the condition.
            judges: names, one at least.

        Returns:
            Tuples of prompt index, sample, tokens, finish reason, `METRICS`, the first judge's score, a flag per judge;
            None where there is no value or no verdict.
        """
        others = "".join(
            ", (SELECT flag FROM verdict WHERE completion = c.id AND judge = ?)" for _ in judges[1:]
        )
        ids = [self.judge_id(name) for name in judges]
        return self._query(
            f"SELECT prompt_index, sample, tokens, finish_reason, {', '.join(METRICS)}, v.score, v.flag{others}"
            " FROM completion c LEFT JOIN verdict v ON v.completion = c.id AND v.judge = ?"
            f" WHERE condition = ? AND {AUDITED} ORDER BY prompt_index, sample",
            (*ids[1:], ids[0], condition_name(key)),
        )

    def rewards(self, key: Key) -> Iterator[array[float]]:
        """log p_aligned − log p_base per token, nats, float32, of each completion of one condition that has it."""
        rows = self._query(
            f"SELECT rewards FROM completion WHERE condition = ? AND rewards IS NOT NULL AND {AUDITED}"
            " ORDER BY prompt_index, sample",
            (condition_name(key),),
        )
        for (packed,) in rows:
            values = array("f", packed)
            if array("H", [1]).tobytes() != b"\1\0":  # stored little-endian
                values.byteswap()
            yield values

    def rows(self, keys: Sequence[Key]) -> Iterator[dict[str, Any]]:
        """Completions with their verdicts, condition by condition in the order given, then by prompt and sample.

        `temperature` is the number that was sampled with; `system`, `transform` and `template` are names, empty for the
        run's own. A replaced judge is `name#identity` in `verdicts`.
        """
        for shared, own in self.rows_by_condition(keys):
            for row in own:
                yield {**shared, **row}

    def rows_by_condition(
        self, keys: Sequence[Key]
    ) -> Iterator[tuple[dict[str, Any], Iterator[dict[str, Any]]]]:
        """As `rows`: per condition what all of its rows share, and the rest of each row, from `prompt_index` on."""
        conditions, active = {condition.key: condition for condition in self.conditions()}, self._active()
        own = float(self.note("identity")["temperature"])
        for key in map(condition_name, keys):
            c = conditions[key]
            changed = own_temperature(c)
            sampled = own if changed is None else changed
            shared = {
                **{"condition": c.kind, "attack": c.attack, "alpha": c.alpha, "name": c.name},
                "system": c.system,
                **{
                    "transform": c.transform,
                    "template": c.template,
                    "mitigation": c.mitigation,
                    "model": c.model,
                },
                "temperature": float(c.temperature) if c.temperature else sampled,
            }
            yield shared, self._own_rows(key, active)

    def _own_rows(self, key: str, active: dict[str, int]) -> Iterator[dict[str, Any]]:
        rows = self._query(
            f"SELECT id, {', '.join(_EXPORTED)} FROM completion WHERE condition = ? ORDER BY prompt_index, sample",
            (key,),
        )
        while part := list(islice(rows, _PART)):
            verdicts = self._verdicts([row[0] for row in part], active)
            for id_, *values in part:
                row = dict(zip(_EXPORTED, values, strict=True))
                row["token_ids"] = None if row["token_ids"] is None else _decode(row["token_ids"])[0]
                row["empty"] = bool(row["empty"])
                row["verdicts"] = verdicts[id_]
                yield row

    def _verdicts(
        self, completions: Sequence[int], active: dict[str, int]
    ) -> dict[int, dict[str, dict[str, Any]]]:
        """Completion's id → its verdicts by the judge's name."""
        found: dict[int, dict[str, dict[str, Any]]] = {completion: {} for completion in completions}
        judges = self._query("SELECT id, name, identity FROM judge ORDER BY name, id")
        marks = ", ".join("?" * len(completions))
        for judge, name, identity in judges:
            shown = name if active.get(name) == judge else f"{name}#{identity}"
            rows = self._query(
                "SELECT completion, score, flag, label, reason FROM verdict"
                f" WHERE completion IN ({marks}) AND judge = ?",
                (*completions, judge),
            )
            for completion, score, flag, label, reason in rows:
                found[completion][shown] = {
                    "score": score,
                    "flag": bool(flag),
                    "label": label,
                    "reason": reason,
                }
        return found

    def _active(self) -> dict[str, int]:
        """name → id of the active judge of that name."""
        rows = self._query("SELECT name, j.id FROM sitting s JOIN judge j ON j.id = s.judge ORDER BY s.id")
        return {name: int(id_) for name, id_ in rows}
