"""A batch that requests join while it is decoded, for callers that do not know all of them in advance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from eddecode.engine.completions import CompletionReader

if TYPE_CHECKING:
    from eddecode.engine.engine import Engine
    from eddecode.engine.requests import RequestFactory
    from eddecode.engine.sequence import SequenceState
    from eddecode.outputs import Completion
    from eddecode.prompts.types import Prompt, RenderedPrompt
    from eddecode.sampling.params import SamplingParams


class OpenBatch:
    """Requests that are decoded together, and that others may join between two steps; for one thread.

    A completion is the one that `Sampler.generate` makes of the same prompt, parameters and sample.

    Args:
        engine: with nothing to decode yet.
        factory: makes the requests.
        render: (a prompt's number, the prompt) → the prompt as both models read it.

    Attributes:
        last_size: how many requests the last step decoded.
    """

    def __init__(
        self, engine: Engine, factory: RequestFactory, render: Callable[[int, Prompt], RenderedPrompt]
    ) -> None:
        self._engine, self._factory, self._render = engine, factory, render
        self._reader = CompletionReader(factory)
        self._open: set[SequenceState] = set()
        self.last_size = 0

    @property
    def busy(self) -> bool:
        """Whether anything is left to decode."""
        return self._engine.busy

    def add(
        self, key: int, prompt: Prompt, params: SamplingParams, samples: Sequence[int] = (0,)
    ) -> list[SequenceState]:
        """Add a request for each of a prompt's samples, and return one handle for each.

        Args:
            key: the `prompt_index` of the completions and of errors; the caller's own number.
            prompt: as `Sampler.generate` takes it.
            params: of all samples; `n` does not count.
            samples: numbers of the samples.

        Raises:
            PromptError, ParamsError, ContextError: this request cannot be decoded. The batch goes on without it.
        """
        rendered = self._render(key, prompt)
        added = self._engine.submit(self._factory.requests(key, rendered, params, samples))
        self._open.update(added)
        return added

    def step(self) -> list[tuple[SequenceState, Completion]]:
        """Decode one token of every request that has a slot; the requests that finished, with their completions.

        Raises:
            EngineError: the batch cannot go on, and is of no more use; also after a step that was interrupted.
        """
        scheduler, ended = self._engine.scheduler, self._engine.step()
        self.last_size = len(scheduler.running) + len(ended)
        finished = [sequence for sequence in ended if sequence in self._open]
        self._open.difference_update(finished)
        return [(sequence, self._reader.completion(sequence)) for sequence in finished]

    def cancel(self, handle: SequenceState) -> None:
        """Decode this request no further. `step` does not return it."""
        self._open.discard(handle)
        handle.finish_reason = handle.finish_reason or "cancelled"
