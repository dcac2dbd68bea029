"""Marks the stages of the work for a profiler, when asked: `with stage('take'): ...`.

One tracer serves the whole process, because stages are marked deep in code that knows of no node. While none
is in use a mark costs a function call. Names are those of InferenceStats where it has the stage.
"""

from __future__ import annotations

import importlib
import json
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Protocol

from flashrt_ros.configuration.tracing import Tracing
from flashrt_ros.errors import ConfigError

KEPT = 100_000
"""Stages that a file holds, the latest ones: some minutes of a streamer at 100 Hz, and about 20 MB."""


class Tracer(Protocol):
    """Where stages are marked. Any thread may mark, also stages within stages."""

    def stage(self, name: str) -> AbstractContextManager[Any]: ...

    def finish(self) -> str:
        """Bring out what is kept, as often as wanted. Returns a sentence for people, or ''."""
        ...


_NOTHING: AbstractContextManager[Any] = nullcontext()
_tracer: Tracer | None = None


def stage(name: str) -> AbstractContextManager[Any]:
    """Marks what is done inside as a stage of this name."""
    return _NOTHING if _tracer is None else _tracer.stage(name)


def use(tracer: Tracer | None) -> None:
    """Mark stages with this one from now on, in the whole process; with None nowhere."""
    global _tracer
    _tracer = tracer


def tracer_of(settings: Tracing, process: str) -> Tracer | None:
    """The tracer that a configuration asks for. process: name of the node, for people and for the file.

    Raises ConfigError where it cannot work.
    """
    if settings.to == 'nvtx':
        return NvtxTracer()
    if settings.to == 'file' and settings.folder is not None:
        return FileTracer(Path(settings.folder), process)
    return None


class NvtxTracer:
    """NVTX ranges of the domain 'flashrt_ros'. Without a tool that listens they are nothing."""

    def __init__(self) -> None:
        try:
            self._nvtx = importlib.import_module('nvtx')
        except ImportError as error:
            raise ConfigError(
                f'the Python package nvtx cannot be imported ({error})',
                'tracing.to',
                "install it (pip install nvtx), or choose to: 'file'",
            ) from None
        self._ranges: dict[str, AbstractContextManager[Any]] = {}

    def stage(self, name: str) -> AbstractContextManager[Any]:
        known = self._ranges.get(name)
        if known is None:
            # Holds nothing of one range, so it can be entered again within itself and by other threads.
            known = self._ranges[name] = self._nvtx.annotate(name, domain='flashrt_ros')
        return known

    def finish(self) -> str:
        return ''


class FileTracer:
    """Keeps the latest stages in memory; `finish` writes them in Chrome's trace format, which Perfetto reads.

    Times are of the host's monotonic clock, so that the traces of its processes can be laid together.
    """

    def __init__(self, folder: Path, process: str) -> None:
        self._file, self._process = folder / f'{process}.json', process
        self._stages: deque[tuple[int, int, int, str]] = deque(maxlen=KEPT)
        self._threads: dict[int, str] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file.touch()
        except OSError as error:
            raise ConfigError(
                f'traces cannot be written there ({error})',
                'tracing.folder',
                'give a folder that is writable',
            ) from None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        thread, begin = threading.get_native_id(), perf_counter_ns()
        try:
            yield
        finally:
            self._stages.append((begin, perf_counter_ns() - begin, thread, name))
            if thread not in self._threads:
                self._threads[thread] = threading.current_thread().name

    def finish(self) -> str:
        process, kept = os.getpid(), sorted(self._stages)
        names = [('process_name', 0, self._process)]
        names += [('thread_name', thread, name) for thread, name in self._threads.items()]
        try:
            with open(self._file, 'w', encoding='utf-8') as file:
                for number, (kind, thread, name) in enumerate(names):
                    event = {'ph': 'M', 'name': kind, 'pid': process, 'tid': thread, 'args': {'name': name}}
                    file.write((',\n' if number else '[\n') + json.dumps(event))
                for begin, length, thread, name in kept:
                    times = {'ts': begin / 1e3, 'dur': length / 1e3}
                    event = {'ph': 'X', 'name': name, 'pid': process, 'tid': thread, **times}
                    file.write(',\n' + json.dumps(event))
                file.write('\n]\n')
        except OSError as error:
            return f'the trace is lost: {self._file}: {error}'
        return f'{len(kept)} stages in {self._file}' + (', the latest' if len(kept) == KEPT else '')
