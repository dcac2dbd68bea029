"""The readable part of an MCAP file that has lost its end, as a recorder leaves it that was killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from mcap.exceptions import EndOfFile
from mcap.reader import NonSeekingReader
from mcap.records import Channel, Schema
from rosbags.interfaces import Connection, ConnectionExtRosbag2, MessageDefinition, MessageDefinitionFormat

FORMATS = {'ros2msg': MessageDefinitionFormat.MSG, 'ros2idl': MessageDefinitionFormat.IDL}


class SalvagedMcap:
    """What can be read of an MCAP file from its beginning, with the interface of `rosbags.rosbag2.Reader`.

    reason: why the reading ended. count: messages read. start_time and end_time (exclusive) [ns].
    """

    def __init__(self, path: Path) -> None:
        self._messages: list[tuple[int, int, bytes]] = []
        channels: dict[int, tuple[Schema, Channel]] = {}
        self.reason = 'its index is missing'
        with path.open('rb') as file:
            try:
                for schema, channel, message in NonSeekingReader(file).iter_messages(log_time_order=False):
                    if schema is None or schema.encoding not in FORMATS:
                        continue
                    channels[channel.id] = (schema, channel)
                    self._messages.append((message.log_time, channel.id, message.data))
            except EndOfFile:
                self.reason = 'it ends in the middle of a record'
            except Exception as error:  # Cut or garbled bytes break the reader anywhere: this is its end.
                self.reason = f'{type(error).__name__}: {error}' if str(error) else type(error).__name__
        self._messages.sort(key=lambda item: item[0])
        counts = Counter(channel for _, channel, _ in self._messages)
        self.connections = [
            _connection(schema, channel, counts[channel.id]) for schema, channel in channels.values()
        ]

    @property
    def count(self) -> int:
        return len(self._messages)

    @property
    def start_time(self) -> int:
        return self._messages[0][0]

    @property
    def end_time(self) -> int:
        return self._messages[-1][0] + 1

    def messages(self, connections: Collection[Connection]) -> Iterator[tuple[Connection, int, bytes]]:
        wanted = {connection.id: connection for connection in connections}
        for time_ns, channel, data in self._messages:
            if channel in wanted:
                yield wanted[channel], time_ns, data

    def close(self) -> None:
        self._messages.clear()


def _connection(schema: Schema, channel: Channel, count: int) -> Connection:
    return Connection(
        id=channel.id,
        topic=channel.topic,
        msgtype=schema.name,
        msgdef=MessageDefinition(FORMATS[schema.encoding], schema.data.decode()),
        digest='',
        msgcount=count,
        ext=ConnectionExtRosbag2(channel.message_encoding, []),
        owner=None,
    )
