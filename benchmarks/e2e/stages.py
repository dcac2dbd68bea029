"""From what the processes published, and when, to the latency of every command and where it went."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np

from flashrt_ros.control import Entry

Key = tuple[int, int]
"""Epoch and sequence of a chunk."""

GRAPH = ('vision', 'prefill', 'denoise')
ORDER = (
    'transport',
    'wait',
    'take',
    'preprocess',
    *GRAPH,
    'postprocess',
    'publish',
    'to streamer',
    'wait for tick',
)
"""In which time passes. transport: stamp to reception of the slowest input. wait: from there to the
start of the inference. publish: the rest until the chunk is written, which is planning and building the
message. to streamer: from there to its acceptance, or when that was told, if no command came before. wait for
tick: to the first command that follows it."""

WITHIN, SAME = 50, 1e-5
"""Commands behind a chunk that are looked at, and radians by which they may differ from it: chunks of random
weights differ by far more from each other."""

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


@dataclass
class Recording:
    """Times in ns of the system's clock, as the writers stamped them.

    stages: chunk -> stamp of its older frame and seconds of each stage. chunks: chunk -> publication.
    accepted: chunk -> when the streamer said that it follows it. entries: the same, and what it follows.
    commands: publications. made: of each command for when it was made, and its positions. blocked: reasons.
    """

    stages: dict[Key, tuple[int, dict[str, float]]] = field(default_factory=dict)
    chunks: dict[Key, int] = field(default_factory=dict)
    accepted: dict[Key, int] = field(default_factory=dict)
    entries: dict[Key, Entry] = field(default_factory=dict)
    commands: list[int] = field(default_factory=list)
    made: list[tuple[int, np.ndarray]] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)


def latencies(recording: Recording) -> dict[str, np.ndarray]:
    """Name -> milliseconds, one for each chunk that a command followed.

    The stages of `ORDER`, which add up to 'total': camera stamp to command. 'without graph': total minus the
    policy's graph.
    """
    first = first_commands(recording)
    rows: list[dict[str, float]] = []
    for key, (stamp_ns, stages) in recording.stages.items():
        published, accepted = recording.chunks.get(key), recording.accepted.get(key)
        command = first.get(key)
        if published is None or accepted is None or command is None:
            continue
        accepted = min(accepted, command)
        row = {name: seconds * 1e3 for name, seconds in stages.items()}
        row['publish'] = (published - stamp_ns) * 1e-6 - sum(row.values())
        row['to streamer'] = (accepted - published) * 1e-6
        row['wait for tick'] = (command - accepted) * 1e-6
        row['total'] = (command - stamp_ns) * 1e-6
        row['without graph'] = row['total'] - sum(row[name] for name in GRAPH)
        rows.append(row)
    return {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def first_commands(recording: Recording) -> dict[Key, int]:
    """Chunk -> publication of the first command that follows it, which its positions say: they are those of
    the chunk at that time."""
    order = sorted(range(len(recording.commands)), key=recording.commands.__getitem__)
    times = [recording.commands[index] for index in order]
    found: dict[Key, int] = {}
    for key, entry in recording.entries.items():
        begin = bisect_right(times, recording.chunks.get(key, times[-1] if times else 0))
        for index in order[begin : begin + WITHIN]:
            made_ns, positions = recording.made[index]
            if np.abs(entry.at(made_ns, True) - positions).max() < SAME:
                found[key] = recording.commands[index]
                break
    return found


def percentiles(values: np.ndarray) -> dict[str, float]:
    """'p50' to 'p99.9'."""
    return {f'p{p:g}': float(np.percentile(values, p)) for p in PERCENTILES}
