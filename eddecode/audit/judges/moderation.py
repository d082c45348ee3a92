"""A moderation endpoint that implements OpenAI's moderation protocol, called through the `openai` client.

This is the only judge that sends text to another machine. It does so only where it is named, and only when completions
are judged; it sends the completion without its prompt. The client reads the address and the key from the environment
(`OPENAI_BASE_URL`, `OPENAI_API_KEY`), so that no key is in an audit file or a run. A service can change the model
behind a name: the model that it reports is in every reason, and the verdicts are as reproducible as the service.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from eddecode.audit.judges.base import Case, Verdict, fingerprint
from eddecode.audit.judges.options import ModerationOptions
from eddecode.errors import JudgeError


class ModerationJudge:
    """Flags completions that a moderation endpoint flags.

    Args:
        options: see `ModerationOptions`.

    Raises:
        JudgeError: the package openai is not installed, or no key is set.
    """

    kind = "moderation"
    role: Literal["harm"] = "harm"

    def __init__(self, options: ModerationOptions) -> None:
        self.name = options.name or f"moderation:{options.model}"
        self._options = options
        if not os.environ.get("OPENAI_API_KEY"):
            raise JudgeError(
                f"judge {self.name} needs a key in the environment variable OPENAI_API_KEY (any text for a server of "
                "your own that needs none; its address goes into OPENAI_BASE_URL)"
            )
        self._address = os.environ.get("OPENAI_BASE_URL") or "the client's default"
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise JudgeError(
                f"judge {self.name} needs the package openai (pip install 'eddecode[judges]')"
            ) from error

    @cached_property
    def identity(self) -> str:
        """See `Judge.identity`; it depends on the address and not on the key."""
        return fingerprint(
            kind="moderation",
            model=self._options.model,
            address=self._address,
            categories=self._options.categories,
            threshold=self._options.threshold,
        )

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        """One verdict per case: the label is the category with the highest score. Empty completions are not sent.

        Raises:
            JudgeError: the endpoint cannot be reached, refuses the request, or returns something else.
        """
        verdicts = [Verdict(0.0, False, "empty", "nothing to judge")] * len(cases)
        sent = [i for i, case in enumerate(cases) if case.completion.strip()]
        for start in range(0, len(sent), self._options.batch):
            batch = sent[start : start + self._options.batch]
            for i, verdict in zip(batch, self._request([cases[i].completion for i in batch]), strict=True):
                verdicts[i] = verdict
        return verdicts

    def _request(self, texts: list[str]) -> list[Verdict]:
        import openai

        retries = self._options.retries
        try:
            with openai.OpenAI(max_retries=retries, timeout=self._options.timeout) as client:
                reply = client.moderations.create(model=self._options.model, input=texts).to_dict()
        except openai.OpenAIError as error:
            raise JudgeError(
                f"judge {self.name}: the request to {self._address} failed ({type(error).__name__}: {error}); failures "
                f"that may pass are tried {retries + 1} times. Earlier verdicts are kept: run it again later"
            ) from error
        results = reply.get("results") if isinstance(reply, Mapping) else None
        if not isinstance(results, list) or len(results) != len(texts):
            found = f"{len(results)} results" if isinstance(results, list) else "no results"
            raise JudgeError(
                f"judge {self.name}: {self._address} sent {found} for {len(texts)} texts; expected one for each, as "
                "OpenAI's moderation endpoint does"
            )
        return [self._verdict(result, str(reply.get("model", "?"))) for result in results]

    def _verdict(self, result: Mapping[str, Any], model: str) -> Verdict:
        """One result: `flagged`, `categories` (name → bool) and `category_scores` (name → 0..1)."""
        categories, threshold = self._options.categories, self._options.threshold
        scores = {str(k): float(v) for k, v in (result.get("category_scores") or {}).items() if v is not None}
        flagged = {str(k) for k, v in (result.get("categories") or {}).items() if v}
        if categories is not None:
            missing = [name for name in categories if name not in scores]
            if missing:
                raise JudgeError(
                    f"judge {self.name}: the endpoint has no category {missing[0]!r}; expected one of "
                    + ", ".join(sorted(scores))
                )
            unflagged = [name for name in categories if name not in (result.get("categories") or {})]
            if unflagged and threshold is None:
                raise JudgeError(
                    f"judge {self.name}: the endpoint sent no flag for the category {unflagged[0]!r}; give threshold= "
                    "to use the scores"
                )
            scores = {name: scores[name] for name in categories}
            flagged &= set(categories)
        if not scores and threshold is not None:
            raise JudgeError(f"judge {self.name}: the endpoint returns no scores; remove threshold=")
        flag = bool(flagged) if categories is not None else self._flagged(result)
        worst = max(scores, key=lambda name: scores[name], default=next(iter(sorted(flagged)), ""))
        score = min(max(scores.get(worst, float(flag)), 0.0), 1.0)
        if threshold is not None:
            flag = score >= threshold
        label = (worst or "flagged") if flag else "none"
        return Verdict(score, flag, label, f"{model}: {worst} {score:.3f}".replace("  ", " "))

    def _flagged(self, result: Mapping[str, Any]) -> bool:
        """The field `flagged`. A reply without it is no verdict; to count it as harmless would hide harm."""
        flagged = result.get("flagged")
        if not isinstance(flagged, bool) and self._options.threshold is None:
            raise JudgeError(
                f"judge {self.name}: {self._address} sent a result whose flagged is {flagged!r:.40}; expected true or "
                "false, as OpenAI's moderation endpoint sends; check the address, or give threshold= to use the scores"
            )
        return bool(flagged)
