"""Runs made up for the tests: a robot with two joints whose nodes kept time, or did not."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from flashrt_ros.configuration.load import parse_config
from flashrt_ros.control.chunk import Chunk
from flashrt_ros.evaluation.run import STAGES, Run, Series

BEGIN_NS = 1_700_000_000 * 10**9
SECONDS = 10.0
JOINTS = ('a', 'b')
INPUTS_HZ = {'front': 30.0, 'state': 60.0}


def make_config(tmp_path, output='joint_trajectory'):
    data = {
        'robot': {'name': 'two', 'joints': [{'name': name} for name in JOINTS]},
        'cameras': {'front': {'topic': '/front'}},
        'joint_states': {'topic': '/joint_states'},
        'prompt': 'move',
        'policy': {'checkpoint': 'none'},
        'rates': {'chunk_rate_hz': 5.0, 'action_rate_hz': 30.0, 'control_rate_hz': 50.0},
        'output': {'type': output, 'topic': '/commands'},
    }
    return parse_config(data, 'test', tmp_path)


def times(rate_hz, begin_s=0.0):
    return BEGIN_NS + np.round(np.arange(begin_s, SECONDS, 1 / rate_hz) * 1e9).astype(np.int64)


def make_stats(sequence, blocked='', inference=0.05):
    stages = {stage: 0.001 * (i + 1) for i, stage in enumerate(STAGES)}
    return SimpleNamespace(
        **stages,
        blocked=blocked,
        inference=inference,
        total=inference + 0.03,
        inputs=['front', 'state'],
        ages=[0.02, 0.01],
        skew=0.01,
        chunks=sequence + 1,
        deadline_misses=sequence + 1 if inference > 0.2 else 0,
        ticks_blocked=0,
        inputs_rejected=0,
        inferences_failed=0,
        frames_unused=sequence * 5,
    )


def make_run(**changes):
    """A run that keeps every rate for ten seconds."""
    chunks_ns = times(5.0)
    actions = np.linspace(0, 1, 50)[:, None] * (1.0, -1.0)
    chunks = [
        Chunk('nano', JOINTS, actions, int(time_ns), int(time_ns), 33_333_333, 1, i)
        for i, time_ns in enumerate(chunks_ns)
    ]
    commanded = times(50.0, begin_s=0.02)
    measured = times(60.0)
    run = Run(
        joints=JOINTS,
        inputs_ns={'front': times(30.0), 'state': measured},
        chunks=chunks,
        chunks_ns=chunks_ns,
        stats_ns=chunks_ns + 1000,
        stats=[make_stats(i) for i in range(len(chunks))],
        measured=Series(measured, np.zeros((len(measured), 2))),
        commanded=Series(commanded, np.full((len(commanded), 2), 0.1)),
        reference=Series(times(30.0), np.zeros((len(times(30.0)), 2))),
        status={'/action_streamer': {'phase': 'running', 'underruns': '2'}},
    )
    return replace(run, **changes)
