"""Streams, events and captures of a simulated CUDA device: who must wait for whom, and who does not.

The simulation runs everything at once, in the order in which it is launched. What a real device could do in another
order is found by vector clocks: each stream counts its launches, and knows how many of the others' come before its next
one. Two launches that touch the same memory, one of them writing, must be ordered; so must the last use of memory that
was freed and the next allocation on the stream that it was allocated on, which may be given that memory. And copies
that nobody waited for arrive late: a pinned tensor holds nonsense until its copy was waited for.

Sources: CUDA's rules for captures (programming guide, "CUDA graphs"), torch's caching allocator (its notes on CUDA).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import torch

Clock = dict["SimulatedStream", int]


class SimulatedCudaError(RuntimeError):
    """What CUDA or torch would refuse, or what could go wrong on a device that runs streams side by side."""


def merge(clock: Clock, other: Clock) -> None:
    """Have a clock know what another one knows."""
    for stream, count in other.items():
        clock[stream] = max(clock.get(stream, 0), count)


@dataclass(eq=False)
class Uses:
    """The last launches that wrote and read a piece of memory, per stream."""

    writes: Clock = field(default_factory=dict)
    reads: Clock = field(default_factory=dict)

    def not_before(self, clock: Clock, *, also_reads: bool) -> SimulatedStream | None:
        """A stream whose use of the memory does not come before what a clock has seen."""
        for uses in (self.writes, self.reads) if also_reads else (self.writes,):
            for stream, count in uses.items():
                if clock.get(stream, 0) < count:
                    return stream
        return None


class Block:
    """Memory of a device: of one tensor and its views."""

    def __init__(self, stream: SimulatedStream) -> None:
        self.stream, self.uses, self.recorded = stream, Uses(), set[SimulatedStream]()
        stream.reuse_freed()

    def record_stream(self, stream: SimulatedStream) -> None:
        """The allocator waits for a stream before it gives the memory away."""
        self.recorded.add(stream)

    def __del__(self) -> None:
        for uses in (self.uses.writes, self.uses.reads):
            for stream in self.recorded:
                uses.pop(stream, None)
        if self.uses.reads or self.uses.writes:
            self.stream.freed.append(self.uses)


def _own_uses(block: Block) -> Uses:
    return block.uses


class SimulatedStream:
    """A stream of a device."""

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.cuda = SIMULATIONS[-1]
        self.device = self.cuda.device(device)
        self.clock: Clock = {self: 0}
        self.late: list[
            tuple[int, torch.Tensor, torch.Tensor]
        ] = []  # (launch, target, values) not waited for
        self.freed: list[Uses] = []
        self.capture: Any = None
        self.cuda.streams.append(self)

    def launch(self, reads: list[Block], writes: list[Block], what: Any) -> int:
        """Count a launch that touches memory; returns its number.

        Raises:
            SimulatedCudaError: another stream uses that memory, and nobody waited.
        """
        merge(self.clock, self.cuda.host)
        uses_of = _own_uses if self.capture is None else self.capture.uses_of
        for blocks, also_reads in ((reads, False), (writes, True)):
            for block in blocks:
                if uses_of(block).not_before(self.clock, also_reads=also_reads) is not None:
                    raise SimulatedCudaError(
                        f"{what} touches memory that another stream uses: wait for it first"
                    )
        self.clock[self] += 1
        for block in reads:
            uses_of(block).reads[self] = self.clock[self]
        for block in writes:
            uses_of(block).writes[self] = self.clock[self]
        return self.clock[self]

    def reuse_freed(self) -> None:
        """What an allocation does: memory that was freed on this stream may be given to it.

        Raises:
            SimulatedCudaError: another stream may still use it.
        """
        freed, self.freed = self.freed, []
        known = dict(self.clock)
        merge(known, self.cuda.host)
        for uses in freed:
            if uses.not_before(known, also_reads=True) is not None:
                raise SimulatedCudaError(
                    "memory was freed while another stream may use it, and is allocated again: keep it or record_stream"
                )

    def wait_stream(self, stream: SimulatedStream) -> None:
        """What comes next on this stream comes after all that the other was given so far."""
        self._join(stream.clock, stream.capture)

    def wait_event(self, event: SimulatedEvent) -> None:
        """What comes next on this stream comes after what the event stands for."""
        self._join(event.clock, event.capture)

    def record_event(self, event: SimulatedEvent | None = None) -> SimulatedEvent:
        """An event that stands for all that this stream was given so far."""
        made = SimulatedEvent() if event is None else event
        made.record(self)
        return made

    def synchronize(self) -> None:
        """The host waits for this stream."""
        self.cuda.host_waits(self.clock, "a stream's synchronize()")

    def _join(self, clock: Clock, capture: Any) -> None:
        if self.capture is not None and capture is not self.capture:
            raise SimulatedCudaError(
                "cudaErrorStreamCaptureIsolation: a captured stream waits for one that is not"
            )
        if capture is not None and self.capture is None:
            self.capture = capture
            capture.streams.append(self)
        merge(self.clock, clock)

    def __enter__(self) -> SimulatedStream:
        self.cuda.stack.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.cuda.stack.remove_last(self)


class SimulatedEvent:
    """An event."""

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self.cuda = SIMULATIONS[-1]
        self.clock: Clock = {}
        self.capture: Any = None

    def record(self, stream: SimulatedStream | None = None) -> None:
        """It stands for all that a stream, by default the current one, was given so far."""
        own = self.cuda.current_stream() if stream is None else stream
        self.clock, self.capture = dict(own.clock), own.capture

    def wait(self, stream: SimulatedStream | None = None) -> None:
        """See `SimulatedStream.wait_event`."""
        (self.cuda.current_stream() if stream is None else stream).wait_event(self)

    def synchronize(self) -> None:
        """The host waits for it."""
        self.cuda.host_waits(self.clock, "an event's synchronize()")

    def query(self) -> bool:
        """Whether it is done: never before somebody waited for it."""
        return all(self.cuda.host.get(stream, 0) >= count for stream, count in self.clock.items())

    def elapsed_time(self, end: SimulatedEvent) -> float:
        """Milliseconds until another event: a simulation has no time of its own."""
        return 1.0


class StreamStack(threading.local):
    """The streams that are current, the innermost last, of each thread."""

    def __init__(self) -> None:
        self.streams: list[SimulatedStream] = []

    def append(self, stream: SimulatedStream) -> None:
        self.streams.append(stream)

    def remove_last(self, stream: SimulatedStream) -> None:
        assert self.streams.pop() is stream


SIMULATIONS: list[Any] = []  # the ones in use, the last is the one that counts
