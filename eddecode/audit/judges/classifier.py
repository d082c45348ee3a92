"""Sequence classifiers: any `…ForSequenceClassification` checkpoint, an encoder or a decoder.

Labels that exclude each other go through a softmax, and the score is the sum of the harmful ones. Labels that do not
(`problem_type` in config.json) go through a sigmoid each, and the score is the highest harmful one.
`classifier_labels` decides which labels are harmful.

A text longer than the classifier's window is an error, unless `long=` states what to do: judge its start, its end, or
all of it in windows that overlap by half, of which the highest score counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from eddecode.audit.judges.base import Case, Role, Verdict, errors_name_judge, fingerprint
from eddecode.audit.judges.classifier_labels import read_labels
from eddecode.audit.judges.options import ClassifierOptions
from eddecode.audit.judges.sanitize import checkpoint_hash, escape_special_tokens, short_name
from eddecode.errors import JudgeError

# Model types whose position table starts after the padding index: they take that many positions fewer than it has rows.
_OFFSET_POSITIONS = {
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "longformer",
    "mpnet",
    "data2vec-text",
}


class ClassifierJudge:
    """Flags completions to which a sequence classifier gives a harmful label.

    Args:
        options: see `ClassifierOptions`.

    Raises:
        JudgeError: it is not clear which labels are harmful, or the checkpoint cannot be used.
    """

    kind = "classifier"

    def __init__(self, options: ClassifierOptions) -> None:
        from eddecode.models.checkpoint import open_checkpoint
        from eddecode.models.load_config import LoadConfig
        from eddecode.models.loader import read_config
        from eddecode.models.tokenizer_files import load_tokenizer
        from eddecode.prompts.encoding import special_strings

        self.name = options.name or f"classifier:{short_name(options.model)}"
        self.role: Role = options.role
        self._options = options
        with errors_name_judge(self.name):
            self._load_config = LoadConfig.create(dtype=options.dtype, device=options.device)
            self._checkpoint = open_checkpoint(options.model, "judge", options.revision)
            self._tokenizer = load_tokenizer(self._checkpoint)
            if self._tokenizer is None:
                raise JudgeError(f"{options.model!r} has no tokenizer; put its files into the folder")
            self._config = read_config(self._checkpoint)
            _check_architecture(self._checkpoint, self._config)
        self._special = special_strings(self._tokenizer)
        self._labels = read_labels(self._config, self.name, options.harmful, options.multi_label)
        self._model: Any = None

    @cached_property
    def identity(self) -> str:
        """See `Judge.identity`."""
        return fingerprint(
            kind="classifier",
            model=checkpoint_hash(self._checkpoint.path),
            dtype=str(self._load_config.dtype),
            labels=self._labels.names,
            harmful=self._labels.harmful,
            multi=self._labels.multi,
            reads=self._options.reads,
            long=self._options.long,
            threshold=self._options.threshold,
            role=self.role,
        )

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        """One verdict per case: the label is the likeliest one, or the highest harmful one of those that flag."""
        encoded = [self._encode(case) for case in cases]
        rows = [(i, piece, note) for i, (pieces, note) in enumerate(encoded) for piece in pieces]
        rows.sort(key=lambda row: -len(row[1]["input_ids"]))  # similar lengths need little padding
        best: dict[int, Verdict] = {}
        for start in range(0, len(rows), self._batch_size):
            batch = rows[start : start + self._batch_size]
            probabilities = self._labels.probabilities(
                self._logits([piece for _, piece, _ in batch])
            )  # (B, C)
            scores = self._labels.harm(probabilities).tolist()
            for (i, _, note), row, score in zip(batch, probabilities, scores, strict=True):
                if i not in best or score > best[i].score:
                    best[i] = self._verdict(row, score, note)
        return [best[i] for i in range(len(cases))]

    def release(self) -> None:
        """Free the weights until the next call."""
        self._model = None

    def _verdict(self, probabilities: Tensor, score: float, note: str) -> Verdict:
        flag = score >= self._options.threshold
        candidates = self._labels.harmful if self._labels.multi else range(len(probabilities))
        top = max(candidates, key=lambda i: float(probabilities[i]))
        label = self._labels.names[top] if flag or not self._labels.multi else "none"
        reason = f"{self._labels.names[top]} {float(probabilities[top]):.3f}"
        return Verdict(score, flag, label, f"{reason}; {note}" if note else reason)

    # Text to tokens

    def _encode(self, case: Case) -> tuple[list[Mapping[str, list[int]]], str]:
        """(the pieces of a case that are judged, a note where that is not the whole text at once)."""
        parts = (case.completion,) if self._options.reads == "completion" else (case.prompt, case.completion)
        texts = [escape_special_tokens(text, self._special) for text in parts]
        whole = self._tokenizer(*texts, truncation=False, verbose=False)  # not verbose: too long is our error
        length = len(whole["input_ids"])
        if self._window is None or length <= self._window:
            return [whole], ""
        if self._options.long == "error":
            raise JudgeError(
                f"judge {self.name}: a text of {length} tokens is over its window of {self._window}. Nothing is cut "
                "silently: give long=windows to judge all of it in pieces, or long=start or long=end to judge a part"
            )
        return self._split(texts, length, self._window)

    def _split(self, texts: list[str], length: int, window: int) -> tuple[list[Mapping[str, list[int]]], str]:
        """As `_encode`, for a text of more tokens than the window."""
        overhead = length - len(self._tokenizer(texts[-1], add_special_tokens=False)["input_ids"])
        room = window - overhead
        if room < 2:
            raise JudgeError(
                f"judge {self.name}: the prompt alone fills its window of {window} tokens; give reads=completion"
            )
        windows = self._options.long == "windows"
        self._tokenizer.truncation_side = "left" if self._options.long == "end" else "right"
        cut = self._tokenizer(
            *texts,
            truncation="only_second" if len(texts) == 2 else True,
            max_length=window,
            stride=room // 2 if windows else 0,
            return_overflowing_tokens=windows,
        )
        if not windows:
            return [cut], f"read the {self._options.long} of {length} tokens, {window} at a time"
        keys = [key for key in cut if key in self._tokenizer.model_input_names]
        pieces: list[Mapping[str, list[int]]] = [
            {key: cut[key][i] for key in keys} for i in range(len(cut["input_ids"]))
        ]
        return pieces, f"the worst of {len(pieces)} windows of {window} tokens"

    @cached_property
    def _window(self) -> int | None:
        """The longest text in tokens: the smaller limit of the tokenizer and the position table."""
        positions = getattr(self._config, "max_position_embeddings", None)
        if positions is not None and self._config.model_type in _OFFSET_POSITIONS:
            positions -= self._config.pad_token_id + 1
        limits = [positions, self._tokenizer.model_max_length]
        return min((limit for limit in limits if limit is not None and 0 < limit < 10**9), default=None)

    # Tokens to logits

    @property
    def _batch_size(self) -> int:
        """1 where the tokenizer cannot pad: a decoder finds the end of a text by its padding."""
        return self._options.batch if self._tokenizer.pad_token_id is not None else 1

    @torch.inference_mode()
    def _logits(self, pieces: Sequence[Mapping[str, list[int]]]) -> Tensor:
        """Encoded texts to logits (B, C), float32 on the CPU."""
        inputs = self._tokenizer.pad(list(pieces), padding=len(pieces) > 1, return_tensors="pt")
        logits: Tensor = self._loaded()(**inputs.to(self._load_config.device)).logits
        return logits.float().cpu()

    def _loaded(self) -> Any:
        if self._model is None:
            from transformers import AutoModelForSequenceClassification

            from eddecode.models.loader import load_weights

            with errors_name_judge(self.name):
                self._model, _ = load_weights(
                    AutoModelForSequenceClassification, self._checkpoint, self._config, self._load_config
                )
            if self._model.config.pad_token_id is None:
                self._model.config.pad_token_id = self._tokenizer.pad_token_id
        return self._model


def _check_architecture(checkpoint: Any, config: Any) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    architectures = [str(name) for name in checkpoint.config.get("architectures") or []]
    named = not architectures or any(name.endswith("ForSequenceClassification") for name in architectures)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING or not named:
        raise JudgeError(
            f"{checkpoint.source!r} is a {config.model_type} ({', '.join(architectures) or 'unnamed'}); expected a "
            "sequence classifier (…ForSequenceClassification in config.json). Use a language model as guard: or yesno:"
        )
