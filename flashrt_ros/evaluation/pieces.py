"""The storage files of a bag as one source: one or many, MCAP or sqlite3, compressed or not, whole or cut.

What lies in the files decides, not metadata.yaml, which a recorder that was killed has not written; it is
asked only which files there should be.
"""

from __future__ import annotations

import heapq
import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import yaml
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader

from flashrt_ros.evaluation.salvage import SalvagedMcap

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PACKED = '.zstd'
PATTERNS = ('*.mcap', '*.db3', '*.mcap.zstd', '*.db3.zstd')
ZSTD_MAGIC = b'\x28\xb5\x2f\xfd'

Item = tuple[Connection, int, bytes]


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
    """The storage files of a bag, in the order of their numbers.

    A recorder that was killed while it compressed a file leaves that file and a part of its compressed copy:
    the file counts.
    """
    found = [path for pattern in PATTERNS for path in directory.glob(pattern)]
    plain = {path.name for path in found}
    found = [path for path in found if not (path.suffix == PACKED and path.stem in plain)]
    return sorted(found, key=lambda path: (len(path.name), path.name))


def missing_files(directory: Path) -> list[str]:
    """Storage files that metadata.yaml names and that are not there; none where it cannot be read."""
    try:
        about = yaml.safe_load((directory / 'metadata.yaml').read_text())
        names = [Path(name).name for name in about['rosbag2_bagfile_information']['relative_file_paths']]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return []
    there = {path.name for path in files_of(directory)}
    return [name for name in names if not {name, name.removesuffix(PACKED), name + PACKED} & there]


class Pieces:
    """Several storage files read as one bag, in the order of time.

    faults: what is wrong with which of them; only their readable part is used.
    """

    def __init__(self, files: list[Path]) -> None:
        self._stack = ExitStack()
        self.faults: list[str] = []
        try:
            opened = [source for source in map(self._open, files) if source is not None]
        except BaseException:
            self._stack.close()
            raise
        self.connections = _merged(opened)
        filled = [source for source in opened if source.end_time > source.start_time]
        self._sources = sorted(filled, key=lambda source: source.start_time)

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
        parts = []
        for source in self._sources:
            own = [c for c in source.connections if (c.topic, c.msgtype) in wanted]
            if own and (start is None or source.end_time > start):
                parts.append((source.start_time, source.messages(own, start, stop)))
        for connection, time_ns, data in _by_time(parts):
            # CDR never begins as a zstd frame does: the messages of this bag are compressed one by one.
            plain = zstd.decompress(data) if data[:4] == ZSTD_MAGIC else data
            yield wanted[connection.topic, connection.msgtype], time_ns, plain

    def close(self) -> None:
        self._stack.close()

    def _open(self, file: Path) -> Source | None:
        """The file, or what is left of it. None, and a fault, where nothing is."""
        plain = file
        try:
            if file.suffix == PACKED:
                plain = Path(self._stack.enter_context(TemporaryDirectory(prefix='flashrt_bag_')), file.stem)
                _unpack(file, plain)
            reader = Reader(plain)
            reader.open()
        except Exception as error:  # The reader raises whatever its struct, text and database calls do.
            return self._salvaged(file, plain, error)
        self._stack.callback(reader.close)
        if lost := sum(not _is_named(connection) for connection in reader.connections):
            self.faults.append(
                f'{file.name}: {lost} of {len(reader.connections)} topics have no name or type'
            )
        return reader

    def _salvaged(self, file: Path, plain: Path, error: Exception) -> Source | None:
        if plain.suffix != '.mcap' or not plain.exists():
            self.faults.append(f'{file.name}: {error}')
            return None
        source = SalvagedMcap(plain)
        seconds = max(0.0, (source.end_time - source.start_time) / 1e9)
        left = f'only {source.count} messages, {seconds:.3f} s, from its beginning'
        self.faults.append(f'{file.name}: {source.reason}: {left if source.count else "nothing is readable"}')
        return source


def _unpack(file: Path, target: Path) -> None:
    """Decompress a file; what had been written when it raises is the part that could be."""
    with zstd.open(file, 'rb') as packed, target.open('wb') as plain:
        shutil.copyfileobj(packed, plain)


def _by_time(parts: list[tuple[int, Iterator[Item]]]) -> Iterator[Item]:
    """The items of several iterators, each in the order of time, in the order of time.

    parts: (not before, iterator), sorted. An iterator is asked for its first item when its time has come, so
    that of a long recording few files are in use at once.
    """
    waiting: list[tuple[int, int, Item, Iterator[Item]]] = []
    for number, (begin, iterator) in enumerate([*parts, (2**63, iter(()))]):
        while waiting and waiting[0][0] < begin:
            _, place, item, source = waiting[0]
            yield item
            following = next(source, None)
            if following is None:
                heapq.heappop(waiting)
            else:
                heapq.heapreplace(waiting, (following[1], place, following, source))
        first = next(iterator, None)
        if first is not None:
            heapq.heappush(waiting, (first[1], number, first, iterator))


def _is_named(connection: Connection) -> bool:
    """What a damaged database has for a name is anything, or nothing."""
    return isinstance(connection.topic, str) and isinstance(connection.msgtype, str)


def _merged(sources: list[Source]) -> list[Connection]:
    """One connection for each topic and type, of those that are named."""
    merged: dict[tuple[str, str], Connection] = {}
    for source in sources:
        for connection in filter(_is_named, source.connections):
            key = (connection.topic, connection.msgtype)
            earlier = merged[key].msgcount if key in merged else 0
            merged[key] = connection._replace(id=len(merged), msgcount=earlier + connection.msgcount)
    return list(merged.values())
