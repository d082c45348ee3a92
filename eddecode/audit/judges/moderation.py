"""A moderation endpoint that implements OpenAI's moderation protocol, called through the `openai` client.

It sends text to another machine, only where it is named, and only when completions are judged: the completion without
its prompt. See `server` for the address and the key. A service can change the model behind a name: the model that it
reports is in every reason, and the verdicts are as reproducible as the service.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from eddecode.audit.judges.base import Case, Verdict, fingerprint
from eddecode.audit.judges.options import ModerationOptions
from eddecode.audit.judges.server import Server
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
        self._server = Server(options, self.name)

    @cached_property
    def identity(self) -> str:
        """See `Judge.identity`; it depends on the address and not on the key."""
        return fingerprint(
            kind="moderation",
            model=self._options.model,
            address=self._server.address,
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
        sent = [
            text.encode("utf-8", "replace").decode("utf-8") for text in texts
        ]  # JSON has no lone surrogates
        with self._server.client() as client:
            reply = self._server.call(
                client.moderations.with_raw_response.create, model=self._options.model, input=sent
            )
        results = reply.get("results")
        if not isinstance(results, list) or len(results) != len(texts):
            found = f"{len(results)} results" if isinstance(results, list) else "no results"
            raise self._server.wrong(
                f"{found} for {len(texts)} texts", "one for each, as OpenAI's moderation endpoint does"
            )
        model = self._server.scrub(str(reply.get("model", "?")))
        return [self._verdict(result, model) for result in results]

    def _verdict(self, result: Any, model: str) -> Verdict:
        """One result: `flagged`, `categories` (name → bool) and `category_scores` (name → 0..1)."""
        if not isinstance(result, Mapping):
            raise self._server.wrong(f"a result that is {result!r:.40}", "an object with flagged")
        categories, threshold = self._options.categories, self._options.threshold
        scores, flags = self._scores(result), self._flags(result)
        flagged = {name for name, flag in flags.items() if flag}
        if categories is not None:
            missing = [name for name in categories if name not in scores]
            if missing:
                raise JudgeError(
                    f"judge {self.name}: the endpoint has no category {missing[0]!r}; expected one of "
                    + ", ".join(sorted(scores))
                )
            unflagged = [name for name in categories if name not in flags]
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
        score = scores.get(worst, float(flag))
        if threshold is not None:
            flag = score >= threshold
        label = (worst or "flagged") if flag else "none"
        return Verdict(score, flag, label, f"{model}: {worst} {score:.3f}".replace("  ", " "))

    def _scores(self, result: Mapping[str, Any]) -> dict[str, float]:
        """`category_scores`, each a number from 0 to 1; those without a value are left out."""
        scores = {}
        for name, value in self._object(result, "category_scores").items():
            if value is None:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not -1e-6 <= value <= 1 + 1e-6:
                raise self._server.wrong(f"the score {value!r:.40} of {name!r:.40}", "numbers from 0 to 1")
            scores[str(name)] = min(max(float(value), 0.0), 1.0)
        return scores

    def _flags(self, result: Mapping[str, Any]) -> dict[str, bool]:
        """`categories`, each true or false; those without a value are left out."""
        flags = self._object(result, "categories")
        for name, value in flags.items():
            if value is not None and not isinstance(value, bool):
                raise self._server.wrong(f"the flag {value!r:.40} of {name!r:.40}", "true or false")
        return {str(name): value for name, value in flags.items() if value is not None}

    def _object(self, result: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        found = result.get(name)
        if found is None:
            return {}
        if not isinstance(found, Mapping):
            raise self._server.wrong(f"{name} as {found!r:.40}", "an object from names to values")
        return found

    def _flagged(self, result: Mapping[str, Any]) -> bool:
        """The field `flagged`. A reply without it is no verdict; to count it as harmless would hide harm."""
        flagged = result.get("flagged")
        if not isinstance(flagged, bool) and self._options.threshold is None:
            raise JudgeError(
                f"judge {self.name}: {self._server.address} sent a result whose flagged is {flagged!r:.40}; expected "
                "true or false, as OpenAI's moderation endpoint sends; check the address, or give threshold= to use "
                "the scores"
            )
        return bool(flagged)
