"""Recording a sequence of launches once and replaying it as one CUDA graph."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch

Stage = tuple[str, Callable[[], None]]
"""A stage's name and the function that launches its work on the current stream."""


class StagedGraph:
    """One graph of several stages in order.

    timed: record an event between stages inside the graph, for `stage_seconds`; without, there are none. The
    functions must launch on the current stream, allocate nothing that outlives them and synchronise nowhere.
    What the stream that is current now was given to do, such as filling their buffers, is waited for.
    """

    def __init__(
        self, stages: Sequence[Stage], stream: torch.cuda.Stream, pool: Any = None, timed: bool = False
    ) -> None:
        self.names = tuple(name for name, _ in stages)
        self._works = [work for _, work in stages]
        self._stream = stream
        self._events = [_graph_event() for _ in range(len(stages) + 1)] if timed else []
        self._warm_up()
        self._graph = torch.cuda.CUDAGraph()
        with _nothing_collected(), torch.cuda.graph(self._graph, pool=pool, stream=stream):
            self._record()
        self._launch = _launcher(self._graph, stream)

    def launch(self) -> None:
        """Launch the graph on its stream; returns at once. Raises RuntimeError where the GPU fails."""
        self._launch()

    def stage_seconds(self) -> dict[str, float]:
        """Seconds of each stage in the last replay, which must have finished; empty unless timed."""
        seconds = [before.elapsed_time(after) / 1e3 for before, after in pairwise(self._events)]
        return dict(zip(self.names, seconds, strict=False))

    def seconds_until(self, later: StagedGraph) -> float:
        """From the beginning of the last replay to the end of a later one's, which must have finished. Both
        are timed."""
        return float(self._events[0].elapsed_time(later._events[-1])) / 1e3

    def _warm_up(self) -> None:
        """Run once uncaptured: libraries create their handles and workspaces, kernels are loaded."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for work in self._works:
                work()
        self._stream.synchronize()

    def _record(self) -> None:
        for i, work in enumerate(self._works):
            self._mark(i)
            work()
        self._mark(len(self._works))

    def _mark(self, index: int) -> None:
        if self._events:
            self._events[index].record()


def _launcher(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> Callable[[], None]:
    """torch launches on its current stream, and to make this one current takes it 0.1 ms in a thread that has
    just woken, as long as the kernels that turn camera frames into patches."""
    from cuda.bindings import runtime

    launch, executable, handle = runtime.cudaGraphLaunch, graph.raw_cuda_graph_exec(), stream.cuda_stream

    def call() -> None:
        (status,) = launch(executable, handle)
        if int(status) != 0:
            raise RuntimeError(f'CUDA error: {status.name}')

    return call


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Keeps garbage where it is: the memory of another engine, given back during a capture, would end it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _graph_event() -> torch.cuda.Event:
    """An event that becomes a node of the graph, so that every replay records it."""
    return torch.cuda.Event(enable_timing=True, external=True)
