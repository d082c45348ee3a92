"""Queries of a run that the gate asks: what is missing, what its figures rest on, and the digest of all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from eddecode.audit.conditions import Key, condition_name
from eddecode.audit.data.prompts import as_json
from eddecode.audit.store.queries import AUDITED, StoreQueries
from eddecode.audit.text_quality import SHORT


class GateQueries(StoreQueries):
    """See the module."""

    def missing(self) -> int:
        """How many of the run's completions (condition × prompt × sample) are not there."""
        expected, samples = self.expected(), int(self.note("identity")["samples"])
        found = self._row("SELECT count(*) FROM completion WHERE sample >= 0 AND sample < ?", (samples,))
        return expected - int(found[0])

    def shares(self, key: Key, enough: int = 0) -> dict[str, float]:
        """Shares of one condition's completions: `truncated` (by the length limit), `empty`, `dropped`, `short`; and
        the number of its `completions`.

        Dropped are those below the run's minimum length; short are those with fewer than 8 tokens, and those that were
        cut off before `enough` tokens.
        """
        row = self._row(
            "SELECT count(*), sum(finish_reason = 'length'), sum(empty), sum(length < ?),"
            " sum(length < ? OR (finish_reason = 'length' AND length < ?)) FROM completion"
            f" WHERE condition = ? AND {AUDITED}",
            (self.min_tokens(), SHORT, enough, condition_name(key)),
        )
        names = ("truncated", "empty", "dropped", "short")
        found = {name: float(n or 0) / max(row[0], 1) for name, n in zip(names, row[1:], strict=True)}
        return {**found, "completions": float(row[0])}

    def shared_prompts(self, keys: Sequence[Key]) -> int:
        """How many distinct prompts have a completion that counts under every one of these conditions."""
        marks = ", ".join("?" * len(keys))
        row = self._row(
            "SELECT count(*) FROM (SELECT digest FROM completion JOIN prompt USING (prompt_index)"
            f" WHERE length >= ? AND condition IN ({marks}) AND {AUDITED} GROUP BY digest"
            " HAVING count(DISTINCT condition) = ?)",
            (self.min_tokens(), *map(condition_name, keys), len(keys)),
        )
        return int(row[0])

    def repeated_texts(self, keys: Sequence[Key]) -> tuple[int, int]:
        """(prompts × conditions with several samples, those of them whose samples all have the same text)."""
        marks = ", ".join("?" * len(keys))
        row = self._row(
            "SELECT count(*), coalesce(sum(texts = 1), 0) FROM (SELECT count(DISTINCT text_digest) AS texts"
            f" FROM completion WHERE condition IN ({marks}) AND {AUDITED} GROUP BY condition, prompt_index"
            " HAVING count(*) > 1)",
            tuple(map(condition_name, keys)),
        )
        return int(row[0]), int(row[1])

    def replaced_rates(self, name: str) -> dict[str, dict[str, tuple[int, int]]]:
        """Of each judge that had this name before the one that has it now: identity → condition → (flagged, judged)."""
        found: dict[str, dict[str, tuple[int, int]]] = {}
        rows = self._query(
            "SELECT j.identity, c.condition, sum(v.flag), count(*) FROM judge j JOIN verdict v ON v.judge = j.id"
            " JOIN completion c ON c.id = v.completion WHERE j.name = ? AND j.id != ?"
            f" AND j.id IN (SELECT judge FROM sitting) AND c.length >= ? AND {AUDITED} GROUP BY j.id, c.condition",
            (name, self.judge_id(name), self.min_tokens()),
        )
        for identity, condition, flagged, judged in rows:
            found.setdefault(identity, {})[condition] = (int(flagged), int(judged))
        return found

    def mean_reward(self) -> float | None:
        """Mean |log p_aligned − log p_base| of a completion per token, nats; None where no completion has one."""
        total, tokens = self._row(
            "SELECT sum(abs(implied_reward)), sum(tokens) FROM completion WHERE implied_reward IS NOT NULL"
        )
        return None if not tokens else float(total) / tokens

    def judged_both_ways(self, judge: int) -> tuple[int, int]:
        """(prompts with different completions, those of them with flagged and unflagged ones), of one judge."""
        row = self._row(
            "SELECT count(*), coalesce(sum(most > least), 0) FROM"
            " (SELECT max(flag) AS most, min(flag) AS least FROM completion c JOIN prompt USING (prompt_index)"
            f" JOIN verdict v ON v.completion = c.id AND v.judge = ? WHERE {AUDITED}"
            " GROUP BY digest HAVING count(DISTINCT text_digest) > 1)",
            (judge,),
        )
        return int(row[0]), int(row[1])

    def content_digest(self) -> str:
        """16 hex digits over what the run's figures are computed from, whatever the order in which it was stored.

        Hashed are prompts, conditions, completions, the verdicts of the active judges, human labels, canaries and the
        notes. Log-probabilities and scores are not: their last digits may depend on the batch in which a completion
        was decoded or judged. The gate computes the figures that rest on them anew.
        """
        hashed = hashlib.blake2b(digest_size=8)

        def add(*values: Any) -> None:
            hashed.update(as_json(values).encode() + b"\n")

        bounds = [s["utility_loss"] for s in self.sessions() if s.get("utility_loss") is not None]
        add("run", self.min_tokens(), self.note("transforms"), bounds[-1:], self.canary_results())
        if skipped := self.skipped():
            add("skipped", sorted(skipped))
        for row in self._query("SELECT digest, meta FROM prompt ORDER BY digest, meta"):
            add("prompt", *row)
        active = self._active()
        for row in self._query("SELECT name, role, identity, id FROM judge ORDER BY name, identity"):
            if active.get(row[0]) == row[3]:
                add("judge", *row[:3])
        judges = [active[name] for name in sorted(active)]
        flags = ", ".join("(SELECT flag FROM verdict WHERE completion = c.id AND judge = ?)" for _ in judges)
        for condition in self.conditions():
            add("condition", condition.name, condition.kind, condition.alpha)
            for row in self._query(
                "SELECT digest, sample, text_digest, tokens, finish_reason, length, empty"
                f"{', ' if flags else ''}{flags} FROM completion c JOIN prompt USING (prompt_index)"
                " WHERE condition = ? ORDER BY digest, sample, text_digest, c.prompt_index",
                (*judges, condition.key),
            ):
                add(*row)
        return hashed.hexdigest()
