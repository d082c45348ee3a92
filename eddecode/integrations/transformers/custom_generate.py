"""`model.generate` on eddecode's engine: a function for its argument `custom_generate`.

    base.generate(**inputs, custom_generate=contrast_generate, sampler=sampler, alpha=0.6, aligned_ids=ids)

The completions are those of `Sampler.generate`. Settings of `generate` that the sampler does not have are errors;
but for a streamer, which transformers does not hand on to a function: use `Sampler.stream`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation import logits_process as processors
from transformers.generation import stopping_criteria as criteria
from transformers.generation.configuration_utils import GenerationMode

from eddecode.errors import ParamsError, PromptError
from eddecode.prompts.types import RenderedPrompt
from eddecode.sampling.params import SamplingParams

if TYPE_CHECKING:
    from eddecode.sampler import Sampler

_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
# What `generate` makes of settings that are read from its configuration here.
_KNOWN = (
    *("TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper"),
    *(
        "MinNewTokensLengthLogitsProcessor",
        "SuppressTokensLogitsProcessor",
        "RepetitionPenaltyLogitsProcessor",
    ),
    *("MaxLengthCriteria", "EosTokenCriteria", "StopStringCriteria"),
)


def contrast_generate(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    generation_config: Any = None,
    *,
    sampler: Sampler | None = None,
    alpha: float = 0.0,
    aligned_ids: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
    **model_kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Completions of a base model's prompts under the contrast; called by `generate`.

    Args:
        model: the base model of the sampler's pair.
        input_ids: (B, L), padded on the left.
        logits_processor, stopping_criteria, generation_config: as `generate` prepared them.
        sampler: of the pair.
        alpha: strength of the contrast.
        aligned_ids: what the aligned model reads for each prompt; None: what the base model reads.
        seed: of the sampler.
        model_kwargs: the attention mask is read; all else does not count.

    Returns:
        (B, L + T) ids as `generate` returns them, or its output class.

    Raises:
        ParamsError: a setting that the sampler does not have, or another model than the pair's base.
        PromptError: `aligned_ids` is not one list per prompt.
    """
    if sampler is None or getattr(sampler.pair, "base", None) is not model:
        raise ParamsError(
            "contrast_generate needs the sampler of this model's pair; expected pair.base.generate(…, "
            "custom_generate=contrast_generate, sampler=Sampler(pair))"
        )
    _check_supported(generation_config, logits_processor, stopping_criteria)
    copies = generation_config.num_return_sequences or 1
    prompts = _prompts(input_ids[::copies], model_kwargs.get("attention_mask"), copies, aligned_ids)
    params = _params(
        generation_config, alpha, seed, generation_config.max_length - input_ids.shape[1], copies
    )
    done = sampler.generate(prompts, params)
    rows = [completion.token_ids for completion in done]
    pad = generation_config.pad_token_id
    longest = max(map(len, rows))
    padded = [row + [0 if pad is None else int(pad)] * (longest - len(row)) for row in rows]
    made = torch.tensor(padded, dtype=input_ids.dtype, device=input_ids.device)
    sequences = torch.cat([input_ids, made], dim=1)
    if generation_config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=sequences)
    return sequences


def _check_supported(config: Any, logits_processor: Any, stopping_criteria: Any) -> None:
    mode = config.get_generation_mode()
    if mode not in _MODES:
        raise ParamsError(
            f"generate was asked for {mode.value}; expected greedy search or sampling, or use ContrastLogitsProcessor"
        )
    own = (*processors.__dict__.values(), *criteria.__dict__.values())
    for each in (*(logits_processor or ()), *(stopping_criteria or ())):
        if type(each) not in own or type(each).__name__ not in _KNOWN:
            raise ParamsError(
                f"generate was given {type(each).__name__}, which the sampler does not have; leave it out, or use "
                "ContrastLogitsProcessor"
            )
    for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
        if getattr(config, name, None):
            raise ParamsError(f"{name} is not available; use Sampler.generate with logprobs=True")


def _prompts(
    input_ids: Tensor, mask: Tensor | None, copies: int, aligned_ids: Sequence[Sequence[int]] | None
) -> list[RenderedPrompt]:
    read = torch.ones_like(input_ids) if mask is None else mask[::copies]
    base = [row[kept.bool()].tolist() for row, kept in zip(input_ids, read, strict=True)]
    if aligned_ids is None:
        aligned_ids = base
    if len(aligned_ids) != len(base):
        raise PromptError(
            f"there are {len(base)} prompts, and aligned_ids has {len(aligned_ids)}; expected one list of ids each"
        )
    return [RenderedPrompt(tuple(b), tuple(a)) for b, a in zip(base, aligned_ids, strict=True)]


def _params(config: Any, alpha: float, seed: int, most: int, copies: int) -> SamplingParams:
    ends = config.eos_token_id
    strings = config.stop_strings
    sampling: dict[str, Any] = {"temperature": 0.0}
    if config.do_sample:
        chosen = {"temperature": config.temperature, "top_k": config.top_k, "top_p": config.top_p}
        chosen["min_p"] = getattr(config, "min_p", None)
        sampling = {name: value for name, value in chosen.items() if value is not None}
    return SamplingParams(
        alpha=alpha,
        seed=seed,
        n=copies,
        max_new_tokens=most,
        min_new_tokens=config.min_new_tokens or 0,
        stop=(strings,) if isinstance(strings, str) else tuple(strings or ()),
        repetition_penalty=1.0 if config.repetition_penalty is None else config.repetition_penalty,
        stop_token_ids=(ends,) if isinstance(ends, int) else tuple(ends or ()),
        suppress_tokens=tuple(config.suppress_tokens or ()),
        **sampling,
    )
