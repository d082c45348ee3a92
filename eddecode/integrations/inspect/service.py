"""One thread per pair that decodes the requests of a whole process together, whichever task or α they are of.

Inspect asks for one completion at a time, concurrently. A request that arrives while others are decoded joins their
batch at the next step. If decoding fails for one request, the batch is given up, that request gets the error, and the
others start again: their tokens depend on the request alone, so that they come out the same.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eddecode.engine.detokenizer import TextDecoder
from eddecode.errors import PromptRelatedError
from eddecode.prompts.types import Prompt, RenderedPrompt
from eddecode.sampling.params import SamplingParams

if TYPE_CHECKING:
    from eddecode.engine.sequence import SequenceState
    from eddecode.integrations.pair_options import PairOptions
    from eddecode.outputs import Completion
    from eddecode.sampler import OpenBatch, Sampler

BURST_SECONDS = 0.01  # that an idle service waits for further requests, which are then prefilled together


# Two pairs in one process decode in turns: a CUDA graph cannot be captured while another thread uses the device.
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Answer:
    """The completions of one prompt, by sample, and the prompt as each model read it (ids, and text)."""

    completions: list[Completion]
    prompt: RenderedPrompt
    base_text: str
    aligned_text: str


@dataclass(eq=False)
class _Job:
    """One call of `PairService.submit`, while it waits or is decoded."""

    prompt: Prompt
    params: SamplingParams
    samples: Sequence[int]
    fill: bool
    future: Future[Answer] = field(default_factory=Future)
    rendered: RenderedPrompt | None = None
    handles: list[SequenceState] = field(default_factory=list)
    done: dict[SequenceState, Completion] = field(default_factory=dict)


class PairService:
    """Decodes requests of one pair in a thread of its own, all of them in one batch.

    Args:
        sampler: of the pair; only the thread uses it from now on.

    Attributes:
        tokenizer: of the pair.
        peak: most requests that were decoded in one step so far.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.tokenizer: Any = sampler.pair.tokenizer
        self.peak = 0
        self._sampler = sampler
        self._inbox: queue.SimpleQueue[_Job | Callable[[], None]] = queue.SimpleQueue()
        self._live: dict[int, _Job] = {}  # by the number that is the `prompt_index` of their requests
        self._count = 0
        self._batch: OpenBatch | None = None
        threading.Thread(target=self._run, name="eddecode-pair", daemon=True).start()

    def submit(
        self, prompt: Prompt, params: SamplingParams, samples: Sequence[int] = (0,), *, fill: bool = False
    ) -> Future[Answer]:
        """Ask for completions of a prompt; the future may be cancelled.

        Args:
            prompt: as `Sampler.generate` takes it.
            params: of all samples.
            samples: their numbers.
            fill: where the context window has less room than `max_new_tokens`, take what it has.
        """
        job = _Job(prompt, params, samples, fill)
        self._inbox.put(job)
        return job.future

    def tokenize(self, text: str) -> Future[list[int]]:
        """The token ids of a text, without special tokens; tokenizers are not safe to use from two threads."""
        future: Future[list[int]] = Future()

        def call() -> None:
            try:
                ids = self._sampler.pair.tokenizer(text, add_special_tokens=False)["input_ids"]
            except Exception as error:
                _resolve(future, error)
            else:
                _resolve(future, list(ids))

        self._inbox.put(call)
        return future

    # The thread

    def _run(self) -> None:
        while True:
            for arrived in self._arrivals():
                if isinstance(arrived, _Job):
                    self._count += 1
                    self._join(self._count, arrived)
                else:
                    arrived()
            for number, job in list(self._live.items()):
                if job.future.cancelled():
                    self._drop(number)
            if not self._live:
                self._batch = None  # frees its caches
                continue
            try:
                with _one_at_a_time:
                    self._step()
            except Exception as error:  # whatever it is, those who wait must hear of it
                self._start_again(error)

    def _arrivals(self) -> list[_Job | Callable[[], None]]:
        """What has arrived; waits for it while nothing is decoded."""
        found: list[_Job | Callable[[], None]] = []
        with suppress(queue.Empty):
            if not self._live:
                found.append(self._inbox.get())
                while isinstance(found[-1], _Job):
                    found.append(self._inbox.get(timeout=BURST_SECONDS))
            while True:
                found.append(self._inbox.get_nowait())
        return found

    def _join(self, number: int, job: _Job) -> None:
        """Add a job to the batch, or resolve it with its error."""
        try:
            if self._batch is None:
                self._batch = self._sampler.open_batch()
            job.rendered = job.rendered or self._sampler.render(job.prompt)
            params = self._filled(job.params, job.rendered) if job.fill else job.params
            job.done = {}
            job.handles = self._batch.add(number, job.rendered, params, job.samples)
        except Exception as error:
            _resolve(job.future, _unnumbered(error))
        else:
            self._live[number] = job

    def _filled(self, params: SamplingParams, prompt: RenderedPrompt) -> SamplingParams:
        ids = self._sampler.pair.input_ids(prompt)
        windows = self._sampler.runner.windows
        room = [window - len(each) for window, each in zip(windows, ids, strict=True) if window is not None]
        return params.replace(max_new_tokens=max(1, min([params.max_new_tokens, *room])))

    def _step(self) -> None:
        assert self._batch is not None
        for handle, completion in self._batch.step():
            job = self._live[completion.prompt_index]
            job.done[handle] = completion
            if len(job.done) == len(job.handles):
                del self._live[completion.prompt_index]
                _resolve(job.future, self._answer(job))
        self.peak = max(self.peak, self._batch.last_size)

    def _answer(self, job: _Job) -> Answer:
        assert job.rendered is not None
        pair = self._sampler.pair
        texts = [
            TextDecoder(tokenizer).full_text(ids)
            for tokenizer, ids in zip(
                (pair.base_tokenizer, pair.aligned_tokenizer), job.rendered.ids, strict=True
            )
        ]
        return Answer([job.done[handle] for handle in job.handles], job.rendered, *texts)

    def _drop(self, number: int) -> None:
        job = self._live.pop(number)
        if self._batch is not None:
            for handle in job.handles:
                self._batch.cancel(handle)

    def _start_again(self, error: Exception) -> None:
        """Resolve the job that the error names, or all of them, and decode the others in a new batch."""
        self._batch = None
        named = getattr(error, "prompt_index", None)
        failed = [named] if named in self._live else list(self._live)
        for number in failed:
            _resolve(self._live.pop(number).future, _unnumbered(error))
        waiting, self._live = self._live, {}
        for number, job in waiting.items():
            self._join(number, job)


def _resolve(future: Future[Any], value: Any) -> None:
    """Set the result of a future, or its exception, unless it was cancelled."""
    if future.set_running_or_notify_cancel():
        if isinstance(value, BaseException):
            future.set_exception(value)
        else:
            future.set_result(value)


def _unnumbered(error: Exception) -> Exception:
    """The error without the number of the request, which means nothing to the one who asked."""
    if isinstance(error, PromptRelatedError):
        error.prompt_name = "the prompt" if error.prompt_index is not None else None
    return error


_services: dict[PairOptions, PairService] = {}
_lock = threading.Lock()


def service_of(options: PairOptions) -> PairService:
    """The service of a pair, loaded on first use: one per pair, options and process.

    Raises:
        PairError: the checkpoints cannot be loaded, or cannot be decoded against each other.
        PromptError: a template cannot be used.
    """
    with _lock:
        if options not in _services:
            sampler = options.load()
            _ = sampler.runner  # its self-checks
            _services[options] = PairService(sampler)
        return _services[options]
