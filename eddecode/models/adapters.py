"""Adapters (PEFT): merged into a copy of the base, and compared with PEFT's own unmerged forward pass.

Merging is not always what the adapter computes. In a model whose head is its embedding, a low-rank change of one of
them would change both; a weight that was retrained beside the adapter may be lost; and a file may hold more than the
library reads. So the adapter's tensors are compared with its file, the head is given a weight of its own where it
needs one, and the merged model must give the logits of the unmerged one, in float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from eddecode.errors import PairError
from eddecode.models.checkpoint import ADAPTER_WEIGHTS, Checkpoint
from eddecode.models.diagnostics import Diagnostic
from eddecode.models.float32_pass import LOW_PRECISION, float32_logits
from eddecode.models.load_config import LoadConfig, has_package
from eddecode.models.loaded_weights import some
from eddecode.models.loader import freeze, load_model, one_line
from eddecode.models.lora import UnmergedLogits, logit_distance, low_rank_factors
from eddecode.models.safetensors_header import read_header
from eddecode.utils.memory import if_memory_suffices

# Merging rounds every changed weight once more: a few times what the dtype's rounding does to a pass of the base.
_ROUNDINGS = 3.0
_FLOAT32_TOLERANCE = 1e-4  # relative to the size of the logits
_PROBE_LENGTH = 24
_EMBEDDINGS = tuple(
    f"{name}{inner}.weight"
    for name in ("embed_tokens", "lm_head", "wte", "embed_in")
    for inner in ("", ".base_layer")
)


def load_merged_adapter(
    adapter: Checkpoint, base: Checkpoint, load_config: LoadConfig
) -> tuple[Any, list[Diagnostic]]:
    """(a copy of the base with the adapter merged into it, notes); the base itself is not changed.

    Raises:
        PairError: peft is missing; the adapter does not fit the base, or its file holds what peft does not read; or
            the merged model does not give the logits of the unmerged one.
    """
    if not has_package("peft"):
        raise PairError(
            f"the aligned checkpoint {adapter.source!r} is an adapter, which needs the package peft "
            "(pip install 'eddecode[adapter]'); or merge it yourself and give the merged checkpoint"
        )
    if adapter.config.get("auto_mapping") is None and adapter.config.get("peft_type") is None:
        raise PairError(
            f"the adapter {adapter.source!r} has no peft_type in {adapter.path / 'adapter_config.json'}; expected "
            "'LORA' or a similar method"
        )
    model, notes = load_model(replace(base, side="aligned"), load_config)
    _resize_for(adapter, model)
    texts = probe_texts(model, adapter)
    before = if_memory_suffices(lambda: _plain_logits(model, texts))
    with _errors_name_adapter(adapter, base):
        wrapped = _wrapped(model, adapter)
    _compare_with_file(wrapped, adapter)
    expected = if_memory_suffices(lambda: float32_logits(wrapped, texts))
    with _errors_name_adapter(adapter, base):
        factors = low_rank_factors(wrapped)
        _separate_head(model)
        _add_missing_biases(wrapped)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on tied embeddings, which were separated
            merged = wrapped.merge_and_unload(safe_merge=True)
    merged.low_rank_factors = factors
    found = if_memory_suffices(lambda: float32_logits(merged, texts))
    if before is None or expected is None or found is None:
        notes.append(_NOT_COMPARED)
    else:
        unmerged = UnmergedLogits(texts, expected, logit_distance(expected, before.exact))
        merged.unmerged_logits = unmerged
        notes += _check_merged(merged.dtype, found, unmerged, before, adapter)
    return freeze(merged), notes + _adapter_notes(adapter, base, merged.dtype)


_NOT_COMPARED = Diagnostic(
    "warning",
    "aligned",
    "the merged adapter was not compared with peft's own unmerged pass: no memory for a weight in float32",
    "Load it once where there is more memory (device='cpu'), or give a merged checkpoint",
)


def probe_texts(model: Any, adapter: Checkpoint) -> list[list[int]]:
    """Two texts of ids spread over the vocabulary, with those that the adapter trained by themselves."""
    width = int(model.get_input_embeddings().weight.shape[0])
    trained = adapter.config.get("trainable_token_indices") or []
    lists = [each if isinstance(each, list) else [each] for each in _listed(trained)]
    special = [i for each in lists for i in each]
    if not all(isinstance(i, int) and 0 <= i < width for i in special):
        raise PairError(
            f"the adapter {adapter.source!r} has trainable_token_indices = {trained!r}; expected ids of the {width} "
            "embeddings of its base"
        )
    spread = [(width - 1) * i // (_PROBE_LENGTH - 1) for i in range(_PROBE_LENGTH)]
    return [special[:8] + spread, [(7 * i * i + 3 * i + 1) % width for i in range(_PROBE_LENGTH // 2)]]


def _listed(trained: Any) -> list[Any]:
    """The lists of trained ids: one, or one per embedding that has them."""
    return list(trained.values()) if isinstance(trained, Mapping) else [trained]


@contextmanager
def _errors_name_adapter(adapter: Checkpoint, base: Checkpoint) -> Iterator[None]:
    try:
        yield
    except PairError:
        raise
    except Exception as error:  # the errors of peft's methods have no common base class
        raise PairError(
            f"the adapter {adapter.source!r} (peft_type {adapter.config.get('peft_type')}) cannot be merged into "
            f"{base.source!r}: {one_line(error)}. Check that it was trained on this base; for methods that cannot be "
            "merged, give a merged checkpoint"
        ) from error


def _wrapped(model: Any, adapter: Checkpoint) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # peft only warns when the file lacks a weight, and leaves the layer as it is in the base
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        return PeftModel.from_pretrained(model, str(adapter.path), is_trainable=False).eval()


def _compare_with_file(wrapped: Any, adapter: Checkpoint) -> None:
    """PairError unless every tensor of the adapter's file is in memory with its shape and values."""
    from peft import get_peft_model_state_dict

    held = {
        name.replace(".modules_to_save.default", ""): tensor
        for name, tensor in get_peft_model_state_dict(wrapped, save_embedding_layers=True).items()
    }
    held |= {f"base_model.model.{name}": tensor for name, tensor in _embedding_rows(wrapped).items()}
    where = f"the adapter {adapter.source!r}"
    with safe_open(adapter.path / ADAPTER_WEIGHTS, "pt") as file:
        unknown = sorted(name for name in file.keys() if name not in held)  # noqa: SIM118
        if unknown:
            raise PairError(
                f"{where} holds {len(unknown)} tensors that its adapter_config.json does not account for: "
                f"{some(unknown)}; they would be ignored. Fetch the adapter again, or correct target_modules and "
                "modules_to_save"
            )
        for name in file.keys():  # noqa: SIM118
            stored, found = file.get_tensor(name), held[name].detach().cpu()
            if stored.is_floating_point() != found.is_floating_point():
                raise PairError(
                    f"{where}: the tensor {name} holds {stored.dtype} in the file, and peft has {found.dtype} there; "
                    "the file was relabelled or is quantized in an unknown form. Fetch the adapter again"
                )
            if stored.shape != found.shape or not torch.equal(stored.to(found.dtype), found):
                raise PairError(
                    f"{where}: the tensor {name} is {list(stored.shape)} in the file and {list(found.shape)}, or of "
                    "other values, in memory. Fetch the adapter again, or upgrade peft"
                )


