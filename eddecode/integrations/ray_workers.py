"""Decoding in several processes, on one machine or a cluster, by Ray (`eddecode[ray]`).

Every worker is an actor that holds the models; the audit's process hands out parts of the work and is the only one that
writes the run. A draw is keyed by prompt, sample and position, so that a completion is the same on any worker. Ray
restarts an actor that was killed and runs its part again; a part counts only when all of it is back, so that nothing is
lost and nothing is there twice.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from eddecode.audit.config import AuditConfig
from eddecode.audit.samplers import load_sampler
from eddecode.errors import ConfigError, EddecodeError, PromptRelatedError
from eddecode.utils.collection import collect_rarely
from eddecode.utils.threads import allowed_threads, set_by_user

if TYPE_CHECKING:
    from eddecode.outputs import Completion

PART = 128
"""Most requests (a prompt under one condition) of a part: a few batches, so that the last parts end about together."""
IN_FLIGHT = 2
"""Parts that wait at each worker, so that it never waits for the next one."""


@dataclass(frozen=True)
class Workers:
    """How many workers, and where.

    Attributes:
        address: "local" starts Ray on this machine; else the address of a cluster, such as `ray://head:10001`.
        count: number of workers.
    """

    address: str
    count: int

    @classmethod
    def parse(cls, text: str) -> Workers:
        """From `local:4` or `ray://head:10001,8`.

        >>> Workers.parse("local:4")
        Workers(address='local', count=4)

        Raises:
            ConfigError: it is of another form.
        """
        found = re.fullmatch(r"(local):([1-9]\d{0,4})|(ray://\S+|auto),([1-9]\d{0,4})", text.strip())
        if found is None:
            raise ConfigError(
                f"workers {text!r}: expected local:COUNT, or the address of a cluster and a count, such as "
                "ray://head:10001,8"
            )
        local, few, address, many = found.groups()
        return cls(local or address, int(few or many))


class RaySampler:
    """A sampler of an audit whose work is done by Ray's actors; see `eddecode.audit.decode.SamplerLike`.

    Args:
        config: of the audit; its paths and hub ids must hold on every machine.
        model: which models of the audit: "" (the pair), "finetuned" or "ensemble".
        workers: how many, and where.

    Raises:
        ConfigError: Ray is not installed, or cannot be reached.
        EddecodeError: the models cannot be loaded.
    """

    def __init__(self, config: AuditConfig, model: str, workers: Workers) -> None:
        ray = _started(workers)
        gpus = _gpus_per_worker(ray, config, workers.count)
        cores = int(ray.cluster_resources().get("CPU", workers.count))
        threads = threads_per_worker(cores, workers.count) if workers.address == "local" else None
        cpus = 0 if workers.address == "local" else 1  # this machine's cores are shared out by `threads`
        _check_free(ray, cpus * workers.count)
        actor = ray.remote(num_gpus=gpus, num_cpus=cpus, max_restarts=-1, max_task_retries=-1)(_Worker)
        self._ray = ray
        self._workers = [actor.remote(config, model, threads) for _ in range(workers.count)]
        weakref.finalize(self, _stop, ray, tuple(self._workers))
        for failure in ray.get([worker.failure.remote() for worker in self._workers]):
            if failure is not None:
                raise _rebuilt(failure, 0)

    def processes(self) -> list[int]:
        """The workers' process ids, each on its machine."""
        return list(self._ray.get([worker.process.remote() for worker in self._workers]))

    @property
    def record(self) -> Mapping[str, Any]:
        """What was fitted for an attack, see `AttackSampler`; of the first worker, all fit the same. Else empty."""
        return dict(self._ray.get(self._workers[0].record.remote()))

    def as_completed(self, prompts: Sequence[Any], params: Any) -> Iterator[Completion]:
        """Completions, part by part as parts come back; `prompt_index` counts within this call."""
        every = list(params) if isinstance(params, Sequence) else [params] * len(prompts)
        size = max(1, min(PART, -(-len(prompts) // (IN_FLIGHT * len(self._workers)))))
        starts = list(range(0, len(prompts), size))[::-1]
        running: dict[Any, tuple[int, Any]] = {}
        idle = [worker for _ in range(IN_FLIGHT) for worker in self._workers][::-1]
        try:
            while starts or running:
                while starts and idle:
                    start, worker = starts.pop(), idle.pop()
                    part = slice(start, start + size)
                    running[worker.decode.remote(list(prompts[part]), every[part])] = (start, worker)
                (ready, *_), _ = self._ray.wait(list(running), num_returns=1)
                start, worker = running.pop(ready)
                idle.append(worker)
                found, failure = self._ray.get(ready)
                for completion in found:
                    yield replace(completion, prompt_index=completion.prompt_index + start)
                if failure is not None:
                    raise _rebuilt(failure, start)
        finally:
            for reference in running:
                self._ray.cancel(reference)


class _Worker:
    """What an actor does. Errors are returned and not raised, since Ray would wrap them in one of its own."""

    def __init__(self, config: AuditConfig, model: str, threads: int | None) -> None:
        collect_rarely()
        import torch

        if threads is not None:
            os.environ["EDDECODE_THREADS"] = str(
                threads
            )  # or the sampler would choose by a trial, beside the others
            torch.set_num_threads(threads)
        self._failure: _Failure | None = None
        try:
            self._sampler = load_sampler(config, model)
        except EddecodeError as error:
            self._failure = _Failure.of(error)

    def process(self) -> int:
        """The process id."""
        return os.getpid()

    def record(self) -> Mapping[str, Any]:
        """What was fitted for an attack; empty for other models."""
        return dict(getattr(self._sampler, "record", {}))

    def failure(self) -> _Failure | None:
        """Why the models could not be loaded; None: they are loaded."""
        return self._failure

    def decode(self, prompts: list[Any], params: list[Any]) -> tuple[list[Completion], _Failure | None]:
        """All completions of a part, or those before an error and the error."""
        found: list[Completion] = []
        try:
            for completion in self._sampler.as_completed(prompts, params):
                found.append(completion)
        except EddecodeError as error:
            return found, _Failure.of(error)
        return found, None


@dataclass(frozen=True)
class _Failure:
    """An error in a form that travels: `kind` is the class, `fields` are the attributes."""

    kind: type[EddecodeError]
    arguments: tuple[Any, ...]
    fields: dict[str, Any]

    @classmethod
    def of(cls, error: EddecodeError) -> _Failure:
        return cls(type(error), error.args, dict(vars(error)))


def _rebuilt(failure: _Failure, start: int) -> EddecodeError:
    """The error, with the prompt's index in the call of all parts."""
    error = failure.kind.__new__(failure.kind)
    error.args = failure.arguments
    vars(error).update(failure.fields)
    if isinstance(error, PromptRelatedError) and error.prompt_index is not None:
        error.prompt_index += start
    return error


def threads_per_worker(cores: int, count: int) -> int:
    """Threads of each worker on this machine: what the user has set, else an equal share of the cores."""
    own = set_by_user()
    return max(1, cores // count) if own is None else own[1]


def _started(workers: Workers) -> Any:
    """Ray, connected. It is told to report nothing about its use."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError("--workers needs Ray; install it: pip install 'eddecode[ray]'") from None
    if not ray.is_initialized():
        options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if workers.address == "local":
            cores = max(workers.count, allowed_threads())
            options |= {"num_cpus": cores, "include_dashboard": False}
        try:
            ray.init(address=workers.address, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"Ray at {workers.address} cannot be reached: {error}") from error
    return ray


def _check_free(ray: Any, cores: int) -> None:
    """Refuse a cluster whose cores are taken: Ray would wait for them without end."""
    free = int(ray.available_resources().get("CPU", 0))
    if free < cores:
        raise ConfigError(
            f"the cluster has {free} free cores, and {cores} workers need one each; ask for fewer workers, or wait"
        )


def _gpus_per_worker(ray: Any, config: AuditConfig, count: int) -> float:
    """GPUs that each worker asks for: all workers share those that are there; none where the device is a CPU."""
    gpus = float(ray.cluster_resources().get("GPU", 0))
    if not gpus or config.device == "cpu":
        return 0.0
    return gpus / count if gpus < count else float(int(gpus // count))


def _stop(ray: Any, workers: Sequence[Any]) -> None:
    """End the actors, so that their models are freed."""
    if ray.is_initialized():
        for worker in workers:
            ray.kill(worker)
