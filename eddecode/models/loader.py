"""From a checkpoint's files to a model and its tokenizer, through transformers (and peft, for an adapter).

The files were checked by `eddecode.models.checkpoint`. Refused here is what only the configuration shows: a model that
needs its own code, one that is no causal language model, and weights that the checkpoint lacks and that the library
would fill with random numbers. Weights go from the memory-mapped file directly to their device, one tensor at a time.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from eddecode.errors import PairError
from eddecode.models.checkpoint import ADAPTER_WEIGHTS, Checkpoint
from eddecode.models.diagnostics import Diagnostic
from eddecode.models.load_config import LoadConfig, has_package
from eddecode.models.safetensors_header import read_header

__all__ = [
    "choose_attention",
    "freeze",
    "load_merged_adapter",
    "load_model",
    "load_tokenizer",
    "load_weights",
    "read_causal_config",
    "read_config",
    "require_eager_for_softcap",
]

_OTHER_HEADS = (
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForNextSentencePrediction",
    "ForPreTraining",
)


# Configuration ---------------------------------------------------------------------------------------------------


def read_causal_config(checkpoint: Checkpoint) -> tuple[Any, list[Diagnostic]]:
    """(the model's configuration, notes); PairError if it needs its own code or is no causal language model."""
    config = read_config(checkpoint)
    _check_causal(config, checkpoint.config, f"the {checkpoint.side} checkpoint {checkpoint.source!r}")
    notes = []
    if checkpoint.config.get("auto_map"):
        notes.append(
            Diagnostic(
                "info",
                checkpoint.side,
                "the checkpoint contains its own code",
                f"It is ignored; transformers' own {config.model_type} is used",
            )
        )
    return config, notes


def read_config(checkpoint: Checkpoint) -> Any:
    """The configuration of a model with any head; PairError if it needs its own code."""
    raw = checkpoint.config
    where = f"the {checkpoint.side} checkpoint {checkpoint.source!r}"
    kind = raw.get("model_type")
    if kind not in CONFIG_MAPPING:
        if raw.get("auto_map"):
            raise PairError(
                f"{where} needs its own code (auto_map in config.json, model_type {kind!r}); such code is never run. "
                "Use a release in a format that transformers knows itself"
            )
        raise PairError(
            f"{where} has the model_type {kind!r}, which the installed transformers does not know; check config.json, "
            "or upgrade transformers"
        )
    try:
        config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a configuration is validated by its own class, which can raise anything
        raise PairError(f"{where} has a config.json that transformers refuses: {error}") from error
    choose_attention(config)
    return config


def choose_attention(config: Any) -> None:
    """Choose an attention implementation that is installed, takes a 4-D mask, and supports the configuration."""
    # flash-attention takes no 4-D mask, and a name with a slash is code from the hub: reset to transformers' choice.
    if getattr(config, "_attn_implementation", None) not in (None, "eager", "sdpa"):
        config._attn_implementation = None
    require_eager_for_softcap(config)


def require_eager_for_softcap(config: Any) -> None:
    """Set eager attention for a model with soft-capped attention scores (Gemma-2).

    transformers' sdpa has no soft-capping: newer releases refuse it, older ones leave it out without a warning.
    """
    if getattr(config.get_text_config(), "attn_logit_softcapping", None):
        config._attn_implementation = "eager"


def _check_causal(config: Any, raw: dict[str, Any], where: str) -> None:
    named = [str(name) for name in raw.get("architectures") or []]
    what = f"a {config.model_type} ({', '.join(named)})" if named else f"a {config.model_type}"
    if getattr(config, "is_encoder_decoder", False):
        problem = "an encoder-decoder"
    elif type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        problem = "not a generative language model"
    elif config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", True):
        problem = "an encoder with bidirectional attention"
    elif named and all(name.endswith(_OTHER_HEADS) for name in named):
        problem = "a model with another head"
    else:
        return
    raise PairError(
        f"{where} is {what}: {problem}, not a causal language model; expected a decoder such as Llama"
    )


# Models ----------------------------------------------------------------------------------------------------------


def load_model(checkpoint: Checkpoint, load_config: LoadConfig) -> tuple[Any, list[Diagnostic]]:
    """(the model in eval mode without gradients, notes)."""
    config, notes = read_causal_config(checkpoint)
    model, more = load_weights(AutoModelForCausalLM, checkpoint, config, load_config)
    return model, notes + more


def load_weights(
    auto_class: Any, checkpoint: Checkpoint, config: Any, load_config: LoadConfig
) -> tuple[Any, list[Diagnostic]]:
    """As `load_model`, for a configuration that was read before and any of transformers' auto classes."""
    where = f"the {checkpoint.side} checkpoint {checkpoint.source!r}"
    arguments = load_config.from_pretrained_arguments()
    try:
        with _quiet_loading():
            model, report = auto_class.from_pretrained(
                checkpoint.path,
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **arguments,
            )
    except Exception as error:  # the loader's errors have no common base class
        raise PairError(f"{where} cannot be loaded: {error}") from error
    notes = _check_report(report, checkpoint, where)
    if arguments["device_map"] is None:
        model.to(load_config.device)
    return freeze(model), notes


def freeze(model: Any) -> Any:
    """Eval mode, no gradients."""
    return model.eval().requires_grad_(False)


def _check_report(report: dict[str, Any], checkpoint: Checkpoint, where: str) -> list[Diagnostic]:
    """PairError for weights that the files lack; a note for weights that the model does not use."""
    missing = sorted(report.get("missing_keys") or ())
    if missing:
        raise PairError(
            f"{where} lacks {len(missing)} weights of its architecture, which would be left random: "
            f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}. Fetch it again, or check that config.json "
            "belongs to these files"
        )
    wrong = report.get("mismatched_keys") or report.get("conversion_errors") or report.get("error_msgs")
    if wrong:
        raise PairError(f"{where} has weights that do not fit its config.json: {sorted(map(str, wrong))[:5]}")
    unused = sorted(report.get("unexpected_keys") or ())
    if not unused:
        return []
    return [
        Diagnostic(
            "warning",
            checkpoint.side,
            f"{len(unused)} weights in the files are not part of the model: {', '.join(unused[:5])}"
            f"{', …' if len(unused) > 5 else ''}",
            "They are ignored; check that config.json belongs to these files",
        )
    ]


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Suppress transformers' report of a load; `_check_report` replaces it.

    By a filter and not by the logger's level, since a higher level makes the loader print other messages.
    """
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_errors_only)
    try:
        yield
    finally:
        logger.removeFilter(_errors_only)


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


# Adapters --------------------------------------------------------------------------------------------------------


def load_merged_adapter(
    adapter: Checkpoint, base: Checkpoint, load_config: LoadConfig
) -> tuple[Any, list[Diagnostic]]:
    """(a copy of the base with the adapter merged into it, notes); the base itself is not changed."""
    if not has_package("peft"):
        raise PairError(
            f"the aligned checkpoint {adapter.source!r} is an adapter, which needs the package peft "
            "(pip install 'eddecode[adapter]'); or merge it yourself and give the merged checkpoint"
        )
    from peft import PeftModel

    from eddecode.models.lora import low_rank_factors

    where = f"the adapter {adapter.source!r}"
    if adapter.config.get("auto_mapping") is None and adapter.config.get("peft_type") is None:
        raise PairError(
            f"{where} has no peft_type in {adapter.path / 'adapter_config.json'}; expected 'LORA' or a similar method"
        )
    model, notes = load_model(replace(base, side="aligned"), load_config)
    _resize_for(adapter, model)
    try:
        with warnings.catch_warnings():
            # peft only warns when the file lacks a weight, and leaves the layer as it is in the base
            warnings.filterwarnings("error", message=".*missing adapter keys.*")
            wrapped = PeftModel.from_pretrained(model, str(adapter.path), is_trainable=False)
        factors = low_rank_factors(wrapped)
        merged = wrapped.merge_and_unload(safe_merge=True)
        merged.low_rank_factors = factors
    except Exception as error:  # the errors of peft's methods have no common base class
        raise PairError(
            f"{where} (peft_type {adapter.config.get('peft_type')}) cannot be merged into {base.source!r}: {error}. "
            "Check that it was trained on this base; for methods that cannot be merged, give a merged checkpoint"
        ) from error
    return freeze(merged), notes + _adapter_notes(adapter, base, merged.dtype)


def _adapter_notes(adapter: Checkpoint, base: Checkpoint, dtype: Any) -> list[Diagnostic]:
    merged = Diagnostic(
        "info",
        "aligned",
        f"an adapter ({adapter.config.get('peft_type')}), merged into a copy of the base in {dtype}",
        "Nothing to do",
    )
    trained_on = adapter.config.get("base_model_name_or_path")
    if not trained_on or Path(str(trained_on)).name == Path(base.source).name:
        return [merged]
    other_base = Diagnostic(
        "warning",
        "aligned",
        f"the adapter was trained on {trained_on!r} and is merged into {base.source!r}",
        "Check that both are the same checkpoint",
    )
    return [other_base, merged]


def _resize_for(adapter: Checkpoint, model: Any) -> None:
    """Resize the embedding to the rows of the adapter's own, if that was trained with added tokens."""
    header, _ = read_header(adapter.path / ADAPTER_WEIGHTS)
    width = model.get_input_embeddings().weight.shape[0]
    rows = [
        entry["shape"][0]
        for name, entry in header.items()
        if name.endswith(("embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_in.weight"))
    ]
    if rows and max(rows) != width:
        model.resize_token_embeddings(max(rows), mean_resizing=False)


# Tokenizers ------------------------------------------------------------------------------------------------------


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer, or None if it has no tokenizer files."""
    if not checkpoint.has_tokenizer:
        return None
    settings = checkpoint.path / "tokenizer_config.json"
    try:
        raw = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        if raw.get("auto_map") and not (checkpoint.path / "tokenizer.json").is_file():
            raise PairError("it needs its own code (auto_map), which is never run")
        return AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # tokenizer files fail in many ways (format, missing library)
        raise PairError(
            f"the tokenizer of the {checkpoint.side} checkpoint {checkpoint.source!r} cannot be loaded: {error}"
        ) from error
