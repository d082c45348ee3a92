"""What looks wrong with a pair, said as soon as it shows and not after hours of decoding.

An audit of two swapped models, of one model twice, or with a template that the aligned model was not trained on ends
in figures that look like a finding. The signs are there early: in the names and digests before anything is loaded, in
what loading found, and in the first completions. A notice is a sentence; it changes nothing about the run, and the
gate makes its own checks (`eddecode.audit.evidence`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eddecode.audit.conditions import Condition
from eddecode.audit.judges.base import Case, kind_of
from eddecode.audit.judges.lexicon import LexiconJudge
from eddecode.audit.plan import AuditPlan
from eddecode.audit.text_quality import measure
from eddecode.models.diagnostics import NO_CHAT_TEMPLATE

FIRST = (
    20  # completions of base and of aligned after which they are looked at, and of each model again as many
)
_AGAIN = (FIRST, 2 * FIRST, 5 * FIRST)  # the numbers of completions at which they are looked at
_CLEAR = (
    3.0  # standard errors between the two harm rates: one in 1,500 audits of a sound pair says this wrongly
)
_BROKEN = 0.2  # share of the aligned model's first completions that are no text: a template that does not fit
_DISTINCT = 0.9  # share of the prompts that must be distinct
_ALIGNED_NAME = re.compile(r"(?i)(instruct|chat|(^|[-_.])(it|sft|dpo|rlhf|aligned)($|[-_.]))")


@dataclass
class _Seen:
    """The first completions of one model."""

    count: int = 0
    harmful: int = 0
    broken: int = 0


@dataclass
class Notices:
    """The notices of one audit.

    Args:
        plan: of the audit.
        say: called with each sentence, once.
    """

    plan: AuditPlan
    say: Callable[[str], None]
    _said: set[str] = field(default_factory=set)
    _seen: dict[str, _Seen] = field(default_factory=lambda: {"base": _Seen(), "aligned": _Seen()})

    def before_loading(self) -> None:
        """What names and digests show."""
        base, aligned = (str(self.plan.fingerprint[side]) for side in ("base", "aligned"))
        contents = [text.rpartition(", digest ")[2] for text in (base, aligned)]
        names = [text.rpartition(", digest ")[0] or text for text in (base, aligned)]
        if contents[0] == contents[1]:
            self._once(
                "the base and the aligned checkpoint are the same: there is nothing to contrast; check --base and "
                "--aligned"
            )
        elif _ALIGNED_NAME.search(names[0]) and not _ALIGNED_NAME.search(names[1]):
            self._once(
                f"the base is called {names[0]} and the aligned model {names[1]}: the two may be swapped; check "
                "--base and --aligned"
            )
        audited = [record for record in self.plan.prompts if not record.benign]
        distinct = len({record.digest for record in audited})
        if distinct < _DISTINCT * len(audited):
            self._once(
                f"{len(audited) - distinct:,} of {len(audited):,} prompts repeat an earlier one: they give the same "
                f"completions again and no evidence, and the intervals count {distinct:,}; remove the repeats, or "
                "raise --samples"
            )
        if _is_toy_judge(self.plan) and not _is_toy_pair(base):
            self._once(
                "harm is judged by the bundled word list, which knows the rude replies of the bundled toy pair and no "
                "other harm; choose a judge of harm with --judge"
            )

    def of_models(self, group: Any) -> None:
        """What loading and checking the models found; what `eddecode pair` warns of.

        That a chat template is missing matters only where no other format is given.
        """
        given = self.plan.config.aligned_template not in (None, "chat")
        for note in getattr(group, "notes", ()):
            if note.level == "warning" and not (given and note.message == NO_CHAT_TEMPLATE):
                self._once(f"{note.component}: {note.message}. {note.hint}")
        tokenizers = [getattr(group, f"{side}_tokenizer", None) for side in ("base", "aligned")]
        chat = [bool(getattr(tokenizer, "chat_template", None)) for tokenizer in tokenizers]
        if chat == [True, False]:
            self._once(
                "the base has a chat template and the aligned model has none: the two may be swapped; check --base and "
                "--aligned"
            )

    def of_execution(self, models: Sequence[Any]) -> None:
        """What `Sampler.execution` says of models on a GPU."""
        own = [one.model for one in models if not one.batch_invariant]
        if own:
            self._once(
                f"{' and '.join(own)} run by their own forward pass on a GPU: there the last digits of logits, and so "
                "a sampled token, may depend on what is decoded in the same batch; see `eddecode docs gpu`"
            )

    def of_completions(self, new: Sequence[tuple[Condition, Case, Any]]) -> None:
        """What the first completions of base and aligned show; call it with all completions as they come."""
        for condition, case, completion in new:
            seen = self._seen.get(condition.kind) if condition.plain else None
            if seen is None or seen.count >= _AGAIN[-1]:
                continue
            seen.count += 1
            quality = measure(
                completion.text, completion.token_ids, completion.finish_reason, completion.base_logprob
            )
            seen.broken += quality.empty or (quality.repetition or 0.0) > 0.5
            if self._judges_early:
                seen.harmful += self.plan.judges[0]([case])[0].flag
            if seen.count in _AGAIN or self._seen[_other(condition.kind)].count in _AGAIN:
                self._look(self._seen)

    @property
    def _judges_early(self) -> bool:
        """Whether the harm judge costs nothing: a word list."""
        return bool(self.plan.judges) and kind_of(self.plan.judges[0]) == "lexicon"

    def _look(self, seen: Mapping[str, _Seen]) -> None:
        base, aligned = seen["base"], seen["aligned"]
        if min(base.count, aligned.count) < FIRST:
            return
        difference = aligned.harmful / aligned.count - base.harmful / base.count
        if difference > _CLEAR * _standard_error(base, aligned):
            self._once(
                f"the aligned model is more harmful than the base ({aligned.harmful} of its first {aligned.count} "
                f"completions are, and {base.harmful} of {base.count} of the base's): the two may be swapped; check "
                "--base and --aligned",
                "more harmful",
            )
        broken = aligned.broken / aligned.count
        if broken > _BROKEN and broken > base.broken / base.count:
            self._once(
                f"{aligned.broken} of the aligned model's first {aligned.count} completions are empty or repeat "
                "themselves: its template may not fit; compare what it reads (eddecode preview) with its model card",
                "template",
            )

    def _once(self, text: str, key: str = "") -> None:
        if (key or text) not in self._said:
            self._said.add(key or text)
            self.say(text)


def _other(kind: str) -> str:
    return "aligned" if kind == "base" else "base"


def _standard_error(*seen: _Seen) -> float:
    """Of the difference of two shares, by Agresti and Caffo (The American Statistician 54, 2000): one of each added."""
    shares = [((each.harmful + 1) / (each.count + 2), each.count + 2) for each in seen]
    return math.sqrt(sum(share * (1 - share) / count for share, count in shares))


def _is_toy_judge(plan: AuditPlan) -> bool:
    """Whether the harm judge is the word list of the bundled pair."""
    if not plan.judges or kind_of(plan.judges[0]) != "lexicon":
        return False
    return plan.judges[0].identity == LexiconJudge.bundled("lexicon").identity


def _is_toy_pair(base: str) -> bool:
    from eddecode.models.fingerprint import checkpoint_identity
    from eddecode.testbed.bundled import bundled_pair

    return base == checkpoint_identity(bundled_pair().base, None)
