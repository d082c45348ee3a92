"""Sampler: the public interface to decoding and scoring. Prompts and parameters in, completions out.

It renders prompts for both models, makes a request of every sample, has the engine decode all of them together, and
decodes the tokens to text. `generate` returns when all are finished, `as_completed` yields each as it finishes,
`stream` yields it token by token, and an `OpenBatch` takes further requests while it is decoded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eddecode.engine.completions import CompletionReader
from eddecode.engine.engine import Engine, context_error
from eddecode.engine.open_batch import OpenBatch
from eddecode.engine.requests import RequestFactory
from eddecode.engine.sequence import SequenceState
from eddecode.engine.speculative.factory import speculator_for
from eddecode.errors import ContextError, ParamsError, PromptError
from eddecode.execution.capture import CudaGraph
from eddecode.execution.factory import runner_for
from eddecode.execution.interfaces import ModelExecution
from eddecode.execution.runner import PairRunner
from eddecode.models.tensor_parallel import smallest
from eddecode.outputs import Completion, Piece, TokenLogprobs
from eddecode.prompts.templates import Renderer, TemplateOptions, make_template
from eddecode.prompts.types import Prompt, RenderedPrompt
from eddecode.sampling.params import SamplingParams
from eddecode.scoring.inputs import CompletionsLike, normalize_completions
from eddecode.scoring.scorer import Scorer
from eddecode.scoring.scores import Scores
from eddecode.utils.memory import CACHE_MEMORY_FRACTION, free_bytes, trim_heap
from eddecode.utils.model_passes import MODEL_PASSES
from eddecode.utils.threads import use_chosen_threads

if TYPE_CHECKING:
    from eddecode.models.ensemble import ModelGroup
    from eddecode.prompts.templates import TemplateSpec

MAX_SLOTS = 64


class Sampler:
    """Samples completions from a pair of models. Threads may share one; they take turns between steps.

    Args:
        pair: the two models, or an `Ensemble` or a `Transfer`.
        base_template: renders a prompt for the base model; None is a plain instruction template. "chat", a preset's
            name, a string with `{prompt}`, a file that holds one, or a callable; see `eddecode.prompts.make_template`.
        aligned_template: the same for the aligned model; None is its own chat template.
        max_slots: most completions that are decoded together.
        speculation: what drafts tokens for speculative decoding; the tokens are the same as with "off". "base",
            "ngram", "auto" for both; or a small model with the pair's vocabulary: a checkpoint's folder or hub id, or a
            transformers model. See `eddecode.engine.speculative`.
        memory_budget: bytes for keys and values; None takes half of what is free on the device when decoding starts.
        cuda_graphs: capture the models' steps as CUDA graphs; "auto" does so on a GPU. A model whose step cannot be
            captured is decoded without, with a warning. See docs/gpu.md.
        template_variables: for chat templates, such as {"enable_thinking": False}.
        fold_system: where a chat template takes no system message, put its text before the first user message.
        prefill: text with which the assistant's turn begins, for both models; completions follow it.
        escape_specials: special tokens that are spelt in a prompt stay text.
    """

    def __init__(
        self,
        pair: ModelGroup,
        *,
        base_template: TemplateSpec = None,
        aligned_template: TemplateSpec = None,
        max_slots: int = MAX_SLOTS,
        memory_budget: int | None = None,
        speculation: str | Path | Any = "off",
        cuda_graphs: bool | Literal["auto"] = "auto",
        template_variables: Mapping[str, Any] | None = None,
        fold_system: bool = False,
        prefill: str = "",
        escape_specials: bool = True,
    ) -> None:
        if not isinstance(max_slots, int) or max_slots < 1:
            raise ParamsError(f"max_slots is {max_slots!r:.60}; expected at least 1, a whole number")
        if memory_budget is not None and (not isinstance(memory_budget, int) or memory_budget < 1):
            raise ParamsError(f"memory_budget is {memory_budget!r:.60}; expected a number of bytes, or None")
        if cuda_graphs is True and pair.device.type != "cuda":
            raise ParamsError(
                f"cuda_graphs=True captures steps of a CUDA device; the pair is on {pair.device}"
            )
        self.pair = pair
        self.cuda_graphs = pair.device.type == "cuda" if cuda_graphs == "auto" else cuda_graphs
        self.max_slots = max_slots
        self.memory_budget = memory_budget
        self.speculator = speculator_for(pair, speculation)
        self._specs = (base_template, aligned_template)
        self._options = TemplateOptions(template_variables or {}, fold_system, prefill, escape_specials)
        self._runner: PairRunner | None = None
        self._scorer: Scorer | None = None

    @property
    def runner(self) -> PairRunner:
        """The pair's runner, made on first use."""
        with MODEL_PASSES:
            if self._runner is None:
                if self.pair.device.type == "cpu":  # before the runner measures anything
                    use_chosen_threads()
                self._runner = runner_for(self.pair, CudaGraph if self.cuda_graphs else None)
                trim_heap()  # of what its self-checks took
        return self._runner

    def with_templates(
        self, *, base_template: TemplateSpec = None, aligned_template: TemplateSpec = None
    ) -> Sampler:
        """A sampler of the same models, loaded once, that renders prompts by other templates.

        Args:
            base_template, aligned_template: as of `Sampler`; None is the default, not the template of this sampler.
        """
        other = copy.copy(self)
        other._runner, other._specs = self.runner, (base_template, aligned_template)
        other.__dict__.pop("renderer", None)  # of the templates of this sampler
        return other

    @property
    def execution(self) -> list[ModelExecution]:
        """How each model is run; makes the runner if there is none yet."""
        return self.runner.execution

    def render(self, prompt: Prompt) -> RenderedPrompt:
        """A prompt, rendered for both models."""
        if isinstance(prompt, RenderedPrompt):
            return prompt
        return self.renderer(prompt)

    @cached_property
    def renderer(self) -> Renderer:
        """Both templates, made on first use: a pair without any still serves prompts that are rendered already.

        Raises:
            PromptError: a template cannot be used, or no chat template reads one of the variables.
        """
        base, aligned = self._specs
        return Renderer(
            make_template(base, self.pair.base_tokenizer, "base", options=self._options),
            make_template(aligned, self.pair.aligned_tokenizer, "aligned", options=self._options),
        ).checked(self._options.variables)

    def read_base_template(self) -> None:
        """Have both models read the base's template, for a pair of which neither was aligned (merged weights).

        Call it before anything is decoded.
        """
        template = self.renderer.base_template
        self.renderer = Renderer(template, template)

    @cached_property
    def _factory(self) -> RequestFactory:
        """Makes requests. A chat template that was chosen ends turns with ids of its own."""
        eos_ids: tuple[frozenset[int], ...] = self.pair.eos_ids
        if self._specs != (None, None):
            try:
                ends = self.renderer.end_of_turn_ids()
            except PromptError:  # prompts that are rendered already need no templates
                ends = {}
            sides = getattr(self.pair, "sides", ("base", "aligned"))
            eos_ids = tuple(
                ids | ends.get(side, frozenset()) for ids, side in zip(eos_ids, sides, strict=True)
            )
        return RequestFactory(self.pair, eos_ids)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[Completion]:
        """Sample `params.n` completions of every prompt.

        Args:
            prompts: one or several of: a string, chat messages (a list of {"role", "content"}), a `RenderedPrompt`.
            params: for all prompts, or a list with one per prompt; the defaults sample the base model.
            progress: draw a progress bar on standard error.

        Returns:
            A flat list, by prompt and then by sample.

        Raises:
            PromptError, ParamsError, ContextError: before anything is decoded.
            EngineError: logits are not finite, or there is not enough memory for one completion.
        """
        done = self.as_completed(prompts, params)
        if progress:
            from rich.console import Console
            from rich.progress import track

            total = sum(p.n for p in self._params(params, len(_as_list(prompts))))
            done = iter(track(done, "decoding", total=total, console=Console(stderr=True)))
        return sorted(done, key=lambda completion: (completion.prompt_index, completion.sample))

    def as_completed(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Iterator[Completion]:
        """The completions of `generate`, each as soon as it is finished, in any order; bad input raises at once."""
        return CompletionReader(self._factory).finished(self._submit(prompts, params)[0])

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Iterator[Piece]:
        """The completions of `generate` token by token; tokens of different completions are interleaved."""
        return CompletionReader(self._factory).pieces(*self._submit(prompts, params))

    def open_batch(self) -> OpenBatch:
        """An empty batch that requests can join at any time, also while it is decoded."""
        return OpenBatch(self._engine(), self._factory, self._rendered)

    def score(
        self,
        prompts: Prompt | Sequence[Prompt],
        completions: CompletionsLike,
        alphas: float | Sequence[float] = (),
        *,
        prompt_index: Sequence[int] | None = None,
        tokens: bool = False,
    ) -> Scores:
        """How likely given completions are under base, aligned, and the contrast at every α; see `eddecode.scoring`.

        Each model reads everything once, for any number of α's. `scores.depth` holds how far the models diverge at
        each position of the completions.

        Args:
            prompts: as `generate` takes them.
            completions: one list of completions per prompt; or a flat list, of as many as there are prompts, of
                `Completion`s (which know their prompt), or of any others with `prompt_index`. A completion is a string
                (tokenized by itself, nothing added: no EOS), a list of token ids, or a `Completion`.
            alphas: strengths of the contrast: its distribution over the ids that it may sample, at temperature 1.
            prompt_index: for a flat list, the prompt of each completion.
            tokens: keep the values of every token too.

        Returns:
            One `Score` per completion, in the order in which they were given.

        Raises:
            ParamsError: an α is not finite, or the prompt of a completion is not known.
            PromptError: a completion has an id that cannot be sampled, or is text and there is no tokenizer.
            ContextError: a prompt with its completion is longer than a model reads.
            EngineError: logits are not finite, or there is not enough memory for one completion.
        """
        listed = _as_list(prompts)
        strengths = [alphas] if isinstance(alphas, int | float) else list(alphas)
        for alpha in strengths:
            SamplingParams(alpha=alpha)  # raises if it is not finite
        given = normalize_completions(
            completions,
            len(listed),
            prompt_index,
            self.pair.tokenizer,
            (self.pair.vocabulary, *self.pair.partial_vocabularies.values()),
        )
        rendered = [self._rendered(index, prompt) for index, prompt in enumerate(listed)]
        with MODEL_PASSES:
            if self._scorer is None:
                self._scorer = Scorer(
                    self.runner,
                    self.pair.vocabulary,
                    self.pair.logit_weights,
                    partial_vocabularies=self.pair.partial_vocabularies,
                )
            self._scorer.memory_budget = self._budget()
            return self._scorer.score(rendered, given, strengths, tokens)

    def too_long(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> dict[int, ContextError]:
        """Index → error of the prompts that are longer, with their completions, than a model reads; nothing is decoded.

        Raises:
            PromptError, ParamsError: as `generate`.
        """
        listed = _as_list(prompts)
        found: dict[int, ContextError] = {}
        for index, (prompt, p) in enumerate(zip(listed, self._params(params, len(listed)), strict=True)):
            ids = self.pair.input_ids(self._rendered(index, prompt))
            error = context_error(self.runner.names, ids, self.runner.windows, p.max_new_tokens)
            if error is not None:
                found[index] = error
        return found

    def _submit(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> tuple[Engine, list[SequenceState]]:
        listed = _as_list(prompts)
        requests = [
            request
            for index, (prompt, p) in enumerate(zip(listed, self._params(params, len(listed)), strict=True))
            for request in self._factory.requests(index, self._rendered(index, prompt), p, range(p.n))
        ]
        engine = self._engine()
        return engine, engine.submit(requests)

    def _engine(self) -> Engine:
        with MODEL_PASSES:
            return self._new_engine()

    def _new_engine(self) -> Engine:
        budget = self._budget(kept=True)
        runner, vocabulary = self.runner.clone_empty(), self.pair.vocabulary.to(self.pair.device)
        return Engine(
            runner,
            vocabulary,
            windows=self.runner.windows,
            max_slots=self.max_slots,
            memory_budget=budget,
            speculator=self.speculator and self.speculator.bind(runner, vocabulary),
            partial_vocabularies={
                active: ids.to(self.pair.device) for active, ids in self.pair.partial_vocabularies.items()
            },
        )

    def _budget(self, *, kept: bool = False) -> int:
        """Bytes for keys and values. kept: whether those of earlier calls, which the next one begins with, are free."""
        if self.memory_budget is not None:
            return self.memory_budget
        # Captured steps over dense masks round buffers up to powers of two.
        rounded = any(getattr(runner, "rounds_up", False) for runner in self.runner.model_runners)
        share = CACHE_MEMORY_FRACTION / 2 if rounded else CACHE_MEMORY_FRACTION
        device = self.pair.device
        free = free_bytes(device) + (self.runner.kept_bytes(device) if kept else 0)
        return smallest(int(share * free))  # of processes with parts of one model

    @staticmethod
    def _params(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [params or SamplingParams()] * count
        if not isinstance(params, Sequence) or not all(isinstance(each, SamplingParams) for each in params):
            raise ParamsError(f"params are {params!r:.80}; expected SamplingParams, or a list of them")
        if len(params) != count:
            raise ParamsError(
                f"got {count} prompts and {len(params)} SamplingParams; give one for all, or one per prompt"
            )
        return list(params)

    def _rendered(self, index: int, prompt: Prompt) -> RenderedPrompt:
        try:
            rendered = self.render(prompt)
            self.pair.check_prompt(rendered)
        except PromptError as error:
            error.prompt_index = index
            raise
        return rendered


def _as_list(prompts: Any) -> list[Any]:
    """One prompt as a list of one; chat messages are one prompt, a list of prompts several."""
    if isinstance(prompts, str | RenderedPrompt):
        return [prompts]
    if isinstance(prompts, bytes) or not isinstance(prompts, Iterable):
        raise PromptError(
            f"the prompts are a {type(prompts).__name__}; expected one, or a list of them, each a string, a list of "
            "chat messages, or a RenderedPrompt"
        )
    listed = list(prompts)
    if listed and all(isinstance(message, dict) for message in listed):
        return [listed]
    return listed


__all__ = ["Completion", "OpenBatch", "Piece", "Sampler", "TokenLogprobs"]
