"""The policy node in a real graph: what it publishes, what blocks it, and how it comes back."""

import shutil
import threading

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from flashrt_ros.msg import ActionChunk, InferenceStats
from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import DescribeParameters, ListParameters
from rclpy.parameter import Parameter
from std_msgs.msg import String

from flashrt_ros.configuration import load_config
from flashrt_ros.errors import ConfigError
from flashrt_ros.ingest.stream import stamp_ns
from flashrt_ros.loading import load_for, options_of
from flashrt_ros.nodes.policy_node import PolicyNode
from nodes.graph import Sensors, wait_for_match, wait_until

pytestmark = pytest.mark.ros

SECOND = 1_000_000_000


class World:
    """An active policy node, its sensors, and everything that it publishes."""

    def __init__(self, graph, config, activate=True, **parameters):
        self.graph = graph
        self.sensors = Sensors(graph)
        self.chunks = graph.watch(ActionChunk, 'action_chunk')
        self.stats = graph.watch(InferenceStats, 'inference_stats')
        self.diagnostics = graph.watch(DiagnosticArray, '/diagnostics')
        self.node = graph.start(PolicyNode, config, **parameters)
        if activate:
            assert graph.change(self.node, 'configure', 'activate')

    def next_chunk(self, condition=lambda chunk: True):
        return self.graph.messages_after(self.chunks, condition, what='a chunk')

    def next_stats(self, condition):
        return self.graph.messages_after(self.stats, condition, what='such statistics')

    def next_blocked(self, part):
        return self.next_stats(lambda stats: part in stats.blocked)

    def next_status(self, name, level):
        def found(array):
            return any(status.name.endswith(name) and status.level == level for status in array.status)

        array = self.graph.messages_after(self.diagnostics, found, what=f'{name} at {level}')
        return next(status for status in array.status if status.name.endswith(name))


@pytest.fixture
def world(graph, robot_yaml):
    return World(graph, robot_yaml())


@pytest.mark.parametrize('crop', [[1, 2, 30, 20], None])
def test_a_crop_of_the_file_or_a_parameter_is_a_list_of_integers(graph, robot_yaml, crop):
    """rclpy gives integer arrays as array.array, which no schema takes for a list."""
    front, *_ = load_config(robot_yaml()).cameras
    overrides = {f'cameras__{front}__crop': crop} if crop else {}
    node = World(graph, robot_yaml(), activate=False, **overrides).node
    assert node.config.cameras[front].crop == crop
    assert node.set_parameters([Parameter('prompt', value='go on')])[0].successful
    assert node.config.cameras[front].crop == crop


class Rehearsing:
    """A policy that has its user rehearse during every inference."""

    def __init__(self, policy):
        self.policy, self.rehearse, self.rehearsed = policy, None, 0

    def __getattr__(self, name):
        return getattr(self.policy, name)

    def infer(self, *arguments, **named):
        self.rehearse()
        self.rehearsed += 1
        return self.policy.infer(*arguments, **named)


def test_what_is_rehearsed_during_an_inference_is_not_sent(graph, robot_yaml, monkeypatch):
    policies = []

    def load(*arguments):
        policies.append(Rehearsing(load_for(*arguments)))
        return policies[-1]

    monkeypatch.setattr('flashrt_ros.nodes.policy_node.load_for', load)
    world = World(graph, robot_yaml())
    wait_until(lambda: len(world.chunks) >= 5, what='5 chunks')
    sequences = [message.sequence for _, message in world.chunks]
    assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))
    assert policies[0].rehearsed >= len(sequences)
    assert not any(stats.blocked for _, stats in world.stats if stats.sequence)
    assert all(np.any(message.data) for _, message in world.chunks)


def test_chunks_come_at_the_chunk_rate_stamped_with_the_observation(world):
    wait_until(lambda: len(world.chunks) > 25, what='25 chunks')
    arrivals = np.array([at for at, _ in world.chunks[2:]])
    assert 1.0 / np.median(np.diff(arrivals)) == pytest.approx(10.0, rel=0.1)
    sent = {stamp for stamps in world.sensors.stamps.values() for stamp in stamps}
    published = [message for _, message in world.chunks]
    assert all(stamp_ns(chunk.header.stamp) in sent for chunk in published)
    assert all(chunk.start == chunk.header.stamp for chunk in published)
    assert [chunk.sequence for chunk in published] == list(
        range(published[0].sequence, published[-1].sequence + 1)
    )
    chunk = published[-1]
    assert (chunk.horizon, chunk.action_dim, list(chunk.names)) == (20, 3, ['a', 'b', 'c'])
    assert (chunk.step.sec, chunk.step.nanosec) == (0, 50_000_000)
    assert list(chunk.kinds) == [ActionChunk.JOINT_POSITION] * 3
    assert np.isfinite(chunk.data).all()
    assert len(chunk.data) == 60


