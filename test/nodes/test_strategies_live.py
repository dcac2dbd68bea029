"""Policy and streamer together in one graph, by every strategy that the CPU backend can do."""

import json
import shutil
import time
from itertools import pairwise

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from flashrt_ros.msg import ActionChunk
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from flashrt_ros.control import chunk_from_message
from flashrt_ros.nodes.action_streamer import ActionStreamer
from flashrt_ros.nodes.policy_node import PolicyNode
from nodes.graph import Sensors, wait_until

pytestmark = pytest.mark.ros


class Pair:
    """Both nodes active, with sensors, and what they say."""

    def __init__(self, graph, config):
        self.graph = graph
        self.sensors = Sensors(graph)
        self.chunks = graph.watch(ActionChunk, 'action_chunk')
        self.followed = graph.watch(ActionChunk, 'executing_chunk')
        self.commands = graph.watch(JointTrajectory, '/commands')
        self.diagnostics = graph.watch(DiagnosticArray, '/diagnostics')
        self.streamer = graph.start(ActionStreamer, config)
        self.policy = graph.start(PolicyNode, config)
        assert graph.change(self.streamer, 'configure', 'activate')
        assert graph.change(self.policy, 'configure', 'activate')

    def values(self, name):
        statuses = [s for _, array in list(self.diagnostics) for s in array.status if s.name == name]
        return {v.key: v.value for v in statuses[-1].values} if statuses else {}


@pytest.fixture
def trained(checkpoint, tmp_path):
    """The tiny checkpoint, saying that it was trained with a frozen prefix of 8 rows."""
    copy = shutil.copytree(checkpoint, tmp_path / 'trained')
    config = json.loads((copy / 'config.json').read_text())
    (copy / 'config.json').write_text(json.dumps({**config, 'rtc_training_max_delay': 8}))
    return copy


def settled_seams(pair, skip=3):
    """How far neighbouring chunks differ where they overlap right after the seam [rad], by ROS time."""
    chunks = [chunk_from_message(message) for _, message in list(pair.chunks)][skip:]
    seams = []
    for old, new in pairwise(chunks):
        left = old.on_grid(new.start_ns, new.step_ns)
        seams.append(np.abs(left[:1] - new.actions[:1]).max())
    return np.array(seams)


@pytest.mark.parametrize('strategy', ['rtc', 'rtc_identity', 'rtc_prefix'])
def test_guided_chunks_go_on_from_what_the_streamer_follows(graph, robot_yaml, trained, strategy):
    changes = {'executor.strategy': strategy, 'policy.checkpoint': str(trained), 'executor.delay_rows': 2}
    pair = Pair(graph, robot_yaml(changes))
    wait_until(lambda: len(pair.chunks) > 15, 30.0, '15 chunks')
    wait_until(lambda: 'unguided' in pair.values('/policy_node'), what='a report')
    guided = settled_seams(pair)
    print(strategy, np.round(guided, 3))
    if strategy == 'rtc_prefix':
        assert np.median(guided) < 1e-3
        assert pair.chunks[-1][1].prefix == 2
    assert float(pair.values('/policy_node')['delays_cut']) == 0


def test_a_hold_makes_the_next_chunk_free(graph, robot_yaml, trained):
    """The policy must not go on from a chunk that the streamer has dropped."""
    changes = {
        'executor.strategy': 'rtc_prefix',
        'policy.checkpoint': str(trained),
        'executor.delay_rows': 2,
    }
    pair = Pair(graph, robot_yaml(changes))
    wait_until(lambda: pair.chunks and pair.chunks[-1][1].prefix == 2, 30.0, 'a guided chunk')
    assert graph.call(graph.client(Trigger, 'action_streamer/hold'), Trigger.Request()).success
    wait_until(lambda: pair.followed[-1][1].horizon == 0)
    time.sleep(0.3)
    wait_until(lambda: pair.chunks[-1][1].prefix == 0, what='a free chunk')
    assert graph.call(graph.client(Trigger, 'action_streamer/resume'), Trigger.Request()).success
    wait_until(lambda: pair.chunks[-1][1].prefix == 2, what='a guided chunk again')


