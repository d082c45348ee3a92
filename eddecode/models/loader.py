"""From a checkpoint's files to a model, through transformers; adapters and tokenizers have modules of their own.

The files were checked by `eddecode.models.checkpoint`. Refused here is what only the configuration shows: a model that
needs its own code, one that is no causal language model, and numbers that no model can have. After loading, what is in
memory is compared with the files (`loaded_weights`). Weights go from the memory-mapped file directly to their device,
one tensor at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from eddecode.errors import PairError
from eddecode.models import tensor_parallel
from eddecode.models.checkpoint import Checkpoint
from eddecode.models.checkpoint_view import checkpoint_view
from eddecode.models.config_checks import check_layer_count, check_numbers
from eddecode.models.diagnostics import Diagnostic
from eddecode.models.load_config import LoadConfig
from eddecode.models.loaded_weights import compare_with_files, some
from eddecode.models.quantized import check_quantization, quantization_notes
from eddecode.models.rotary import use_long_rope, window_note
from eddecode.models.weight_dtypes import check_dtypes

__all__ = [
    "choose_attention",
    "freeze",
    "load_model",
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
    _check_causal(config, checkpoint.config, checkpoint.where)
    check_dtypes(checkpoint)
    notes = _leftover_notes(checkpoint) + window_note(config, checkpoint.side)
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


def _leftover_notes(checkpoint: Checkpoint) -> list[Diagnostic]:
    """A warning for each file beside the weights that one could take for a part of the model."""
    return [
        Diagnostic(
            "warning",
            checkpoint.side,
            f"{name} lies beside full weights and is not used",
            "The full weights alone are the model. If the release is the adapter, or the shards, put those into a "
            "folder without model.safetensors; else delete the file",
        )
        for name in checkpoint.leftovers()
    ]


def read_config(checkpoint: Checkpoint) -> Any:
    """The configuration of a model with any head; PairError if it needs its own code."""
    raw, where = checkpoint.config, checkpoint.where
    kind = raw.get("model_type")
    check_numbers(raw, where)
    check_numbers(checkpoint.generation, where, "generation_config.json")
    check_layer_count(raw, len(checkpoint.tensors()), where)
    check_quantization(checkpoint)
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
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
        with checkpoint_view(checkpoint) as view:
            config = AutoConfig.from_pretrained(view, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a configuration is validated by its own class, which can raise anything
        raise PairError(f"{where} has a config.json that transformers refuses: {one_line(error)}") from error
    if checkpoint.long_context:
        use_long_rope(config)
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
    named = _architectures(raw)
    what = f"a {config.model_type} ({', '.join(named)})" if named else f"a {config.model_type}"
    if getattr(config, "is_encoder_decoder", False):
        problem = "an encoder-decoder"
    elif type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not _reads_text_and_images(config):
        problem = "not a generative language model"
    elif config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", True):
        problem = "an encoder with bidirectional attention"
    elif named and all(name.endswith(_OTHER_HEADS) for name in named):
        problem = "a model with another head"
    elif (other := _other_family(config, named)) is not None:
        problem = f"config.json contradicts itself (that architecture is of the model_type {other!r})"
    else:
        return
    raise PairError(
        f"{where} is {what}: {problem}, not a causal language model; expected a decoder such as Llama"
    )


def _architectures(raw: dict[str, Any]) -> list[str]:
    named = raw.get("architectures")
    return [str(name) for name in named] if isinstance(named, list) else []


def _other_family(config: Any, named: list[str]) -> str | None:
    """The model_type of the classes that config.json names, where it is another than the one it states."""
    known = [getattr(transformers, name, None) for name in named]
    owners = [owner for kind in known if (owner := getattr(kind, "config_class", None)) is not None]
    family = {type(config), type(config.get_text_config())}
    if not owners or any(
        issubclass(owner, kind) or issubclass(kind, owner) for owner in owners for kind in family
    ):
        return None
    return str(owners[0].model_type)


def _reads_text_and_images(config: Any) -> bool:
    """Whether a model that also reads images is a decoder, and can so be run on text alone."""
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not getattr(
        config, "is_encoder_decoder", False
    )


# Models ----------------------------------------------------------------------------------------------------------


def load_model(checkpoint: Checkpoint, load_config: LoadConfig) -> tuple[Any, list[Diagnostic]]:
    """(the model in eval mode without gradients, notes)."""
    config, notes = read_causal_config(checkpoint)
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    auto_class = AutoModelForCausalLM if causal else AutoModelForImageTextToText
    model, more = load_weights(auto_class, checkpoint, config, load_config, is_whole=True)
    return model, notes + more + quantization_notes(checkpoint, model)


def load_weights(
    auto_class: Any, checkpoint: Checkpoint, config: Any, load_config: LoadConfig, *, is_whole: bool = False
) -> tuple[Any, list[Diagnostic]]:
    """As `load_model`, for a configuration that was read before and any of transformers' auto classes.

    is_whole: whether every tensor of the files must be a part of the model; else those left over are a note.
    """
    arguments = load_config.from_pretrained_arguments()
    try:
        with checkpoint_view(checkpoint, load_config.offload_folder) as view, _quiet_loading():
            model, report = auto_class.from_pretrained(
                view,
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **arguments,
            )
    except Exception as error:  # the loader's errors have no common base class
        raise PairError(f"{checkpoint.where} cannot be loaded: {one_line(error)}") from error
    model.config.name_or_path = str(checkpoint.path)
    notes = _check_report(report, checkpoint, is_whole)
    reported = None if is_whole else frozenset(report.get("unexpected_keys") or ())
    model.file_comparison = compare_with_files(model, checkpoint, reported)
    notes += _rounding_notes(model.file_comparison.rounded, checkpoint, load_config)
    tensor_parallel.check_split(model, checkpoint.where)
    if arguments["device_map"] is None and tensor_parallel.size() == 1:
        model.to(load_config.device)
    return freeze(model), notes


def one_line(error: BaseException) -> str:
    """What an exception of a library says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _rounding_notes(
    rounded: Mapping[str, int], checkpoint: Checkpoint, load_config: LoadConfig
) -> list[Diagnostic]:
    """A note where "auto" rounds the weights, because config.json names a smaller dtype than the files have."""
    lossy = {
        kinds: count for kinds, count in rounded.items() if not kinds.endswith(("→ float32", "→ float64"))
    }
    if load_config.dtype != "auto" or not lossy:
        return []
    listed = ", ".join(f"{count} tensors {kinds}" for kinds, count in lossy.items())
    return [
        Diagnostic(
            "warning",
            checkpoint.side,
            f"the weights are rounded as they are loaded, to the dtype in config.json ({listed})",
            "Set dtype='float32' (--dtype float32) to hold them as they are in the files",
        )
    ]


