"""The readable part of an MCAP file that has lost its end, as a recorder leaves it that was killed."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from mcap.exceptions import EndOfFile
from mcap.reader import NonSeekingReader
from mcap.records import Channel, Schema
from rosbags.interfaces import Connection, ConnectionExtRosbag2, MessageDefinition, MessageDefinitionFormat

FORMATS = {'ros2msg': MessageDefinitionFormat.MSG, 'ros2idl': MessageDefinitionFormat.IDL}

REORDERED_NS = 2_000_000_000
"""A message is put in its place if it lies in the file at most so much later than it belongs."""


class SalvagedMcap:
    """What can be read of an MCAP file from its beginning, with the interface of `rosbags.rosbag2.Reader`.

    reason: why the reading ended. count: messages read. start_time and end_time (exclusive) [ns].
    The file is read once to learn what it holds and again for `messages`, so that memory stays small.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.reason = 'its index is missing'
        channels: dict[int, tuple[Schema, Channel]] = {}
        counts: Counter[int] = Counter()
        self.start_time, self.end_time = 2**63 - 1, 0
        for schema, channel, time_ns, _ in self._scan():
            channels[channel.id] = (schema, channel)
            counts[channel.id] += 1
            self.start_time, self.end_time = min(self.start_time, time_ns), max(self.end_time, time_ns + 1)
        self.count = counts.total()
        self.connections = [
            _connection(schema, channel, counts[channel.id]) for schema, channel in channels.values()
        ]

    def messages(
        self, connections: Collection[Connection], start: int | None = None, stop: int | None = None
    ) -> Iterator[tuple[Connection, int, bytes]]:
        wanted = {connection.id: connection for connection in connections}
        begin, end = start or 0, 2**63 - 1 if stop is None else stop
        # Time, place in the file, channel, data: the place settles ties, and data is never compared.
        waiting: list[tuple[int, int, int, bytes]] = []
        for place, (_, channel, time_ns, data) in enumerate(self._scan()):
            if channel.id not in wanted or not begin <= time_ns < end:
                continue
            heapq.heappush(waiting, (time_ns, place, channel.id, data))
            while time_ns - waiting[0][0] > REORDERED_NS:
                first = heapq.heappop(waiting)
                yield wanted[first[2]], first[0], first[3]
        while waiting:
            first = heapq.heappop(waiting)
            yield wanted[first[2]], first[0], first[3]

    def close(self) -> None:
        """Nothing stays open between two readings."""

    def _scan(self) -> Iterator[tuple[Schema, Channel, int, bytes]]:
        with self._path.open('rb') as file:
            try:
                for schema, channel, message in NonSeekingReader(file).iter_messages(log_time_order=False):
                    if schema is not None and schema.encoding in FORMATS:
                        yield schema, channel, message.log_time, message.data
            except EndOfFile:
                self.reason = 'it ends in the middle of a record'
            except Exception as error:  # Cut or garbled bytes break the reader anywhere: this is its end.
                self.reason = f'{type(error).__name__}: {error}' if str(error) else type(error).__name__


def _connection(schema: Schema, channel: Channel, count: int) -> Connection:
    return Connection(
        id=channel.id,
        topic=channel.topic,
        msgtype=schema.name,
        msgdef=MessageDefinition(FORMATS[schema.encoding], schema.data.decode(errors='replace')),
        digest='',
        msgcount=count,
        ext=ConnectionExtRosbag2(channel.message_encoding, []),
        owner=None,
    )
