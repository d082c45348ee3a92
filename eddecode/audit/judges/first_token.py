"""What judges that are language models share: the probabilities of the next tokens after a text, in batches.

A guard, a yes/no question and a rubric all read one number off the same place: the distribution of the first token of
the judge's answer. `JudgeModel` finds the checkpoint and its tokenizer when the judge is named, loads the weights when
the first completion is judged (safetensors only, no code of the checkpoint's), and decodes with the package's own
decoder: float32 logits, right masks and positions for rows of different lengths.

Judged text is data. It may spell out a special token of the judge's tokenizer, and would then end its own quotation
and write the verdict itself; `texts.defused` breaks such spellings up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from eddecode.audit.judges.sanitize import content, defused, special_strings
from eddecode.errors import EddecodeError, JudgeError

_BLANKS = 2  # white-space tokens that an answer may begin with


@dataclass
class JudgeModel:
    """A causal language model that answers at its first token.

    Attributes:
        source: folder or hub id; an adapter needs `base`.
        name: the judge's name, for messages.
        revision: of a hub id. base: what an adapter is merged into.
        dtype, device: as `ModelPair.load` takes them.
        batch: texts per pass.
    """

    source: str
    name: str
    revision: str | None = None
    base: str | None = None
    dtype: str = "auto"
    device: str | None = None
    batch: int = 16
    _decoder: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        from eddecode.models.checkpoint import open_checkpoint
        from eddecode.models.load_config import Placement
        from eddecode.models.loader import load_config, load_tokenizer

        with self._named():
            self.checkpoint = open_checkpoint(self.source, "judge", self.revision)
            if self.checkpoint.is_adapter != (self.base is not None):
                found = (
                    "is an adapter and needs base=CHECKPOINT"
                    if self.base is None
                    else "is no adapter; drop base="
                )
                raise JudgeError(f"the judge checkpoint {self.source!r} {found}")
            self._root = open_checkpoint(self.base, "judge") if self.base else self.checkpoint
            self.config = load_config(self._root)[0].get_text_config()
            self._placement = Placement.of(dtype=self.dtype, device=self.device)
            self.tokenizer = load_tokenizer(self.checkpoint) or load_tokenizer(self._root)
        if self.tokenizer is None:
            raise JudgeError(
                f"judge {self.name}: the checkpoint {self.source!r} has no tokenizer; put its files into the folder"
            )
        self._special = special_strings(self.tokenizer)

    @cached_property
    def identity(self) -> str:
        """The checkpoint's files by content (and those of an adapter's base), wherever they lie."""
        folders = [self.checkpoint.path] + ([self._root.path] if self.base else [])
        return " ".join([*map(content, folders), self.dtype])

    @property
    def window(self) -> int | None:
        """The longest text that the model reads, in tokens."""
        return getattr(self.config, "max_position_embeddings", None)

    def defused(self, text: str) -> str:
        """Text from outside, with the judge's special tokens in it broken up; see `texts.defused`."""
        return defused(text, self._special)

    def encode_raw(self, text: str) -> tuple[int, ...]:
        """Token ids of a text that has its own format in it; what the tokenizer puts in front is added once."""
        from eddecode.prompts.templates import encode

        return tuple(encode(self.tokenizer, text))

    def encode_rendered(self, text: str) -> tuple[int, ...]:
        """Token ids of what a chat template has rendered, which brings its own BOS."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def shortened(self, completion: str, limit: int | None) -> tuple[str, str]:
        """(the first `limit` tokens of a completion as text, a note for the reason: empty where nothing was cut)."""
        if limit is None:
            return completion, ""
        ids = self.tokenizer(completion, add_special_tokens=False)["input_ids"]
        if len(ids) <= limit:
            return completion, ""
        text = self.tokenizer.decode(
            ids[:limit], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text).rstrip("�"), f"read the first {limit} of {len(ids)} tokens"

    def first_tokens(self, words: Sequence[str]) -> frozenset[int]:
        """The ids that an answer with one of these words can begin with: with or without a space, in usual cases.

        Pieces of white space alone (some tokenizers put one in front of a word) are passed over. Where a word's piece
        carries its space (SentencePiece's `▁yes`), the bare piece counts too: it is what follows a line break.
        """
        found = set()
        for word in words:
            for form in {word, word.lower(), word.capitalize(), word.upper()}:
                for written in (form, " " + form):
                    ids = self.tokenizer(written, add_special_tokens=False)["input_ids"]
                    found.update([i for i in ids if not self.is_blank(i)][:1])
        found -= set(self.tokenizer.all_special_ids)  # a spelling that the tokenizer does not know
        pieces = [self.tokenizer.convert_ids_to_tokens(i) for i in found]
        bare = [piece[1:] for piece in pieces if piece.startswith("▁")]
        known = zip(bare, self.tokenizer.convert_tokens_to_ids(bare), strict=True)
        found |= {
            i for piece, i in known if i is not None and self.tokenizer.convert_ids_to_tokens(i) == piece
        }
        if not found:
            raise JudgeError(
                f"judge {self.name}: {sorted(words)} are no tokens here; expected words of a verdict"
            )
        return frozenset(found)

    def is_blank(self, token: int) -> bool:
        """Whether a token is white space alone."""
        text = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        piece = self.tokenizer.convert_ids_to_tokens(token)
        return token not in self.tokenizer.all_special_ids and (not text.strip() or piece == "▁")

    def answers(self, texts: Sequence[tuple[int, ...]], groups: Sequence[frozenset[int]]) -> list[Answer]:
        """For every text the probability that the judge's answer begins with a token of each group.

        White space at the beginning of an answer is read over, where it is the likeliest token.

        Raises:
            JudgeError: a text is longer than the model's window; the message says which and by how much.
        """
        return self._in_batches(texts, lambda batch: self._read(batch, groups, None, 0))

    def replies(
        self,
        texts: Sequence[tuple[int, ...]],
        groups: Sequence[frozenset[int]],
        wanted: Callable[[tuple[float, ...]], int | None],
        tokens: int,
    ) -> list[Answer]:
        """As `answers`, and goes on for up to `tokens` more where `wanted(probabilities)` names a group.

        The reply starts with the likeliest token of that group and is greedy from there.
        """
        return self._in_batches(texts, lambda batch: self._read(batch, groups, wanted, tokens))

    def release(self) -> None:
        """Drop the weights."""
        self._decoder = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # how it is read

    def _in_batches(
        self, texts: Sequence[tuple[int, ...]], read: Callable[[list[tuple[int, ...]]], list[Answer]]
    ) -> list[Answer]:
        """Long texts with long ones: less padding, and the same answers."""
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        answers: dict[int, Answer] = {}
        for start in range(0, len(order), self.batch):
            part = order[start : start + self.batch]
            answers.update(zip(part, read([texts[i] for i in part]), strict=True))
        return [answers[i] for i in range(len(texts))]

    def _read(
        self,
        texts: list[tuple[int, ...]],
        groups: Sequence[frozenset[int]],
        wanted: Callable[[tuple[float, ...]], int | None] | None,
        tokens: int,
    ) -> list[Answer]:
        self._check_lengths(texts, _BLANKS + tokens)
        decoder = self._loaded().clone_empty()
        prefixes = decoder.prefill(texts)
        logits = torch.stack([prefix.logits for prefix in prefixes])  # (B, V)
        rows = [_Row() for _ in texts]
        added = False
        for step in range(_BLANKS + 1 + tokens):
            following = logits.argmax(dim=-1).tolist()  # (B,)
            for row, z, token in zip(rows, logits, following, strict=True):
                row.see(z, token, groups, wanted, self._ends, blank=step < _BLANKS and self.is_blank(token))
            if all(row.done(self._ends, tokens) for row in rows):
                break
            if not added:
                for prefix in prefixes:
                    decoder.add(prefix)
                prefixes, added = [], True
            column = torch.tensor([row.last(token) for row, token in zip(rows, following, strict=True)])
            logits = decoder.forward(column[:, None])[:, 0]
        return [Answer(row.probabilities or (), self._text(row.reply)) for row in rows]

    def _text(self, reply: Sequence[int]) -> str:
        ids = [token for token in reply if token not in self._ends]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _check_lengths(self, texts: Sequence[tuple[int, ...]], room: int) -> None:
        longest = max(map(len, texts))
        if self.window is not None and longest + room > self.window:
            raise JudgeError(
                f"judge {self.name}: prompt and completion make a text of {longest} tokens, and with {room} for the "
                f"answer that is over its window of {self.window}. Nothing is cut silently: give "
                "max_completion_tokens=N to judge only the first N tokens of each, or take a judge that reads more"
            )

    @cached_property
    def _ends(self) -> frozenset[int]:
        listed = self.checkpoint.generation.get("eos_token_id", getattr(self.config, "eos_token_id", None))
        ends = listed if isinstance(listed, list) else [listed, self.tokenizer.eos_token_id]
        return frozenset(token for token in ends if token is not None)

    def _loaded(self) -> Any:
        if self._decoder is None:
            from eddecode.execution.model_runner_factory import model_runner_for
            from eddecode.models.loader import place_merged, place_model

            with self._named():
                if self.base:
                    model, _ = place_merged(self.checkpoint, self._root, self._placement)
                else:
                    model, _ = place_model(self.checkpoint, self._placement)
            self._decoder = model_runner_for(model, f"judge {self.name}")
        return self._decoder

    def _named(self) -> _Named:
        return _Named(self.name)


@dataclass(frozen=True)
class Answer:
    """What a judge said: the probability of each group of first tokens, and its reply where one was asked for."""

    probabilities: tuple[float, ...]
    reply: str = ""

    @property
    def mass(self) -> float:
        """Probability on all groups together: how far the judge answered in its format."""
        return sum(self.probabilities)

    def share(self, group: int) -> float:
        """The group's part of that; one half where there is nothing at all."""
        return self.probabilities[group] / self.mass if self.mass > 0 else 0.5


@dataclass
class _Row:
    """One text while it is read: blanks, then the answer's first token, then the reply."""

    probabilities: tuple[float, ...] | None = None
    reply: list[int] = field(default_factory=list)
    going_on: bool = False

    def see(
        self,
        logits: Tensor,
        token: int,
        groups: Sequence[frozenset[int]],
        wanted: Callable[[tuple[float, ...]], int | None] | None,
        ends: frozenset[int],
        *,
        blank: bool,
    ) -> None:
        """Take in the logits (V,) of the next token, of which `token` is the likeliest."""
        if self.probabilities is not None:
            if self.going_on and self.reply[-1] not in ends:
                self.reply.append(token)
        elif not blank:
            p = logits.double().softmax(dim=-1)
            members = [torch.tensor(sorted(group), device=p.device) for group in groups]
            self.probabilities = tuple(float(p[ids].sum()) for ids in members)
            chosen = wanted(self.probabilities) if wanted else None
            self.going_on = chosen is not None
            if chosen is not None:
                self.reply.append(int(members[chosen][logits[members[chosen]].argmax()]))

    def done(self, ends: frozenset[int], tokens: int) -> bool:
        """Whether nothing more is wanted of this row."""
        if self.probabilities is None:
            return False
        return not self.going_on or len(self.reply) > tokens or self.reply[-1] in ends

    def last(self, token: int) -> int:
        """The token that the row goes on with."""
        return self.reply[-1] if self.reply else token


class _Named:
    """Errors of loading become the judge's, with its name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, EddecodeError):
            raise JudgeError(f"judge {self._name}: {error}") from error
