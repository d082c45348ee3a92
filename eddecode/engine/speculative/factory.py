"""The drafters that a speculation mode asks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from eddecode.engine.speculative.speculator import Mode, Speculation
from eddecode.errors import PairError, ParamsError
from eddecode.execution.pair_runner import PairRunner
from eddecode.models.load_config import LoadConfig
from eddecode.models.load_group import CheckpointRef, MemoryRequirement, load_group
from eddecode.models.pair import ModelPair
from eddecode.models.tokenizer_compat import tokens_by_id

if TYPE_CHECKING:
    from eddecode.models.ensemble import ModelGroup
from eddecode.engine.speculative.assistant import SHOWN, Alone, AssistantGuesser


def speculation_for(pair: ModelGroup, wanted: Mode | str | Path | Any) -> Speculation | None:
    """What a user asks for by a mode's name, or by an assistant (see `assistant_for`); None is none.

    Raises:
        ParamsError: it is a name, but neither a mode's nor a checkpoint's.
        PairError: see `assistant_for`.
    """
    if isinstance(wanted, str) and wanted in get_args(Mode):
        return Speculation.of(cast(Mode, wanted))
    try:
        return Speculation([assistant_for(pair, wanted)])
    except PairError as error:
        if not isinstance(wanted, str) or Path(wanted).exists():
            raise
        raise ParamsError(
            f"speculation is {wanted!r}; expected one of {', '.join(get_args(Mode))}, or an assistant model. As the "
            f"latter: {error}"
        ) from error


def assistant_for(pair: ModelGroup, source: str | Path | Any) -> AssistantGuesser:
    """The guesser that a checkpoint or a model stands for.

    Args:
        pair: whose completions it is to guess.
        source: a checkpoint's folder or hub id, which goes to the pair's device in the dtype that it was saved in; or
            a transformers model.

    Raises:
        PairError: there is no such checkpoint, it is no causal language model, it does not fit into memory, or its
            vocabulary is not the pair's.
    """
    tokenizer = None
    if isinstance(source, str | Path):
        load_config = LoadConfig.create(device=pair.device)
        loaded = load_group([CheckpointRef(source, "assistant")], load_config, MemoryRequirement())
        source, tokenizer = loaded.models[0], loaded.tokenizers[0]
    itself = ModelPair.from_models(source, source)  # checks and reads the one model
    check_vocabulary(pair, source, tokenizer)
    runner = PairRunner(Alone((source,), itself.context_windows[:1], itself.device))  # type: ignore[arg-type]
    return AssistantGuesser(runner, source, len(pair.vocabulary))


def check_vocabulary(pair: ModelGroup, model: Any, tokenizer: Any) -> None:
    """PairError if an id means one thing to the pair and another to the assistant, or if that cannot be told."""
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
                for i in differing[:SHOWN]
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