def freeze(model: Any) -> Any:
    """Eval mode, no gradients, and outputs by name without what nobody reads, whatever config.json says of them."""
    for config in (model.config, model.config.get_text_config()):
        config.return_dict = True
        config.output_attentions = config.output_hidden_states = False
    return model.eval().requires_grad_(False)


def _check_report(report: dict[str, Any], checkpoint: Checkpoint, is_whole: bool) -> list[Diagnostic]:
    """PairError for weights that the files lack or that do not fit; a note for weights that are not used."""
    missing = sorted(report.get("missing_keys") or ())
    if missing:
        raise PairError(
            f"{checkpoint.where} lacks {len(missing)} weights of its architecture, which would be left random: "
            f"{some(missing)}. Fetch it again, or check that config.json belongs to these files"
        )
    wrong = report.get("mismatched_keys") or report.get("conversion_errors") or report.get("error_msgs")
    if wrong:
        raise PairError(
            f"{checkpoint.where} has weights that do not fit its config.json: {sorted(map(str, wrong))[:5]}"
        )
    unused = sorted(report.get("unexpected_keys") or ())
    if not unused:
        return []
    return [
        Diagnostic(
            "info"
            if is_whole
            else "warning",  # of a whole model, `compare_with_files` refuses what is not allowed
            checkpoint.side,
            f"{len(unused)} weights in the files are not part of the model: {some(unused)}",
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
