"""The model `eddecode` of lm-evaluation-harness: log-likelihoods and completions of a pair at one α.

At α = 0 and α = −1 the scores are those of one model alone under its own softmax, as the harness's `hf` model computes
them: contexts are tokenized, cut and windowed in the same way, a second BOS at the start of a rolling window included.
At any other α a score is the log-probability under the contrast, over the ids that both models know.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import has_bos_prefix, normalize_gen_kwargs

from eddecode.errors import ConfigError, ContextError, ParamsError
from eddecode.integrations.pair_options import PairOptions
from eddecode.prompts import RenderedPrompt, make_template, render_chat
from eddecode.sampling.params import SamplingParams

if TYPE_CHECKING:
    from eddecode.sampler import Sampler
    from eddecode.scoring.scores import Score

_log = logging.getLogger(__name__)
MAX_LENGTH = 2048  # tokens where no model has a limit; the harness's own default
MAX_GEN_TOKS = 256
_SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "seed"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
_Ids = tuple[int, ...]
_Text = tuple[RenderedPrompt, _Ids]


class PairScores:
    """Scores of a pair at several α's, each text scored once for all of them.

    Args:
        sampler: of the pair.
        alphas: strengths of the contrast.
    """

    def __init__(self, sampler: Sampler, alphas: Sequence[float]) -> None:
        self.sampler, self.alphas = sampler, tuple(dict.fromkeys(alphas))
        self._known: dict[_Text, Score] = {}

    def __call__(self, texts: Sequence[_Text]) -> list[Score]:
        """The scores of (prompt, completion) pairs, in order."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        prompts = list(dict.fromkeys(prompt for prompt, _ in new))
        place = {prompt: i for i, prompt in enumerate(prompts)}
        if new:
            found = self.sampler.score(
                prompts,
                [list(ids) for _, ids in new],
                self.alphas,
                prompt_index=[place[prompt] for prompt, _ in new],
            )
            self._known.update(zip(new, found, strict=True))
        return [self._known[text] for text in texts]


