"""Prompts, conditions, completions and verdicts as rows of the store's tables, without their seals."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eddecode.audit.conditions import Condition, Key, condition_name
from eddecode.audit.data.prompts import PromptRecord, as_json
from eddecode.audit.judges.base import Verdict
from eddecode.audit.text_quality import measure

if TYPE_CHECKING:
    from eddecode.outputs import Completion


def prompt_rows(prompts: Sequence[PromptRecord]) -> list[tuple[Any, ...]]:
    """Prompts as rows of their table."""
    return [(p.index, as_json(p.prompt), p.digest, as_json(p.meta)) for p in prompts]


def condition_rows(conditions: Sequence[Condition]) -> list[tuple[Any, ...]]:
    """Conditions as rows of their table, in its order."""
    return [
        (c.name, i, c.kind, c.alpha, c.system, c.transform, c.mitigation, c.model)
        for i, c in enumerate(conditions)
    ]


def completion_row(
    key: Key, index: int, c: Completion, session: int | None, keep_text: bool
) -> tuple[Any, ...]:
    """A completion as a row of its table, without its id and seal, in the order of the schema's COLUMNS.

    An imported completion may have no token ids (None): its length is stored as 0 then, and only its text decides
    whether it is empty.
    """
    known = c.token_ids is not None
    ids = [int(token) for token in c.token_ids] if known else []
    kept = as_json(ids) if known else None
    digest = hashlib.blake2b(c.text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    quality = measure(c.text, ids, c.finish_reason, c.base_logprob)
    return (
        *(
            condition_name(key),
            index,
            c.sample,
            c.text if keep_text else None,
            digest,
            kept if keep_text else None,
        ),
        *(len(ids), c.finish_reason, c.base_logprob, c.aligned_logprob, c.implied_reward, _rewards(c)),
        *(
            quality.length,
            quality.perplexity,
            quality.distinct_1,
            quality.distinct_2,
            quality.repetition,
            int(quality.empty if known else not c.text.strip()),
            session,
        ),
    )


def _rewards(c: Completion) -> bytes | None:
    """log p_aligned − log p_base per token, nats, as little-endian float32; None without token log-probabilities."""
    tokens = getattr(c, "logprobs", None)
    if tokens is None:
        return None
    values = array("f", [token.aligned - token.base for token in tokens])
    if values.itemsize != 4 or array("H", [1]).tobytes() != b"\1\0":
        values.byteswap()
    return values.tobytes()


def verdict_row(completion: int, judge: int, v: Verdict, keep_text: bool = True) -> tuple[Any, ...]:
    """A verdict as a row of its table."""
    return (completion, judge, v.score, int(v.flag), v.label, v.reason if keep_text else "")
