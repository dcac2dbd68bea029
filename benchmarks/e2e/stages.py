"""From what the processes published, and when, to the latency of every command and where it went."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np

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
message. to streamer: from there to its acceptance. wait for tick: to the first command that follows it."""

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


@dataclass
class Recording:
    """Times in ns of the system's clock, as the writers stamped them.

    stages: chunk -> stamp of its older frame and seconds of each stage. chunks: chunk -> publication.
    accepted: chunk -> when the streamer said that it follows it. commands: publications. blocked: reasons.
    """

    stages: dict[Key, tuple[int, dict[str, float]]] = field(default_factory=dict)
    chunks: dict[Key, int] = field(default_factory=dict)
    accepted: dict[Key, int] = field(default_factory=dict)
    commands: list[int] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)


def latencies(recording: Recording) -> dict[str, np.ndarray]:
    """Name -> milliseconds, one for each chunk that a command followed.

    The stages of `ORDER`, which add up to 'total': camera stamp to command. 'without graph': total minus the
    policy's graph.
    """
    commands = sorted(recording.commands)
    rows: list[dict[str, float]] = []
    for key, (stamp_ns, stages) in recording.stages.items():
        published, accepted = recording.chunks.get(key), recording.accepted.get(key)
        if published is None or accepted is None:
            continue
        index = bisect_right(commands, accepted)
        if index == len(commands):
            continue
        row = {name: seconds * 1e3 for name, seconds in stages.items()}
        row['publish'] = (published - stamp_ns) * 1e-6 - sum(row.values())
        row['to streamer'] = (accepted - published) * 1e-6
        row['wait for tick'] = (commands[index] - accepted) * 1e-6
        row['total'] = (commands[index] - stamp_ns) * 1e-6
        row['without graph'] = row['total'] - sum(row[name] for name in GRAPH)
        rows.append(row)
    return {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def percentiles(values: np.ndarray) -> dict[str, float]:
    """'p50' to 'p99.9'."""
    return {f'p{p:g}': float(np.percentile(values, p)) for p in PERCENTILES}