def _embedding_rows(wrapped: Any) -> dict[str, Tensor]:
    """The embeddings of the wrapped model by their names in the base model, as adapters with added tokens save them."""
    found = {}
    for name, module in wrapped.base_model.model.named_modules():
        if isinstance(module, (nn.Embedding, nn.Linear)) and f"{name}.weight".endswith(_EMBEDDINGS):
            found[f"{name}.weight"] = module.weight
    return found


def _separate_head(model: Any) -> None:
    """Give the head a weight of its own where it is the embedding's and one of the two has a change to be merged."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    changed = [isinstance(part, (BaseTunerLayer, AuxiliaryTrainingWrapper)) for part in (embedding, head)]
    if not any(changed) or head is None:
        return
    plain = [_plain(part) for part in (embedding, head)]
    if plain[0] is None or plain[1] is None or plain[0].weight is not plain[1].weight:
        return
    plain[1].weight = nn.Parameter(plain[1].weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    model.config.get_text_config().tie_word_embeddings = False


def _add_missing_biases(wrapped: Any) -> None:
    """Give linear layers a bias of zeros where the adapter has one to merge into it (lora_bias)."""
    from peft.tuners.lora import Linear as LoraLinear

    for module in wrapped.base_model.model.modules():
        if isinstance(module, LoraLinear) and any(
            module.lora_bias.get(name) for name in module.active_adapters
        ):
            layer = module.get_base_layer()
            if layer.bias is None:
                zeros = layer.weight.new_zeros(layer.weight.shape[0])
                layer.bias = nn.Parameter(zeros, requires_grad=False)


def _plain(part: Any) -> Any:
    """The plain layer within peft's wrappers."""
    while True:
        inner = getattr(part, "base_layer", None)
        inner = getattr(part, "original_module", None) if inner is None else inner
        if inner is None:
            return part if isinstance(getattr(part, "weight", None), Tensor) else None
        part = inner


