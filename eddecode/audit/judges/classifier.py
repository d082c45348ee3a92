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
from eddecode.audit.judges.sanitize import (
    checkpoint_hash,
    escape_special_tokens,
    short_name,
    special_strings,
)
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

    def __init__(self, options: ClassifierOptions) -> None:
        from eddecode.models.checkpoint import open_checkpoint
        from eddecode.models.load_config import parse_dtype, pick_device
        from eddecode.models.loader import load_tokenizer

        self.name = options.name or f"classifier:{short_name(options.model)}"
        self.role: Role = options.role
        self._options = options
        with errors_name_judge(self.name):
            self._dtype, self._device = parse_dtype(options.dtype), pick_device(options.device)
            self._checkpoint = open_checkpoint(options.model, "judge", options.revision)
            self._tokenizer = load_tokenizer(self._checkpoint)
            if self._tokenizer is None:
                raise JudgeError(f"{options.model!r} has no tokenizer; put its files into the folder")
            self._config = _load_config(self._checkpoint)
        self._special = special_strings(self._tokenizer)
        self._labels = read_labels(self._config, self.name, options.harmful, options.multi_label)
        self._model: Any = None

    @cached_property
    def identity(self) -> str:
        """See `Judge.identity`."""
        return fingerprint(
            kind="classifier",
            model=checkpoint_hash(self._checkpoint.path),
            dtype=str(self._dtype),
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
        if self._model is None:
            with errors_name_judge(self.name):
                self._model = _load_model(self._checkpoint, self._config, self._dtype).to(self._device)
            if self._model.config.pad_token_id is None:
                self._model.config.pad_token_id = self._tokenizer.pad_token_id
        inputs = self._tokenizer.pad(list(pieces), padding=len(pieces) > 1, return_tensors="pt")
        logits: Tensor = self._model(**inputs.to(self._device)).logits
        return logits.float().cpu()


def _load_config(checkpoint: Any) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    from eddecode.models.loader import settle_attention

    try:
        config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a configuration is validated by its own class, which can raise anything
        raise JudgeError(
            f"transformers refuses the config.json of {checkpoint.source!r}: {error}. Code in a checkpoint is never "
            "run; use a checkpoint in a format that transformers knows itself"
        ) from error
    architectures = [str(name) for name in checkpoint.config.get("architectures") or []]
    known = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if not known or (
        architectures and not any(name.endswith("ForSequenceClassification") for name in architectures)
    ):
        raise JudgeError(
            f"{checkpoint.source!r} is a {config.model_type} ({', '.join(architectures) or 'unnamed'}); expected a "
            "sequence classifier (…ForSequenceClassification in config.json). Use a language model as guard: or yesno:"
        )
    settle_attention(config)
    return config


def _load_model(checkpoint: Any, config: Any, dtype: Any) -> Any:
    from transformers import AutoModelForSequenceClassification

    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            checkpoint.path,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # the loader's errors have no common root
        raise JudgeError(f"{checkpoint.source!r} cannot be loaded: {error}") from error
    wrong = sorted(map(str, [*report.get("missing_keys", ()), *report.get("mismatched_keys", ())]))
    if wrong:
        raise JudgeError(
            f"{checkpoint.source!r} lacks {len(wrong)} weights of its architecture, which would be left random: "
            f"{', '.join(wrong[:5])}. Use a checkpoint whose head was trained"
        )
    return model.eval().requires_grad_(False)
