"""The drafters that a speculation mode asks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from eddecode.engine.speculative.assistant import AssistantDrafter, SingleModel
from eddecode.engine.speculative.speculator import AdaptiveSpeculator, Mode
from eddecode.errors import PairError, ParamsError
from eddecode.execution.factory import separate_pair_runner
from eddecode.models.load_config import LoadConfig
from eddecode.models.load_group import CheckpointRef, MemoryRequirement, load_group
from eddecode.models.pair import ModelPair
from eddecode.models.tokenizer_compat import tokens_by_id

if TYPE_CHECKING:
    from eddecode.models.ensemble import ModelGroup

MAX_SHOWN = 3  # ids that an error lists


def speculator_for(pair: ModelGroup, wanted: Mode | str | Path | Any) -> AdaptiveSpeculator | None:
    """The speculator for a mode's name or an assistant model (see `assistant_for`); None for "off".

    A speculator is returned as it is.

    Raises:
        ParamsError: it is a string, but neither a mode nor a checkpoint.
        PairError: see `assistant_for`.
    """
    if isinstance(wanted, AdaptiveSpeculator):
        return wanted
    if isinstance(wanted, str) and wanted in get_args(Mode):
        return AdaptiveSpeculator.of(cast(Mode, wanted))
    try:
        return AdaptiveSpeculator([assistant_for(pair, wanted)])
    except PairError as error:
        if not isinstance(wanted, str) or Path(wanted).exists():
            raise
        raise ParamsError(
            f"speculation is {wanted!r}; expected one of {', '.join(get_args(Mode))}, or an assistant model. As the "
            f"latter: {error}"
        ) from error


def assistant_for(pair: ModelGroup, source: str | Path | Any) -> AssistantDrafter:
    """The drafter of a checkpoint or a model.

    Args:
        pair: the models that verify what it drafts.
        source: a checkpoint's folder or hub id, which is loaded to the pair's device in the dtype of its files; or a
            transformers model.

    Raises:
        PairError: there is no such checkpoint, it is no causal language model, it does not fit into memory, or its
            vocabulary is not the pair's.
    """
    tokenizer = None
    if isinstance(source, str | Path):
        load_config = LoadConfig.create(device=pair.device)
        loaded = load_group([CheckpointRef(source, "assistant")], load_config, MemoryRequirement())
        source, tokenizer = loaded.models[0], loaded.tokenizers[0]
    itself = ModelPair.from_models(source, source)  # checks the one model, and reads its context window
    check_vocabulary(pair, source, tokenizer)
    runner = separate_pair_runner(SingleModel((source,), itself.context_windows[:1], itself.device))  # type: ignore[arg-type]
    return AssistantDrafter(runner, source)


def check_vocabulary(pair: ModelGroup, model: Any, tokenizer: Any) -> None:
    """PairError if an id is another token for the assistant than for the pair, or if that is not known."""
    way_out = (
        "give a small model that was trained with the pair's tokenizer, as a rule one of the same family"
    )
    if tokenizer is not None and pair.tokenizer is not None:
        ours, theirs = tokens_by_id(pair.tokenizer), tokens_by_id(tokenizer)
        ids: list[int] = pair.vocabulary.nonzero()[:, 0].tolist()
        differing = [i for i in ids if ours.get(i) != theirs.get(i)]
        if differing:
            shown = ", ".join(
                f"id {i} is {ours.get(i)!r} in the pair and {theirs.get(i)!r} in the assistant"
                for i in differing[:MAX_SHOWN]
            )
            raise PairError(
                f"the assistant's vocabulary is not the pair's: {len(differing)} of {len(ids)} ids that may be sampled "
                f"differ ({shown}); {way_out}"
            )
        return
    width = int(model.get_output_embeddings().weight.shape[0])
    widths = [int(other.get_output_embeddings().weight.shape[0]) for other in pair.models]
    if width not in widths:
        raise PairError(
            f"the assistant scores {width} ids and the pair's models {' and '.join(map(str, widths))}, and there are "
            f"no two tokenizers to compare; {way_out}, by its folder, so that its tokenizer is read too"
        )
