"""Recording a sequence of launches once and replaying it as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

Stage = tuple[str, Callable[[], None]]
"""A stage's name and the function that launches its work on the current stream."""


class StagedGraph:
    """One graph of several stages in order, and, recorded beside it, a graph for each stage alone.

    `replay` is the whole in one launch. `time_stages` replays the stages one by one with events between them,
    which costs the normal replay nothing. The functions must launch on the current stream, allocate nothing that
    outlives them and synchronise nowhere.
    """

    def __init__(self, stages: Sequence[Stage], stream: torch.cuda.Stream, pool: tuple[int, int]) -> None:
        self.names = tuple(name for name, _ in stages)
        self._stages, self._stream, self._pool = stages, stream, pool
        self._warm_up()
        self._whole = self._capture([work for _, work in stages])
        self._parts: list[torch.cuda.CUDAGraph] | None = None

    def replay(self) -> None:
        """Launch the graph on its stream; returns at once."""
        with torch.cuda.stream(self._stream):
            self._whole.replay()

    def time_stages(self) -> dict[str, float]:
        """Replay stage by stage and wait; returns seconds by stage name."""
        if self._parts is None:
            self._parts = [self._capture([work]) for _, work in self._stages]
        events = [torch.cuda.Event(enable_timing=True) for _ in range(len(self._parts) + 1)]
        with torch.cuda.stream(self._stream):
            events[0].record()
            for part, event in zip(self._parts, events[1:], strict=True):
                part.replay()
                event.record()
        events[-1].synchronize()
        seconds = [before.elapsed_time(after) / 1e3 for before, after in pairwise(events)]
        return dict(zip(self.names, seconds, strict=True))

    def _warm_up(self) -> None:
        """Run once uncaptured: libraries create their handles and workspaces, kernels are loaded."""
        with torch.cuda.stream(self._stream):
            for _, work in self._stages:
                work()
        self._stream.synchronize()

    def _capture(self, works: Sequence[Callable[[], None]]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            for work in works:
                work()
        return graph