@register_model("eddecode")
class PairLM(TemplateLM):
    """A pair at one α.

    Args:
        alpha: strength of the contrast; 0 is the base model, −1 the aligned one.
        base_template, aligned_template: how each side reads a context: None as it is, otherwise as `eddecode.Sampler`
            takes a template, with the context as the user's message.
        max_length: tokens that a text may have; None: what both models read.
        max_gen_toks: tokens of a completion, where a task does not say.
        add_bos_token: whether a BOS is put in front of a context; None: as the tokenizer does.
        prefix_token_id: in front of a text without context; None: BOS, else EOS.
        batch_size, max_batch_size: of the harness; a number above 1 is the number of completions decoded together.
        scores: of a pair that is loaded already, which models at several α's share; excludes `options`.
        options: see `PairOptions`.

    Raises:
        ConfigError: an option is unknown or out of its range.
        PairError: the checkpoints cannot be loaded, or cannot be decoded against each other.
    """

    def __init__(
        self,
        alpha: float = 0.0,
        *,
        base_template: str | None = None,
        aligned_template: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = MAX_GEN_TOKS,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        scores: PairScores | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.alpha = SamplingParams(alpha=alpha).alpha
        for name, value in {"max_length": max_length, "max_gen_toks": max_gen_toks}.items():
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; expected at least 1, or leave it out")
        if scores is None:
            options = _usable({name: value for name, value in options.items() if value is not None})
            if str(batch_size).isdigit() and int(str(batch_size)) > 1:
                options.setdefault("max_slots", int(str(batch_size)))
            sampler = PairOptions(**options).load()
            scores = PairScores(sampler, [self.alpha])
        self.scores, self.sampler, self.pair = scores, scores.sampler, scores.sampler.pair
        if self.pair.base_tokenizer is None:
            raise ConfigError(
                "the pair has no tokenizer, and benchmarks are text; put its files into a checkpoint"
            )
        self.tokenizer = self.pair.aligned_tokenizer  # of which the harness takes the chat template
        self._encoder = self.pair.base_tokenizer
        self._templates = (
            base_template and make_template(base_template, self.pair.base_tokenizer, "base"),
            aligned_template and make_template(aligned_template, self.pair.aligned_tokenizer, "aligned"),
        )
        windows = [window for window in self.sampler.runner.windows if window is not None]
        self.max_length = max_length or min(windows, default=MAX_LENGTH)
        self.max_gen_toks = max_gen_toks
        self._add_bos, self._prefix = add_bos_token, prefix_token_id

    # What the harness asks of a model

    @property
    def tokenizer_name(self) -> str:
        """Identifies the tokenizer in the harness's cache of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return int(self._encoder.eos_token_id)

    @cached_property
    def prefix_token_id(self) -> int:
        """The id that stands in front of a text without context."""
        if self._prefix is not None:
            return self._prefix
        bos = self._encoder.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The base tokenizer's ids; without a BOS where the text begins with one."""
        special = self._add_bos if add_special_tokens is None else add_special_tokens
        prefix = self._encoder.decode(self.prefix_token_id)
        if add_special_tokens is None and has_bos_prefix(string, prefix):
            special = False
        options = {} if special is None else {"add_special_tokens": special}
        return [int(i) for i in self._encoder(string, **options)["input_ids"]]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The chat by the aligned model's template; both models read it."""
        return render_chat(self.tokenizer, chat_history, add_generation_prompt=add_generation_prompt).text

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        texts = [self._text(*request) for request in requests]
        found = []
        for (asked, _, _), score in zip(requests, self.scores(texts), strict=True):
            answer = self._logprob(score), score.is_greedy(self.alpha)
            found.append(answer)
            self.cache_hook.add_partial("loglikelihood", asked, answer)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of whole texts, in windows that do not overlap."""
        texts: list[_Text] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),  # with its BOS, after the prefix: as `hf` has it
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(utils.make_disjoint_window, windows):
                texts.append((RenderedPrompt(tuple(context), tuple(context)), tuple(continuation)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, score in zip(owners, self.scores(texts), strict=True):
            totals[owner] += self._logprob(score)
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Completions; a request that is repeated gets another sample of the same prompt."""
        groups: dict[tuple[RenderedPrompt, SamplingParams], list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            groups[self._generation(*request.args)].append(place)
        prompts = [prompt for prompt, _ in groups]
        params = [params.replace(n=len(places)) for (_, params), places in groups.items()]
        texts, places = [""] * len(requests), list(groups.values())
        for done in self.sampler.as_completed(prompts, params):
            place = places[done.prompt_index][done.sample]
            texts[place] = done.text
            self.cache_hook.add_partial("generate_until", requests[place].args, done.text)
        return texts

    # Contexts and completions

    def _logprob(self, score: Score) -> float:
        own = {0.0: score.base_logprob, -1.0: score.aligned_logprob}
        return own.get(self.alpha, score.at(self.alpha))

    def _text(self, asked: tuple[str, str], context: list[int], continuation: list[int]) -> _Text:
        """A context, cut on the left where it is too long, and its continuation."""
        if len(continuation) > self.max_length:
            raise ContextError(
                f"a continuation has {len(continuation)} tokens, and the pair reads {self.max_length}; leave the task "
                "out, or choose a pair with a longer window"
            )
        room = self.max_length + 1 - len(continuation)  # no model reads the last token
        if len(context) > room:
            _log.warning(
                "a context of %d tokens with a continuation of %d exceeds the window of %d; it is cut on the left",
                len(context),
                len(continuation),
                self.max_length,
            )
        # The harness moves white space at the end of a context to the continuation.
        return self._rendered(asked[0].rstrip(), context[-room:]), tuple(continuation)

    def _rendered(self, context: str, ids: list[int]) -> RenderedPrompt:
        base, aligned = (tuple(ids) if not template else template(context) for template in self._templates)
        return RenderedPrompt(base, aligned)

    def _generation(self, context: str, settings: dict[str, Any]) -> tuple[RenderedPrompt, SamplingParams]:
        kwargs = dict(normalize_gen_kwargs(settings, self.max_gen_toks))
        until, most = kwargs.pop("until") or [], kwargs.pop("max_gen_toks")
        greedy = not kwargs.pop("do_sample", False)
        chosen = {name: kwargs.pop(name) for name in _SAMPLING if kwargs.get(name) is not None}
        if kwargs:
            raise ParamsError(
                f"the task sets {', '.join(kwargs)} for generation, which eddecode does not have; expected until, "
                f"max_gen_toks, do_sample, {', '.join(_SAMPLING)}"
            )
        params = SamplingParams(
            alpha=self.alpha, max_new_tokens=most, stop=tuple(s for s in until if s), **chosen
        )
        if greedy:
            params = params.replace(temperature=0.0)
        ids, room = self.tok_encode(context), self.max_length - most
        if room < 1:
            raise ContextError(
                f"a task asks for {most} tokens, and the pair reads {self.max_length}; lower max_gen_toks "
                f"(--gen_kwargs max_gen_toks={self.max_length // 2})"
            )
        if len(ids) > room:
            _log.warning(
                "a context of %d tokens leaves no room for %d more in a window of %d; it is cut on the left",
                len(ids),
                most,
                self.max_length,
            )
        return self._rendered(context, ids[-room:]), params


def _usable(options: dict[str, Any]) -> dict[str, Any]:
    """The options without the harness's default device, cuda:0, where there is none."""
    import torch

    if str(options.get("device")).startswith("cuda") and not torch.cuda.is_available():
        _log.warning("there is no device %s; the pair is loaded on the CPU", options["device"])
        return {name: value for name, value in options.items() if name != "device"}
    return options
