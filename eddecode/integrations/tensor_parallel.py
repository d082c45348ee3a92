"""An audit whose models are split over several processes: `torchrun --nproc-per-node 2 -m eddecode audit …`.

Process 0 is the audit: it reads prompts, samples, judges and is the only one that writes the run. The others follow it:
they hold their parts of the same models and make each call of the sampler that process 0 makes, since a pass needs all
parts. All of them have the same logits, and so the same tokens and the same next pass.

A process that fails ends, and torchrun ends the others; the same command goes on with the run.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import Any

from eddecode.audit.config import AuditConfig
from eddecode.audit.decode import LoadedSamplers
from eddecode.audit.samplers import load_sampler
from eddecode.errors import EddecodeError
from eddecode.models import tensor_parallel
from eddecode.outputs import Completion

_LOAD, _TEMPLATES, _DECODE, _SCORE = "load", "templates", "decode", "score"
_numbers = count()  # of the samplers, in all processes in the same order


class LeadingSampler:
    """A sampler of process 0, whose calls the other processes make too; what runs no model is the sampler's own.

    Args:
        sampler: of this process's parts of the models.
        number: by which the other processes know their sampler of the other parts.
    """

    def __init__(self, sampler: Any, number: int) -> None:
        self._sampler, self._number = sampler, number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def as_completed(self, prompts: Any, params: Any) -> Iterator[Completion]:
        """As `Sampler.as_completed`; every completion must be taken, since the other processes decode them all."""
        tensor_parallel.broadcast((_DECODE, self._number, prompts, params))
        found: Iterator[Completion] = self._sampler.as_completed(prompts, params)
        return found

    def score(self, prompts: Any, completions: Any, **options: Any) -> Any:
        """As `Sampler.score`."""
        tensor_parallel.broadcast((_SCORE, self._number, prompts, completions, options))
        return self._sampler.score(prompts, completions, **options)

    def with_templates(self, **templates: Any) -> LeadingSampler:
        """As `Sampler.with_templates`."""
        tensor_parallel.broadcast((_TEMPLATES, self._number, templates))
        return LeadingSampler(self._sampler.with_templates(**templates), next(_numbers))


def lead() -> LoadedSamplers:
    """The samplers of process 0's audit; end with `dismiss`.

    Raises:
        PairError: the processes do not find each other.
    """
    tensor_parallel.start()
    return LoadedSamplers(_load)


def _load(config: AuditConfig, model: str) -> LeadingSampler:
    tensor_parallel.broadcast((_LOAD, config, model))
    return LeadingSampler(_loaded(config, model), next(_numbers))


def _loaded(config: AuditConfig, model: str) -> Any:
    sampler: Any = load_sampler(config, model)
    _ = sampler.runner  # its trials are passes of the models: made now, in all processes
    return sampler


def dismiss() -> None:
    """End the other processes, after an audit that went well. After an error torchrun ends them."""
    tensor_parallel.broadcast(None)
    tensor_parallel.stop()


def follow() -> None:
    """Do what process 0 does with the models, until it dismisses this process.

    Raises:
        PairError: the processes do not find each other.
    """
    tensor_parallel.start()
    samplers: list[Any] = []  # as many as process 0 has given numbers to
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # process 0 shows them
        while (message := tensor_parallel.broadcast()) is not None:
            _follow(samplers, *message)
    tensor_parallel.stop()


def _follow(samplers: list[Any], kind: str, *arguments: Any) -> None:
    """One call. An error of eddecode's is process 0's too, which decides what becomes of it."""
    try:
        if kind == _LOAD:
            samplers[:] = [None] * len(samplers)  # frees the weights before the next ones are loaded
            samplers.append(_loaded(*arguments))
            return
        number, *rest = arguments
        if kind == _TEMPLATES:
            samplers.append(samplers[number].with_templates(**rest[0]))
        elif kind == _DECODE:
            deque(samplers[number].as_completed(*rest), maxlen=0)
        else:
            samplers[number].score(rest[0], rest[1], **rest[2])
    except EddecodeError:
        return