def test_sync_plans_when_the_chunk_is_over(graph, robot_yaml):
    changes = {'executor.strategy': 'sync', 'executor.execution_rows': 6, 'executor.hold_s': 2.0}
    pair = Pair(graph, robot_yaml(changes))
    wait_until(lambda: len(pair.chunks) > 6, 30.0, 'chunks')
    chunks = [chunk_from_message(message) for _, message in pair.chunks]
    assert {chunk.horizon for chunk in chunks} == {6}
    ends = {}
    for _, message in list(pair.followed):
        if message.horizon:
            followed = chunk_from_message(message)
            ends[followed.sequence] = followed.start_ns + followed.length_ns
    observed = {chunk.sequence: chunk.observed_ns for chunk in chunks}
    pairs = [(ends[s], observed[s + 1]) for s in ends if s + 1 in observed]
    assert len(pairs) >= 4
    # The policy goes by its own clock until the streamer answers; a control period is what they may differ.
    assert all(after >= end - 15_000_000 for end, after in pairs)
    assert pair.values('/action_streamer').get('underruns', '0') == '0'


def test_vlash_chunks_start_where_they_are_planned_for(graph, robot_yaml):
    changes = {
        'executor.strategy': 'vlash',
        'output.action_kind': 'joint_position',
        'executor.delay_rows': 3,
    }
    pair = Pair(graph, robot_yaml(changes))
    wait_until(lambda: len(pair.chunks) > 10, 30.0, 'chunks')
    chunks = [chunk_from_message(message) for _, message in pair.chunks]
    delays = [round((chunk.start_ns - chunk.observed_ns) / chunk.step_ns) for chunk in chunks]
    assert delays[0] == 0
    assert set(delays[3:]) == {3}


def test_a_strategy_that_the_checkpoint_cannot_do_is_refused_at_configure(graph, robot_yaml, capfd):
    node = graph.start(PolicyNode, robot_yaml({'executor.strategy': 'rtc_prefix'}))
    assert not graph.change(node, 'configure')
    assert (
        'cannot do rtc_prefix: the checkpoint was not trained with a frozen prefix' in capfd.readouterr().err
    )


def test_a_reset_of_the_policy_begins_an_epoch(graph, robot_yaml):
    pair = Pair(graph, robot_yaml())
    wait_until(lambda: len(pair.chunks) > 2)
    before = pair.chunks[-1][1].epoch
    answer = graph.call(graph.client(Trigger, 'policy_node/reset'), Trigger.Request())
    assert answer.success
    wait_until(lambda: pair.chunks[-1][1].epoch == before + 1)
    wait_until(lambda: pair.followed[-1][1].epoch == before + 1)


def test_guidance_changes_while_running_and_is_validated(graph, robot_yaml):
    pair = Pair(graph, robot_yaml({'executor.strategy': 'rtc_identity'}))
    set_to = lambda name, value: pair.policy.set_parameters([Parameter(name, value=value)])[0]  # noqa: E731
    assert set_to('executor.guidance_clip', 2.0).successful
    assert pair.policy._worker._planner._settings.clip == 2.0
    assert not set_to('executor.guidance_clip', -1.0).successful
    assert not set_to('executor.guidance_schedule', 'cubic').successful
    assert set_to('executor.guidance_schedule', 'linear').successful
    assert set_to('executor.delay_rows', 3).successful
    assert pair.policy._worker._planner.delay.foretold == 3


def test_what_is_no_chunk_for_these_joints_is_not_followed(graph, robot_yaml):
    pair = Pair(graph, robot_yaml({'executor.strategy': 'rtc'}))
    wait_until(lambda: len(pair.chunks) > 2)
    wrong = ActionChunk(horizon=1, action_dim=1, names=['z'], kinds=[0], data=[0.0])
    wrong.step.nanosec = 1
    pair.policy._worker.keep_executing(wrong)
    assert 'executing_chunk' in pair.policy._worker.trouble.current
