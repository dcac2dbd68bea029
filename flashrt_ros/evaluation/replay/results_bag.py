"""The results as an MCAP rosbag2, written while the replay runs, on the time of the original bag.

| topic | type | |
| --- | --- | --- |
| /flashrt/action_chunk, /flashrt/inference_stats | as the node publishes them | at every tick |
| /flashrt/commands | sensor_msgs/JointState | what the executor would have sent |
| /flashrt/predicted | sensor_msgs/JointState | row 0 of every chunk, at its time |
| the cameras' own topics | as recorded | the pictures that the policy saw |

Opened beside the original bag in Foxglove or PlotJuggler, both lie on one time axis. Stages of
inference_stats that a clock measured are 0 unless they are part of the replay (real time as measured), so
that the file depends on the bag, the configuration and the seed alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.enums import CompressionFormat, CompressionMode

from flashrt_ros.configuration.schema import RobotConfig
from flashrt_ros.control import Chunk, Plan
from flashrt_ros.evaluation.bag import Record
from flashrt_ros.evaluation.interfaces import (
    CHUNK,
    STATS,
    duration_of,
    header_at,
    joint_state_at,
    known_types,
    make,
    time_of,
)
from flashrt_ros.evaluation.replay.feed import JOINT_STATE, Sources, wanted_type
from flashrt_ros.evaluation.replay.watch import Looked
from flashrt_ros.ingest import Blocked, Taken
from flashrt_ros.policy import STAGES

CHUNKS, STATISTICS = '/flashrt/action_chunk', '/flashrt/inference_stats'
COMMANDS, PREDICTED = '/flashrt/commands', '/flashrt/predicted'
TYPES = {CHUNKS: CHUNK, STATISTICS: STATS, COMMANDS: JOINT_STATE, PREDICTED: JOINT_STATE}


class ResultsBag:
    """A Listener that writes. timed: write the stages that were measured. Close it, else the bag is not
    whole."""

    def __init__(
        self, path: Path, config: RobotConfig, sources: Sources, policy: str, timed: bool, images: bool
    ) -> None:
        self._types, self._policy, self._timed = known_types(), policy, timed
        self._joints, self._period_s = list(config.joint_names), 1.0 / config.rates.chunk_rate_hz
        self._writer = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._writer.open()
        kinds = dict(TYPES)
        self._views = list(config.cameras) if images else []
        kinds |= {sources.inputs[view]: wanted_type(config, view) for view in self._views}
        self._connections = {
            topic: self._writer.add_connection(topic, kind, typestore=self._types)
            for topic, kind in kinds.items()
        }
        self._written: dict[str, int] = {}
        self._counts = dict.fromkeys(('chunks', 'deadline_misses', 'ticks_blocked', 'inferences_failed'), 0)

    def looked(self, looked: Looked, plan: Plan | None, ready_ns: int) -> None:
        for view in self._views:
            if view in looked.frames:
                self._picture(looked.frames[view])
        if plan is None:
            self._counts['ticks_blocked' if isinstance(looked.outcome, Blocked) else 'inferences_failed'] += 1
            reason = looked.outcome.reason if isinstance(looked.outcome, Blocked) else 'inference failed'
            self._write(STATISTICS, looked.time_ns, self._stats(looked, None, reason, looked.time_ns))
            return
        self._counts['chunks'] += 1
        self._counts['deadline_misses'] += self._timed and plan.inference_s > self._period_s
        self._write(CHUNKS, ready_ns, chunk_message(plan.chunk, ready_ns))
        first = joint_state_at(plan.chunk.start_ns, self._joints, plan.chunk.actions[0])
        self._write(PREDICTED, max(plan.chunk.start_ns, 0), first)
        self._write(STATISTICS, ready_ns, self._stats(looked, plan, '', ready_ns))

    def commanded(self, time_ns: int, positions: np.ndarray) -> None:
        self._write(COMMANDS, time_ns, joint_state_at(time_ns, self._joints, positions))

    def close(self) -> None:
        self._writer.close()

    def _picture(self, record: Record) -> None:
        if record.topic in self._connections and self._written.get(record.topic) != record.time_ns:
            self._written[record.topic] = record.time_ns
            self._writer.write(self._connections[record.topic], record.time_ns, record.data)

    def _write(self, topic: str, time_ns: int, message: Any) -> None:
        data = self._types.serialize_cdr(message, TYPES[topic])
        self._writer.write(self._connections[topic], time_ns, data)

    def _stats(self, looked: Looked, plan: Plan | None, blocked: str, ready_ns: int) -> Any:
        outcome = looked.outcome
        taken = outcome if isinstance(outcome, Taken) else None
        stages = dict(plan.timings) if plan and self._timed else {}
        stamp = taken.stamp_ns if taken else looked.time_ns
        return make(
            STATS,
            header=header_at(stamp),
            policy=self._policy,
            sequence=plan.chunk.sequence if plan else self._counts['chunks'],
            epoch=plan.chunk.epoch if plan else 0,
            blocked=blocked,
            transport=taken.transport_s if taken else 0.0,
            wait=taken.wait_s if taken else 0.0,
            take=taken.take_s if taken and self._timed else 0.0,
            **{stage: float(stages.get(stage, 0.0)) for stage in STAGES},
            publish=0.0,
            inference=(ready_ns - looked.time_ns) / 1e9 if plan else 0.0,
            total=(ready_ns - stamp) / 1e9 if plan else 0.0,
            inputs=list(outcome.ages_s),
            ages=np.array(list(outcome.ages_s.values()), dtype=np.float32),
            skew=taken.skew_s if taken else 0.0,
            deadline=self._period_s,
            deadline_missed=bool(plan and self._timed and plan.inference_s > self._period_s),
            **self._counts,
            inputs_rejected=0,
            frames_unused=0,
        )


def chunk_message(chunk: Chunk, ready_ns: int) -> Any:
    rows, columns = chunk.actions.shape
    kind = known_types().types[CHUNK].JOINT_POSITION
    return make(
        CHUNK,
        header=header_at(chunk.observed_ns),
        policy=chunk.policy,
        sequence=chunk.sequence,
        epoch=chunk.epoch,
        start=time_of(chunk.start_ns),
        step=duration_of(chunk.step_ns),
        horizon=rows,
        action_dim=columns,
        names=list(chunk.names),
        kinds=np.full(columns, kind, dtype=np.uint8),
        data=chunk.actions.astype(np.float32).ravel(),
        prefix=0,
        delay=chunk.rows_due(ready_ns),
    )
