"""The tokenizer of the toy language, trained once for all tests of a process."""

from __future__ import annotations

from functools import cache

from transformers import PreTrainedTokenizerFast

from eddecode.experiments.tokenizer import train_tokenizer


@cache
def toy_tokenizer() -> PreTrainedTokenizerFast:
    """That of `train_tokenizer()`. Shared: do not change it."""
    return train_tokenizer()
