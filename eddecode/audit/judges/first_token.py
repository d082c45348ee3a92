"""A causal language model as a judge: the probabilities of the first token of its answer.

Guards, yes/no questions and rubrics all use the same quantity: the distribution of the first token that the model
would write after the judge's prompt. `FirstTokenModel` opens the checkpoint and its tokenizer when the judge is built
and loads the weights at the first completion (safetensors only; code in a checkpoint is never run). Each batch of
texts takes one forward pass, padded on the right, with the output head computed in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from eddecode.audit.judges.base import errors_name_judge
from eddecode.audit.judges.options import LanguageModelOptions
from eddecode.audit.judges.sanitize import checkpoint_hash, escape_special_tokens
from eddecode.errors import JudgeError

_MAX_BLANKS = 2  # tokens of white space that may stand before an answer


@dataclass(frozen=True)
class Answer:
    """The distribution of the first token of one answer, over the words that the judge expects.

    Attributes:
        probabilities: per word, the probability that the answer begins with it.
        first_tokens: per word, the likeliest of the tokens that it can begin with.
        input_ids: the text before that token: the judge's prompt and the white space that the answer begins with.
    """

    probabilities: tuple[float, ...]
    first_tokens: tuple[int, ...] = ()
    input_ids: tuple[int, ...] = ()

    @classmethod
    def from_logits(
        cls, logits: Tensor, words: Sequence[frozenset[int]], input_ids: tuple[int, ...]
    ) -> Answer:
        """From the logits (V,) of the next token and, per word, the tokens that it can begin with."""
        p = logits.double().softmax(dim=-1)
        tokens = [torch.tensor(sorted(ids), device=p.device) for ids in words]
        return cls(
            tuple(float(p[ids].sum()) for ids in tokens),
            tuple(int(ids[p[ids].argmax()]) for ids in tokens),
            input_ids,
        )

    @property
    def total_probability(self) -> float:
        """Probability of all words together: near 1 where the model answers in the expected format."""
        return sum(self.probabilities)

    def share(self, word: int) -> float:
        """The part of `total_probability` that one word has; one half where the total is 0."""
        return self.probabilities[word] / self.total_probability if self.total_probability > 0 else 0.5


class FirstTokenModel:
    """A causal language model whose answer is read at its first token.

    Args:
        options: checkpoint, dtype, device and batch size.
        name: the judge's name, for messages.

    Raises:
        JudgeError: a checkpoint that cannot be used, or an adapter without its base.
    """

    def __init__(self, options: LanguageModelOptions, name: str) -> None:
        from eddecode.models.checkpoint import open_checkpoint
        from eddecode.models.load_config import LoadConfig
        from eddecode.models.loader import read_causal_config
        from eddecode.models.tokenizer_files import load_tokenizer

        self.name, self._options = name, options
        with errors_name_judge(name):
            self._checkpoint = open_checkpoint(options.model, "judge", options.revision)
            if self._checkpoint.is_adapter != (options.base is not None):
                problem = (
                    "is no adapter; drop base=" if options.base else "is an adapter and needs base=CHECKPOINT"
                )
                raise JudgeError(f"the judge checkpoint {options.model!r} {problem}")
            self._root = open_checkpoint(options.base, "judge") if options.base else self._checkpoint
            self._config = read_causal_config(self._root)[0].get_text_config()
            self._load_config = LoadConfig.create(dtype=options.dtype, device=options.device)
            self.tokenizer = load_tokenizer(self._checkpoint) or load_tokenizer(self._root)
            if self.tokenizer is None:
                raise JudgeError(
                    f"the checkpoint {options.model!r} has no tokenizer; put its files into the folder"
                )
        from eddecode.prompts.encoding import special_strings

        self._special = special_strings(self.tokenizer)
        self._runner: Any = None

    @cached_property
    def identity(self) -> str:
        """The files of the checkpoint (and of an adapter's base) by their content, and the dtype."""
        folders = [self._checkpoint.path] + ([self._root.path] if self._options.base else [])
        return " ".join([*map(checkpoint_hash, folders), self._options.dtype])

    # Text to tokens

    def escape(self, text: str) -> str:
        """Text from outside, with the special tokens of this tokenizer escaped; see `escape_special_tokens`."""
        return escape_special_tokens(text, self._special)

    def encode_raw(self, text: str) -> tuple[int, ...]:
        """Token ids of a whole prompt; tokens that the tokenizer puts in front of every text are added once."""
        from eddecode.prompts.encoding import encode

        return tuple(encode(self.tokenizer, text))

    def encode_rendered(self, text: str) -> tuple[int, ...]:
        """Token ids of a text that a chat template rendered, which includes its own BOS."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def truncate(self, completion: str, limit: int | None) -> tuple[str, str]:
        """(the first `limit` tokens of a completion as text, a note on what was left out or an empty text)."""
        if limit is None:
            return completion, ""
        ids = self.tokenizer(completion, add_special_tokens=False)["input_ids"]
        if len(ids) <= limit:
            return completion, ""
        text = self.tokenizer.decode(
            ids[:limit], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text).rstrip("�"), f"read the first {limit} of {len(ids)} tokens"

    def first_tokens(self, word: str) -> frozenset[int]:
        """The tokens that an answer with this word can begin with: with or without a space, in the usual cases.

        Tokens of white space alone, which some tokenizers put before a word, are skipped. Where a token includes the
        space before it (SentencePiece's `▁yes`), the token without it counts too: it follows a line break.
        """
        found = set()
        for form in {word, word.lower(), word.capitalize(), word.upper()}:
            for written in (form, " " + form):
                ids = self.tokenizer(written, add_special_tokens=False)["input_ids"]
                found.update([i for i in ids if not self.is_blank(i)][:1])
        found -= set(self.tokenizer.all_special_ids)  # the token for unknown text
        for piece in [self.tokenizer.convert_ids_to_tokens(i) for i in found]:
            if piece.startswith("▁"):
                bare = self.tokenizer.convert_tokens_to_ids(piece[1:])
                if bare is not None and self.tokenizer.convert_ids_to_tokens(bare) == piece[1:]:
                    found.add(bare)
        if not found:
            raise JudgeError(
                f"judge {self.name}: this tokenizer has no token for {word!r}; expected a word of a verdict"
            )
        return frozenset(found)

    def is_blank(self, token: int) -> bool:
        """Whether a token is white space alone."""
        text = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        piece = self.tokenizer.convert_ids_to_tokens(token)
        return token not in self.tokenizer.all_special_ids and (not text.strip() or piece == "▁")

    # Tokens to answers

    def answers(
        self, texts: Sequence[tuple[int, ...]], words: Sequence[frozenset[int]], reply_tokens: int = 0
    ) -> list[Answer]:
        """For every text, how probable it is that the model's answer begins with each word.

        White space at the start of an answer is skipped where it is the likeliest token.

        Args:
            texts: token ids.
            words: per word, the tokens that it can begin with.
            reply_tokens: positions to leave free for `generate_replies`.

        Raises:
            JudgeError: a text is longer than the model's context window.
        """
        self._check_lengths(texts, _MAX_BLANKS + reply_tokens)
        answers: dict[int, Answer] = {}
        pending = dict(enumerate(texts))
        for blanks in range(_MAX_BLANKS + 1):
            continued = {}
            for batch in self._batches(pending):
                prefixes = self._loaded().prefill([pending[i] for i in batch])
                for i, prefix in zip(batch, prefixes, strict=True):
                    likeliest = int(prefix.logits.argmax())
                    if blanks < _MAX_BLANKS and self.is_blank(likeliest):
                        continued[i] = (*pending[i], likeliest)
                    else:
                        answers[i] = Answer.from_logits(prefix.logits, words, pending[i])
            pending = continued
        return [answers[i] for i in range(len(texts))]

    def generate_replies(self, answers: Sequence[Answer], word: int, max_new_tokens: int) -> list[str]:
        """The reply that begins with the likeliest first token of a word, and is greedy from there.

        Args:
            answers: as `answers` returned them.
            word: index of the word.
            max_new_tokens: most tokens after the first one.
        """
        firsts = [answer.first_tokens[word] for answer in answers]
        starts = [(*answer.input_ids, first) for answer, first in zip(answers, firsts, strict=True)]
        replies = self.generate(starts, max_new_tokens, check=False)  # `answers` left room for it
        return [
            str(self.tokenizer.decode([first, *reply], skip_special_tokens=True))
            for first, reply in zip(firsts, replies, strict=True)
        ]

    @torch.inference_mode()
    def generate(
        self, texts: Sequence[tuple[int, ...]], max_new_tokens: int, *, check: bool = True
    ) -> list[list[int]]:
        """The tokens that the model writes after each text, greedily and without the one that ends a reply.

        Args:
            texts: token ids.
            max_new_tokens: most tokens of a reply.
            check: whether to check that text and reply fit into the model's window.

        Raises:
            JudgeError: a text and its reply may be longer than the model's context window.
        """
        if check:
            self._check_lengths(texts, max_new_tokens)
        replies: dict[int, list[int]] = {}
        for batch in self._batches(dict(enumerate(texts))):
            rows = [torch.tensor(texts[i]) for i in batch]
            padding: dict[str, Any] = {"batch_first": True, "padding_side": "left"}
            ids = pad_sequence(rows, **padding).to(self._loaded().device)  # (B, T)
            mask = pad_sequence([torch.ones_like(row) for row in rows], **padding).to(ids.device)
            output = self._loaded().model.generate(ids, attention_mask=mask, max_new_tokens=max_new_tokens)
            for i, row in zip(batch, output[:, ids.shape[1] :].tolist(), strict=True):
                end = next((k for k, token in enumerate(row) if token in self._eos_ids), len(row))
                replies[i] = row[:end]
        return [replies[i] for i in range(len(texts))]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, with special tokens: they tell reasoning from the answer."""
        return str(
            self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    def release(self) -> None:
        """Free the weights."""
        self._runner = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _batches(self, texts: dict[int, tuple[int, ...]]) -> Iterator[list[int]]:
        """The keys of the texts in batches of similar length, which need little padding."""
        order = sorted(texts, key=lambda i: -len(texts[i]))
        for start in range(0, len(order), self._options.batch):
            yield order[start : start + self._options.batch]

    def _check_lengths(self, texts: Sequence[tuple[int, ...]], reserved: int) -> None:
        window = getattr(self._config, "max_position_embeddings", None)
        longest = max(map(len, texts), default=0)
        if window is not None and longest + reserved > window:
            raise JudgeError(
                f"judge {self.name}: prompt and completion make a text of {longest} tokens, and with {reserved} for "
                f"the answer that is over its window of {window}. Nothing is cut silently: give "
                "max_completion_tokens=N to judge only the first N tokens of each, or use a model with a longer window"
            )

    @cached_property
    def _eos_ids(self) -> frozenset[int]:
        listed = self._checkpoint.generation.get("eos_token_id", getattr(self._config, "eos_token_id", None))
        ids = listed if isinstance(listed, list) else [listed, self.tokenizer.eos_token_id]
        return frozenset(token for token in ids if token is not None)

    def _loaded(self) -> Any:
        if self._runner is None:
            from transformers import GenerationConfig

            from eddecode.execution.uncached_runner import UncachedModelRunner
            from eddecode.models.adapters import load_merged_adapter
            from eddecode.models.loader import load_model

            with errors_name_judge(self.name):
                if self._options.base:
                    model, _ = load_merged_adapter(self._checkpoint, self._root, self._load_config)
                else:
                    model, _ = load_model(self._checkpoint, self._load_config)
            # Greedy, whatever sampling settings the checkpoint recommends. Rows that end early are filled with an EOS.
            eos = sorted(self._eos_ids)
            model.generation_config = GenerationConfig(
                do_sample=False, eos_token_id=eos or None, pad_token_id=eos[0] if eos else 0
            )
            self._runner = UncachedModelRunner(model)
        return self._runner
