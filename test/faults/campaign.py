"""One fault in real processes over real DDS: what the robot was told before, meanwhile and after.

The time to the safe action is counted on the streamer's own stamps: from the end of the last chunk that it
followed to its word that it follows none. Limits are checked on every command that came.
"""

import functools
import os
import signal
import time
from dataclasses import dataclass, field

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from flashrt_ros.msg import ActionChunk
from lifecycle_msgs.msg import Transition
from nodes.graph import Sensors, wait_until
from nodes.test_processes import drive
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from flashrt_ros.ingest.stream import stamp_ns

IN_NAMESPACE = 'FLASHRT_ROS_IN_NETWORK_NAMESPACE'
"""Set inside the network namespace of `test_network_cut`, which has a loopback interface only."""

CONTROL_HZ, HOLD_S, MAX_VELOCITY, MAX_ACCELERATION = 100.0, 0.2, 1.0, 20.0
PERIOD_S = 1.0 / CONTROL_HZ
JOINTS = ('a', 'b', 'c')
LIMITS = {'max_velocity': MAX_VELOCITY, 'max_acceleration': MAX_ACCELERATION}
CHANGES = {
    'robot.joints': [{'name': name, 'position_min': -3.0, 'position_max': 3.0, **LIMITS} for name in JOINTS],
    'executor.hold_s': HOLD_S,
    'executor.safe_action': 'hold',
    'executor.ramp_s': 0.2,
    'rates.control_rate_hz': CONTROL_HZ,
}
SECOND = 1_000_000_000


@dataclass
class Report:
    """rows: fault, seconds to the safe action, largest step [rad], what the operator sees."""

    rows: list = field(default_factory=list)

    def table(self):
        lines = ['| fault | to the safe action | largest step | the operator sees |', '|-|-|-|-|']
        for name, seconds, step, seen in self.rows:
            shown = 'not taken' if seen == '' and seconds is None else f'{(seconds or 0) * 1e3:.0f} ms'
            lines.append(
                f'| {name} | {shown if seconds is not None else "none needed"} | {step:.4f} rad | {seen} |'
            )
        return '\n'.join(lines)


class Robot(Sensors):
    """Joint states that follow the commands, and two cameras."""

    def __init__(self, graph):
        self.positions = dict.fromkeys(JOINTS, 0.0)
        super().__init__(graph)
        graph.tester.create_subscription(JointTrajectory, '/commands', self._obey, 10)

    def _obey(self, message):
        self.positions.update(zip(message.joint_names, message.points[0].positions, strict=True))

    def _joint_state(self):
        return JointState(name=list(JOINTS), position=[self.positions[name] for name in JOINTS])


class Relay:
    """Carries chunks one way and what is followed the other way, unless it is cut."""

    def __init__(self, graph):
        self.cut = False
        node = graph.tester
        for here, there in (('far_chunk', 'action_chunk'), ('executing_chunk', 'far_executing')):
            publisher = node.create_publisher(ActionChunk, there, 1)
            node.create_subscription(ActionChunk, here, functools.partial(self._carry, publisher), 10)

    def _carry(self, publisher, message):
        if not self.cut:
            publisher.publish(message)


class Campaign:
    """Both processes active, the robot moving; then something breaks."""

    def __init__(
        self, graph, start, robot_yaml, report, name, changes, policy=True, sim_time=None, far_policy=False
    ):
        self.graph, self.name, self.report = graph, name, report
        self._start = start
        self.config = robot_yaml({**CHANGES, **changes})
        self.robot = Robot(graph)
        self.commands = graph.watch(JointTrajectory, '/commands', 500)
        self.followed = graph.watch(ActionChunk, 'executing_chunk')
        self.diagnostics = graph.watch(DiagnosticArray, '/diagnostics')
        self.chunks = graph.watch(ActionChunk, 'far_chunk' if far_policy else 'action_chunk')
        self.relay = Relay(graph) if far_policy else None
        self.far = ['action_chunk:=far_chunk', 'executing_chunk:=far_executing'] if far_policy else []
        self.parameters = [] if sim_time is None else ['use_sim_time:=true']
        self.streamer = self.start('action_streamer')
        self.policy = self.start('policy_node') if policy else None
        if policy:
            wait_until(lambda: len(self.chunks) > 5, 30.0, 'chunks')
            wait_until(lambda: len(self.commands) > 50, 30.0, 'commands')

    def start(self, name):
        """A process of ours, active."""
        remaps = self.far if name == 'policy_node' else []
        process = self._start(name, f'config:={self.config}', *self.parameters, remaps=remaps)
        drive(self.graph, name, Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
        return process

    def signal(self, process, number):
        os.kill(process.pid, number)
        if number == signal.SIGKILL:
            process.wait()

    def values(self, name='/action_streamer'):
        """The newest report of a node, as key -> text."""
        found = [s for _, array in list(self.diagnostics) for s in array.status if s.name == name]
        if not found:
            return {}
        return {pair.key: pair.value for pair in found[-1].values} | {'message': found[-1].message}

    def wait_for_stop(self, timeout=15.0):
        """Until the streamer follows nothing. Returns seconds from the end of its last chunk to that."""

        def stopped():
            return self.followed and self.followed[-1][1].horizon == 0

        wait_until(stopped, timeout, 'the safe action')
        last = next(message for _, message in reversed(self.followed) if message.horizon)
        end_ns = stamp_ns(last.start) + last.horizon * stamp_ns(last.step)
        return (stamp_ns(self.followed[-1][1].header.stamp) - end_ns) / SECOND

    def last_told(self):
        """Why nothing moved, the last time that the streamer's log said so."""
        said = [line for line in self.streamer.output().splitlines() if 'no motion: ' in line]
        return [line.split('no motion: ')[1] for line in said if 'over (' not in line][-1]

    def wait_for_message(self, part, name='/action_streamer'):
        """Until a status of the node says so; returns what it says."""
        wait_until(lambda: part in self.values(name).get('message', ''), 15.0, f'"{part}" of {name}')
        return self.values(name)['message']

    def wait_for_motion(self, timeout=30.0):
        """Until a new chunk is followed and commands come again."""
        count = len(self.commands)
        wait_until(
            lambda: self.followed[-1][1].horizon and len(self.commands) > count + 20, timeout, 'motion'
        )

    def rows(self):
        """All commands so far, [N, 3]."""
        return np.array([list(message.points[0].positions) for _, message in list(self.commands)])

    def largest_step(self):
        """From one command to the next, rad. Over a gap (commands lost on the way to here) the mean."""
        times = np.array([time for time, _ in list(self.commands)])
        steps = np.abs(np.diff(self.rows()[: len(times)], axis=0)).max(axis=1)
        gaps = np.diff(times)
        return float((steps / np.where(gaps > 0.1, gaps / PERIOD_S, 1.0)).max())

    def conclude(self, seconds, seen, lost=0):
        """Hold the limits and put a row into the report. lost: commands that were not sent in a row."""
        rows = self.rows()
        steps = np.abs(np.diff(rows, axis=0))
        largest = float(steps.max())
        self.report.rows.append((self.name, seconds, largest, seen))
        assert np.abs(rows).max() <= 3.0 + 1e-6
        assert largest <= MAX_VELOCITY * PERIOD_S * (1 + lost) + 1e-6
        if seconds is not None:
            assert -PERIOD_S <= seconds <= HOLD_S + 2 * PERIOD_S + 1e-3, f'{seconds:.3f} s to the safe action'

    def pause(self, seconds):
        time.sleep(seconds)


def stamp(now_ns):
    return Time(sec=now_ns // SECOND, nanosec=now_ns % SECOND)
