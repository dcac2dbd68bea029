"""A simulated robot in the ROS graph: cameras, joint states and clock out, commands in.

Publishes /camera/NAME/image_raw and /camera/NAME/image_raw/compressed, /joint_states, /clock, /diagnostics,
and the task's outcome on ~/outcome. Follows a JointTrajectory (also of one point: a step command) on the
topic `command_topic` and a Float64MultiArray on `array_topic`. The service ~/reset lays the task out anew.

    ros2 run flashrt_ros sim_node --ros-args -p robot:=so101 -p seed:=3 -p speed:=1.0

The world runs in a thread of its own, which alone touches physics and OpenGL.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from flashrt_ros.ingest.stream import stamp_ns
from flashrt_ros.nodes import diagnostics
from flashrt_ros.nodes.main import run
from flashrt_ros.nodes.qos import COMMAND
from flashrt_ros.nodes.sim_parameters import SimParameters
from flashrt_ros.simulation.robots import build

DIAGNOSTICS_PERIOD_S = 1.0
ANSWER_S = 10.0
"""Longest wait of ~/reset for the world's thread."""


class SimNode(Node):
    """Runs as soon as it is there, like a robot that was switched on."""

    def __init__(self, **options: Any) -> None:
        super().__init__('sim_node', **options)
        self.ending = ''
        try:
            chosen = SimParameters.declared(self)
            scene = build(chosen.robot)
            # Only now, because without MuJoCo they cannot be imported, and `build` says so.
            from flashrt_ros.nodes.sim_outputs import Outputs
            from flashrt_ros.nodes.sim_world import SimWorld, Told

            self._outputs = Outputs(self, scene, chosen)
            self._told = Told()
            self._world = SimWorld(scene, chosen, self._outputs, self._told, self.get_logger())
        except BaseException:
            self.destroy_node()
            raise
        self._names = [joint.name for joint in scene.joints]
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 1)
        self.create_subscription(JointTrajectory, chosen.command_topic, self._follow, COMMAND)
        self.create_subscription(Float64MultiArray, chosen.array_topic, self._follow_array, COMMAND)
        self.create_service(Trigger, '~/reset', self._reset)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(DIAGNOSTICS_PERIOD_S, self._publish_diagnostics, clock=steady)
        self._world.start()

    def end(self) -> None:
        self._world.stop()

    def _follow(self, message: JointTrajectory) -> None:
        points = [(stamp_ns(p.time_from_start), p.positions.tolist()) for p in message.points]
        self._world.command(list(message.joint_names), points, stamp_ns(message.header.stamp))

    def _follow_array(self, message: Float64MultiArray) -> None:
        self._world.command(self._names, [(0, list(message.data))], 0)

    def _reset(self, _: Trigger.Request, answer: Trigger.Response) -> Trigger.Response:
        done = threading.Event()
        self._world.ask_to_reset(done.set)
        answer.success = done.wait(ANSWER_S)
        answer.message = f'seed {self._told.seed}' if answer.success else 'the world does not answer'
        return answer

    def _publish_diagnostics(self) -> None:
        told = self._told
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        message.status = [
            diagnostics.status(
                self.get_fully_qualified_name(),
                told.robot,
                DiagnosticStatus.ERROR if told.failure else DiagnosticStatus.OK,
                told.failure or told.state,
                told.values(),
            )
        ]
        self._diagnostics.publish(message)


def main(args: list[str] | None = None) -> int:
    return run(SimNode, args)


if __name__ == '__main__':
    sys.exit(main())
