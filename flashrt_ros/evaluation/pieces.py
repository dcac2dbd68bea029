"""A bag's directory whose metadata.yaml is missing: its files, one after the other, as one source.

Has the interface of `rosbags.rosbag2.Reader`. A recorder that was killed leaves such a directory.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader

from flashrt_ros.evaluation.salvage import SalvagedMcap

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PATTERNS = ('*.mcap', '*.db3', '*.mcap.zstd', '*.db3.zstd')


class Source(Protocol):
    """What a bag is read from. Times in ns; end_time is exclusive."""

    @property
    def connections(self) -> list[Connection]: ...
    @property
    def start_time(self) -> int: ...
    @property
    def end_time(self) -> int: ...

    def messages(
        self, connections: Collection[Connection], start: int | None = None, stop: int | None = None
    ) -> Iterator[tuple[Connection, int, bytes]]: ...

    def close(self) -> None: ...


def files_of(directory: Path) -> list[Path]:
    """The storage files of a bag, in the order of their numbers."""
    found = [path for pattern in PATTERNS for path in directory.glob(pattern)]
    return sorted(found, key=lambda path: (len(path.name), path.name))


class Pieces:
    """Several storage files read as one bag.

    faults: what is wrong with which of them, where only their readable part is used.
    """

    def __init__(self, files: list[Path], readable_part: bool) -> None:
        self._stack = ExitStack()
        self.faults: list[str] = []
        try:
            opened = [self._open(file, readable_part) for file in files]
        except BaseException:
            self._stack.close()
            raise
        filled = [source for source in opened if source.connections and source.end_time > source.start_time]
        self._sources = sorted(filled, key=lambda source: source.start_time)
        self.connections = _merged(self._sources)

    @property
    def start_time(self) -> int:
        return min((source.start_time for source in self._sources), default=2**63 - 1)

    @property
    def end_time(self) -> int:
        return max((source.end_time for source in self._sources), default=0)

    def messages(
        self, connections: Collection[Connection], start: int | None = None, stop: int | None = None
    ) -> Iterator[tuple[Connection, int, bytes]]:
        wanted = {(connection.topic, connection.msgtype): connection for connection in connections}
        for source in self._sources:
            own = [c for c in source.connections if (c.topic, c.msgtype) in wanted]
            if own:
                for connection, time_ns, data in source.messages(own, start, stop):
                    yield wanted[connection.topic, connection.msgtype], time_ns, data

    def close(self) -> None:
        self._stack.close()

    def _open(self, file: Path, readable_part: bool) -> Source:
        plain = self._decompressed(file) if file.suffix == '.zstd' else file
        try:
            reader = Reader(plain)
            reader.open()
        except Exception:
            if not readable_part or plain.suffix != '.mcap':
                raise
            salvaged = SalvagedMcap(plain)
            self.faults.append(f'{file.name}: {salvaged.reason}')
            self._stack.callback(salvaged.close)
            return salvaged
        self._stack.callback(reader.close)
        return reader

    def _decompressed(self, file: Path) -> Path:
        folder = self._stack.enter_context(TemporaryDirectory(prefix='flashrt_bag_'))
        target = Path(folder, file.stem)
        with zstd.open(file, 'rb') as packed, target.open('wb') as plain:
            shutil.copyfileobj(packed, plain)
        return target


def _merged(sources: list[Source]) -> list[Connection]:
    merged: dict[tuple[str, str], Connection] = {}
    for source in sources:
        for connection in source.connections:
            key = (connection.topic, connection.msgtype)
            earlier = merged[key].msgcount if key in merged else 0
            merged[key] = connection._replace(id=len(merged), msgcount=earlier + connection.msgcount)
    return list(merged.values())
