"""Reading a rosbag2 without ROS: typed messages in the order of time, and the readable part of a broken bag.

    with open_bag('demo/episode') as bag:
        for record in bag.records(['/joint_states']):
            print(record.time_ns, bag.decode(record).position)

MCAP and sqlite3 bags, split and compressed ones too, are read through `rosbags`. Messages are decoded by the
definitions that the bag itself carries, so that messages of any package and of any ROS release can be read;
where a bag carries none (sqlite3 before ROS 2 Iron), by those that `rosbags` knows by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosbags.interfaces import Connection, MessageDefinitionFormat, QosReliability
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore

from flashrt_ros.errors import FlashRTError
from flashrt_ros.evaluation.pieces import Pieces, Source, files_of, missing_files

SKIP_FIRST_NS, SKIP_MOST_NS = 1_000_000, 60_000_000_000
"""Where a part of a bag cannot be read, reading goes on this much later, then twice as much, up to the
second."""

LONGEST_S = 86_400.0
"""A bag that is longer has a damaged time: whatever is laid out over its length would not fit into memory."""


class BagError(FlashRTError):
    """A bag cannot be read, or not to its end."""


@dataclass(frozen=True)
class Topic:
    """A topic of a bag. definition: text of the message's .msg file and of those it uses.

    reliable: whether a publisher of it offered reliable delivery; True where the bag does not say.
    """

    name: str
    type: str
    count: int
    definition: str
    reliable: bool


@dataclass(frozen=True)
class Record:
    """One message as it lies in the bag: CDR bytes. time_ns: when it was recorded [ns of the bag's clock]."""

    topic: str
    time_ns: int
    data: bytes


class Bag:
    """An open bag. topics: name -> Topic. start_ns, end_ns: times of the first and the last message.

    fault: None, or what is wrong with a bag of which only the readable part is used.
    """

    def __init__(self, path: Path, source: Source, fault: BagError | None) -> None:
        self.path, self.fault = path, fault
        self._source = source
        self._types = get_typestore(Stores.EMPTY)
        self._fallback = get_typestore(Stores.ROS2_KILTED)
        self._unreadable: dict[str, BagError] = {}
        self.topics: dict[str, Topic] = {}
        for connection in source.connections:
            earlier = self.topics.get(connection.topic)
            self.topics[connection.topic] = _topic(connection, earlier.count if earlier else 0)
            self._learn(connection.msgtype, connection.msgdef.format, connection.msgdef.data)

    @property
    def start_ns(self) -> int:
        return self._source.start_time

    @property
    def end_ns(self) -> int:
        # rosbags counts the end as exclusive.
        return max(self._source.end_time - 1, self.start_ns)

    @property
    def duration_s(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9

    def records(
        self,
        topics: Collection[str] | None = None,
        start_ns: int | None = None,
        stop_ns: int | None = None,
        on_damage: Callable[[BagError], None] | None = None,
    ) -> Iterator[Record]:
        """The messages of these topics (None: of all) in the order of time, in [start_ns, stop_ns).

        on_damage: told of every part that cannot be read; reading then goes on behind it.
        Raises BagError for a topic that the bag lacks, and, without on_damage, where the bag is damaged.
        """
        for topic in topics or ():
            self._expect(topic)
        wanted = [c for c in self._source.connections if topics is None or c.topic in topics]
        if not wanted:
            return
        last_ns, skip_ns = start_ns if start_ns is not None else self.start_ns, SKIP_FIRST_NS
        source = iter(self._source.messages(wanted, start_ns, stop_ns))
        end_ns = self.end_ns if stop_ns is None else min(stop_ns - 1, self.end_ns)
        while True:
            try:
                with self._blame(f'after {self._seconds(last_ns)}'):
                    item = next(source, None)
            except BagError as error:
                if on_damage is None:
                    raise
                if skip_ns == SKIP_FIRST_NS:
                    on_damage(error)
                if last_ns + skip_ns > end_ns:
                    return
                source = iter(self._source.messages(wanted, last_ns + skip_ns, stop_ns))
                skip_ns = min(2 * skip_ns, skip_ns + SKIP_MOST_NS)
                continue
            if item is None:
                return
            connection, last_ns, data = item
            skip_ns = SKIP_FIRST_NS
            yield Record(connection.topic, last_ns, bytes(data))

    def decode(self, record: Record) -> Any:
        """The message as an object with the fields of its definition; numeric arrays are numpy's.

        Raises BagError for bytes that do not fit the definition.
        """
        kind = self.topics[record.topic].type
        if kind in self._unreadable:
            raise self._unreadable[kind]
        with self._blame(f'in {record.topic} at {self._seconds(record.time_ns)}'):
            known = self._types if kind in self._types.fielddefs else self._fallback
            return known.deserialize_cdr(record.data, kind)

    def messages(self, topic: str) -> Iterator[tuple[int, Any]]:
        """(time_ns, message) of one topic."""
        for record in self.records([topic]):
            yield record.time_ns, self.decode(record)

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> Bag:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _learn(self, name: str, kind: MessageDefinitionFormat, definition: str) -> None:
        if kind is MessageDefinitionFormat.NONE or not definition:
            return
        try:
            with self._blame(f'in the definition of {name}'):
                parse = get_types_from_idl if kind is MessageDefinitionFormat.IDL else None
                found: Mapping[str, Any] = (
                    parse(definition) if parse else get_types_from_msg(definition, name)
                )
                self._compare(found)
                known = self._types.fielddefs
                self._types.register({type_: fields for type_, fields in found.items() if type_ not in known})
        except BagError as error:
            self._unreadable[name] = error  # Only those who ask for a message of this type need to know.

    def _compare(self, found: Mapping[str, Any]) -> None:
        """A flipped bit may rename a field or change its type. Raises KeyError for one that is not ROS's.

        Fields that another release has added do no harm.
        """
        for kind in found.keys() & self._fallback.fielddefs.keys():
            fields = dict(found[kind][1])
            for name, type_ in self._fallback.fielddefs[kind][1]:
                if fields.get(name) != type_:
                    raise KeyError(f'{kind} has no field {name} as in ROS 2')

    def _expect(self, topic: str) -> None:
        if topic not in self.topics:
            there = ', '.join(sorted(self.topics)) or 'nothing'
            raise BagError(f"there is no topic '{topic}', only {there}", str(self.path), 'name one of those')

    def _seconds(self, time_ns: int) -> str:
        return f'{(time_ns - self.start_ns) / 1e9:.3f} s'

    @contextmanager
    def _blame(self, place: str) -> Iterator[None]:
        """The parsers of damaged bytes raise whatever their struct, text and array calls do."""
        try:
            yield
        except Exception as error:
            raise BagError(
                f'it is damaged {place} ({type(error).__name__}: {error})',
                str(self.path),
                'record it again, or copy it again from where it came',
            ) from error


def open_bag(path: Path | str, readable_part: bool = False) -> Bag:
    """Open a bag's directory, or one storage file of it.

    readable_part: of a bag that is damaged or not complete, take what is there; `Bag.fault` says what is
    missing. Raises BagError for anything that is not a complete bag, with how far it could be read.
    """
    path = Path(path)
    if not path.exists():
        raise BagError('there is no such file or directory', str(path), 'give the directory of a rosbag2')
    files = files_of(path) if path.is_dir() else [path]
    if not files:
        raise BagError(
            'it is no rosbag2 that can be read: it holds neither .mcap nor .db3 files',
            str(path),
            'give the directory of a rosbag2',
        )
    pieces = Pieces(files)
    fault = _fault_of(path, pieces)
    if fault is not None and (not readable_part or not pieces.connections):
        pieces.close()
        raise fault
    bag = Bag(path, pieces, fault)
    if bag.topics and (seconds := bag.duration_s) > LONGEST_S:
        bag.close()
        raise BagError(
            f'its first and last message lie {seconds / 86_400:,.0f} days apart: a time in it is damaged',
            str(path),
            'write the part between two times into another bag (ros2 bag convert)',
        )
    return bag


def _fault_of(path: Path, pieces: Pieces) -> BagError | None:
    faults = list(pieces.faults)
    if path.is_dir():
        faults += [f'{name} is missing' for name in missing_files(path)]
    if not faults:
        return None
    if not pieces.connections:
        return BagError(f'nothing in it can be read ({"; ".join(faults)})', str(path), 'record the bag again')
    return BagError(
        f'not all of it can be read ({"; ".join(faults)})',
        str(path),
        'copy it again if it was cut while copying, or ask for its readable part only',
    )


def _topic(connection: Connection, earlier: int) -> Topic:
    offered = getattr(connection.ext, 'offered_qos_profiles', [])
    reliable = all(qos.reliability is not QosReliability.BEST_EFFORT for qos in offered)
    count = connection.msgcount + earlier
    return Topic(connection.topic, connection.msgtype, count, connection.msgdef.data, reliable)