def test_statistics_tell_where_the_time_went(world):
    stats = world.next_stats(lambda stats: not stats.blocked and stats.chunks > 3)
    assert list(stats.inputs) == ['base_0_rgb', 'left_wrist_0_rgb', 'state']
    assert 0.0 < min(stats.ages) <= max(stats.ages) < 0.3
    assert stats.skew == pytest.approx(max(stats.ages) - min(stats.ages), abs=1e-4)
    assert stats.deadline == pytest.approx(0.1)
    stages = stats.preprocess + stats.vision + stats.prefill + stats.denoise + stats.postprocess
    assert 0.0 < stages == pytest.approx(stats.inference, rel=0.2, abs=2e-3)
    assert stats.total > stats.inference + stats.take
    assert stats.deadline_missed == (stats.inference > stats.deadline)
    chunk = next(chunk for _, chunk in world.chunks if chunk.sequence == stats.sequence)
    assert chunk.header.stamp == stats.header.stamp


def test_actions_are_in_ros_units(world):
    """The first joint has scale 2 and offset 0.5: nothing but the unit differs from what the policy said."""
    wait_until(lambda: world.chunks)
    policy, joints = world.node._policy, world.node._worker.ingest.joints
    rows = np.array([[2.5, 1.0, 1.0]])
    np.testing.assert_allclose(joints.to_ros(rows), [[1.0, 1.0, 1.0]])
    assert policy.info.action_dim == 3


def test_a_camera_that_stops_blocks_inference_until_it_returns(world):
    world.next_chunk()
    world.sensors.mute.add('left_wrist_0_rgb')
    blocked = world.next_blocked('left_wrist_0_rgb: it is 0.')
    assert 'max_age_s is 0.3: no newer message has come (for 0.0 s)' in blocked.blocked
    count = len(world.chunks)
    later = world.next_stats(lambda stats: stats.ticks_blocked >= blocked.ticks_blocked + 5)
    assert later.ages[1] > 0.7
    assert len(world.chunks) == count
    assert world.next_status('policy_node', DiagnosticStatus.ERROR).message.startswith(
        'left_wrist_0_rgb: it is'
    )
    world.sensors.mute.clear()
    world.next_chunk()
    world.next_status('input left_wrist_0_rgb', DiagnosticStatus.OK)


def test_with_the_trigger_frame_an_inference_starts_as_the_frames_arrive(graph, robot_yaml):
    world = World(graph, robot_yaml({'rates.trigger': 'frame'}))
    wait_until(lambda: len(world.chunks) > 15, what='15 chunks')
    waits = [stats.wait for _, stats in world.stats if not stats.blocked]
    assert np.median(waits) < 0.008  # by the clock it is half a camera period, 0.020
    stamps = [stamp_ns(chunk.header.stamp) for _, chunk in world.chunks]
    assert len(set(stamps)) == len(stamps)
    world.sensors.mute.add('base_0_rgb')
    world.next_blocked('base_0_rgb: it is')
    world.sensors.mute.clear()
    world.next_chunk()


def spoil_encoding(message):
    message.encoding = '16UC1'


def spoil_step(message):
    message.step -= 1