# Merged against unmerged -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _BaseLogits:
    """The base's logits on the probe texts: in its own dtype, and in float32."""

    rounded: list[Tensor]
    exact: list[Tensor]


def _plain_logits(model: Any, texts: Sequence[Sequence[int]]) -> _BaseLogits:
    exact = float32_logits(model, texts)
    if model.dtype not in LOW_PRECISION:
        return _BaseLogits(exact, exact)
    with torch.inference_mode():
        rounded = []
        for text in texts:
            ids = torch.tensor([list(text)], device=exact[0].device)
            rounded.append(
                model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0].float()
            )
    return _BaseLogits(rounded, exact)


def _check_merged(
    dtype: torch.dtype, found: list[Tensor], unmerged: UnmergedLogits, base: _BaseLogits, adapter: Checkpoint
) -> list[Diagnostic]:
    """PairError unless the merged model gives the logits of the unmerged one, up to what its dtype rounds.

    The limit is measured: merging rounds each changed weight, which is of the size of what a pass of the base in the
    same dtype rounds. A note says so where the adapter moves the logits by no more than that.
    """
    expected, moved = unmerged.logits, unmerged.moved
    error, rounding = logit_distance(found, expected), logit_distance(base.rounded, base.exact)
    size = logit_distance(expected, [torch.zeros_like(z) for z in expected])
    limit = max(_ROUNDINGS * rounding, _FLOAT32_TOLERANCE * size)
    if not error <= limit:  # NaN is an error too
        raise PairError(
            f"the adapter {adapter.source!r} (peft_type {adapter.config.get('peft_type')}) is not the same when it is "
            f"merged: logits are off by {error:.3g} from peft's own unmerged pass in float32, where rounding explains "
            f"{limit:.3g} and the adapter moves them by {moved:.3g}. Merge it yourself in float32, check it, and give "
            "the merged checkpoint"
        )
    if moved == 0:
        what = "the adapter changes nothing: the aligned model is the base"
        return [Diagnostic("warning", "aligned", what, "Check that it is the trained one")]
    if dtype in LOW_PRECISION and moved <= 2 * error:
        return [
            Diagnostic(
                "warning",
                "aligned",
                f"merging in {str(dtype).removeprefix('torch.')} rounds away much of the adapter: it moves the "
                f"logits by {moved:.2g}, and rounding by {error:.2g}",
                "Load with dtype='float32' (--dtype float32)",
            )
        ]
    return []


# Notes and sizes -------------------------------------------------------------------------------------------------


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
        if name.endswith(_EMBEDDINGS) and len(entry["shape"]) == 2
    ]
    if rows and max(rows) != width:
        model.resize_token_embeddings(max(rows), mean_resizing=False)