def spoil_jpeg(message):
    message.data = message.data[: len(message.data) // 2]


def spoil_position(message):
    message.position = [0.1, 0.1, float('nan'), 0.1]


def spoil_names(message):
    message.name, message.position = ['a', 'b'], [0.1, 0.1]


def forget_stamp(message):
    message.header.stamp.sec = message.header.stamp.nanosec = 0


@pytest.mark.parametrize(
    ('name', 'spoil', 'part'),
    [
        ('base_0_rgb', spoil_encoding, "the encoding '16UC1' is not supported"),
        ('base_0_rgb', spoil_step, "step 191 is less than the 192 bytes of 64 pixels in 'rgb8'"),
        ('left_wrist_0_rgb', spoil_jpeg, 'corrupt JPEG of'),
        ('state', spoil_position, "the position of joint 'a' is nan"),
        ('state', spoil_names, "the joint 'c' is missing (names: a, b)"),
        ('base_0_rgb', forget_stamp, 'its header.stamp is 0'),
    ],
)
def test_a_bad_input_is_named_and_the_node_recovers(world, name, spoil, part):
    world.next_chunk()
    world.sensors.change[name] = spoil
    blocked = world.next_blocked(f'{name}: {part}')
    count = len(world.chunks)
    after = world.next_stats(lambda stats: stats.ticks_blocked > blocked.ticks_blocked + 1)
    assert len(world.chunks) == count
    if spoil is not forget_stamp:
        assert after.inputs_rejected > 0
    world.sensors.change.clear()
    world.next_chunk()
    assert world.graph.state(world.node) == 'active'


def test_the_prompt_comes_from_parameter_and_topic(graph, robot_yaml):
    world = World(graph, robot_yaml({'prompt': ''}))
    world.next_blocked("prompt: it is empty: set the parameter 'prompt' or publish on 'prompt'")
    assert world.node.set_parameters([Parameter('prompt', value='wipe the table')])[0].successful
    world.next_chunk()
    publisher = graph.tester.create_publisher(String, 'prompt', 1)
    wait_for_match(publisher, world.node._inputs[-1])
    publisher.publish(String(data=''))
    publisher.publish(String(data='stack the cups'))
    wait_until(lambda: world.node.get_parameter('prompt').value == 'stack the cups')
    wait_until(lambda: world.node._worker.ingest.prompt == 'stack the cups')
    status = graph.messages_after(
        world.diagnostics,
        lambda array: any(v.value == 'stack the cups' for s in array.status for v in s.values),
    )
    assert status


def test_parameters_are_described_bounded_and_validated(graph, robot_yaml):
    node = graph.start(PolicyNode, robot_yaml(), rates__chunk_rate_hz=5.0)
    listed = graph.call(graph.client(ListParameters, 'policy_node/list_parameters'), ListParameters.Request())
    names = [
        name for name in listed.result.names if name not in ('use_sim_time', 'start_type_description_service')
    ]
    assert {
        'config',
        'prompt',
        'robot.joints.a.scale',
        'cameras.base_0_rgb.topic',
        'policy.checkpoint',
    } <= set(names)
    client = graph.client(DescribeParameters, 'policy_node/describe_parameters')
    for descriptor in graph.call(client, DescribeParameters.Request(names=names)).descriptors:
        assert descriptor.description, descriptor.name
        if descriptor.type == ParameterType.PARAMETER_DOUBLE:
            assert descriptor.floating_point_range, descriptor.name
    assert node.get_parameter('rates.chunk_rate_hz').value == 5.0
    for name, value, part in [
        ('rates.chunk_rate_hz', 6.0, 'read-only'),
        ('gates.max_skew_s', 1e9, 'range'),
        ('gates.max_skew_s', float('nan'), 'gates.max_skew_s'),
        ('prompt', 3, 'type'),
    ]:
        (result,) = node.set_parameters([Parameter(name, value=value)])
        assert not result.successful, name
        assert part in result.reason
    assert node.set_parameters([Parameter('gates.max_skew_s', value=0.5)])[0].successful
    assert node.config.gates.max_skew_s == 0.5


def test_dynamic_gates_apply_at_once(world):
    world.next_chunk()
    world.node.set_parameters([Parameter('cameras.base_0_rgb.max_age_s', value=0.001)])
    world.next_blocked('max_age_s is 0.001')
    world.node.set_parameters([Parameter('cameras.base_0_rgb.max_age_s', value=0.3)])
    world.next_chunk()


@pytest.mark.parametrize(
    ('parameters', 'message'),
    [
        (
            {'rates__chunk_rate_hz': 5},
            r"rates\.chunk_rate_hz: .*expecting type 'DOUBLE'.* Give a number with a decimal",
        ),
        ({'rates__chunk_rate_hz': 1e6}, r'rates\.chunk_rate_hz: .*Give a value from 0\.05 to 500'),
        ({'rates__chunk_rate_hz': 200.0}, r'rates\.chunk_rate_hz: 200 Hz is above control_rate_hz 100 Hz'),
        ({'rates__chunk_rat_hz': 5.0}, r"rates\.chunk_rat_hz: there is no such .*'rates\.chunk_rate_hz'"),
        ({'policy__device': 'tpu'}, r"policy\.device: 'tpu' is not one of"),
    ],
)
def test_a_wrong_override_is_refused_with_its_key(graph, robot_yaml, parameters, message):
    with pytest.raises(ConfigError, match=message):
        graph.start(PolicyNode, robot_yaml(), **parameters)


def test_transitions_start_and_stop_the_work_and_leave_nothing_behind(graph, robot_yaml):
    world = World(graph, robot_yaml(), activate=False)
    epochs = []
    for _ in range(3):
        threads = threading.active_count()
        assert graph.change(world.node, 'configure', 'activate')
        epochs.append(world.next_chunk().epoch)
        assert graph.change(world.node, 'deactivate')
        count = len(world.chunks)
        assert graph.change(world.node, 'activate')
        epochs.append(world.next_chunk().epoch)
        assert len(world.chunks) > count
        assert graph.change(world.node, 'deactivate', 'cleanup')
        wait_until(lambda threads=threads: threading.active_count() == threads, what='the end of all threads')
        assert graph.state(world.node) == 'unconfigured'
    assert epochs == sorted(set(epochs))


def test_a_failed_configure_says_why_and_can_be_tried_again(graph, robot_yaml, checkpoint, tmp_path, capfd):
    later = tmp_path / 'later'
    world = World(graph, robot_yaml({'policy.checkpoint': str(later)}), activate=False)
    assert not graph.change(world.node, 'configure')
    assert graph.state(world.node) == 'unconfigured'
    assert f'cannot configure: {later}' in capfd.readouterr().err
    shutil.copytree(checkpoint, later)
    assert graph.change(world.node, 'configure', 'activate')
    world.next_chunk()


def test_a_robot_that_does_not_fit_the_checkpoint_is_refused_at_configure(graph, robot_yaml, capfd):
    node = graph.start(PolicyNode, robot_yaml({'policy.masked_views': []}))
    assert not graph.change(node, 'configure')
    assert (
        "has a view 'right_wrist_0_rgb' without a camera. Add 'cameras.right_wrist_0_rgb'"
        in capfd.readouterr().err
    )


def test_a_second_node_of_the_same_name_is_refused(graph, robot_yaml, capfd, monkeypatch):
    monkeypatch.setattr('flashrt_ros.nodes.identity.LEASE_S', 0.3)
    first = graph.start(PolicyNode, robot_yaml())
    second = graph.start(PolicyNode, robot_yaml())
    assert second.trigger_configure().name == 'FAILURE'
    assert "ROS graph: 2 nodes are called '/policy_node'. End the other one" in capfd.readouterr().err
    assert first.state == second.state == 'unconfigured'


def test_on_simulated_time_observations_are_stamped_with_it(graph, robot_yaml):
    graph.simulate_time(begin_ns=100 * SECOND, speed=0.5)
    world = World(graph, robot_yaml(), use_sim_time=True)
    wait_until(lambda: len(world.chunks) > 10, 30.0, 'ten chunks')
    arrivals = [at for at, _ in world.chunks]
    stamps = [stamp_ns(chunk.header.stamp) / SECOND for _, chunk in world.chunks]
    assert 100.0 <= min(stamps) < max(stamps) < 120.0
    assert np.median(np.diff(stamps)) == pytest.approx(0.1, rel=0.3)
    assert np.median(np.diff(arrivals)) > 0.15


def test_options_of_the_policy_come_from_the_configuration(robot_yaml, checkpoint):
    changes = {
        'policy.device': 'cuda',
        'policy.steps': 4,
        'policy.delta_joints': ['c', 'a'],
        'policy.tokenizer': 'tok',
    }
    file = robot_yaml(changes)
    options = options_of(load_config(file))
    assert (options.device, options.precision, options.steps, options.seed) == ('cuda', 'bf16', 4, 1)
    assert options.delta_actions == (True, False, True)
    assert options.tokenizer == file.parent / 'tok'
    assert options_of(load_config(robot_yaml())).precision == 'fp32'
