"""What the simulated robot publishes: pictures, joint states, the clock, and how the task stands."""

from __future__ import annotations

import io
from array import array
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from PIL import Image as Picture
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState

from flashrt_ros.nodes import diagnostics
from flashrt_ros.nodes.messages import to_time
from flashrt_ros.nodes.operator import LATCHED
from flashrt_ros.nodes.sim_parameters import SimParameters
from flashrt_ros.simulation.scene import Scene
from flashrt_ros.simulation.session import Session

JPEG_QUALITY = 90
CAMERA = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT, durability=DurabilityPolicy.VOLATILE)
SENSOR = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.VOLATILE)


class Outputs:
    """Publishers of one node. Stamps are ROS time in ns."""

    def __init__(self, node: Node, scene: Scene, chosen: SimParameters) -> None:
        self._joints = [joint.name for joint in scene.joints]
        self._name, self._robot = f'{scene.name}: {scene.prompt}', scene.name
        self._raw, self._packed = {}, {}
        for camera in scene.cameras:
            topic = f'/camera/{camera}/image_raw'
            self._raw[camera] = node.create_publisher(Image, topic, CAMERA)
            self._packed[camera] = node.create_publisher(CompressedImage, f'{topic}/compressed', CAMERA)
        self._states = node.create_publisher(JointState, '/joint_states', SENSOR)
        self._clock = node.create_publisher(Clock, '/clock', CAMERA) if chosen.publish_clock else None
        self._outcome = node.create_publisher(DiagnosticStatus, '~/outcome', LATCHED)

    def wanted(self, camera: str) -> bool:
        """Whether anybody looks; a picture takes longer than all the rest."""
        return bool(
            self._raw[camera].get_subscription_count() or self._packed[camera].get_subscription_count()
        )

    def clock(self, now_ns: int) -> None:
        if self._clock is not None:
            self._clock.publish(Clock(clock=to_time(now_ns)))

    def joint_states(self, positions: np.ndarray, velocities: np.ndarray, stamp_ns: int) -> None:
        message = JointState(name=self._joints, position=positions.tolist(), velocity=velocities.tolist())
        message.header.stamp, message.header.frame_id = to_time(stamp_ns), 'base_link'
        self._states.publish(message)

    def picture(self, camera: str, pixels: np.ndarray, stamp_ns: int) -> None:
        """pixels: uint8 [height, width, 3] RGB."""
        if self._raw[camera].get_subscription_count():
            height, width, _ = pixels.shape
            raw = Image(height=height, width=width, encoding='rgb8', step=3 * width)
            raw.data = array('B', pixels.tobytes())
            self._send(self._raw[camera], raw, camera, stamp_ns)
        if self._packed[camera].get_subscription_count():
            buffer = io.BytesIO()
            Picture.fromarray(pixels).save(buffer, 'JPEG', quality=JPEG_QUALITY)
            packed = CompressedImage(format='rgb8; jpeg compressed bgr8', data=array('B', buffer.getvalue()))
            self._send(self._packed[camera], packed, camera, stamp_ns)

    def outcome(self, session: Session, seed: int, state: str) -> None:
        """state: running, succeeded, failed, or over."""
        values = {
            'seed': seed,
            'state': state,
            'seconds': session.seconds,
            'distance [m]': session.world.outcome.distance_m,
        }
        level = diagnostics.OK if state in ('running', 'succeeded') else diagnostics.WARN
        self._outcome.publish(diagnostics.status(self._name, self._robot, level, state, values))

    @staticmethod
    def _send(publisher: Any, message: Any, camera: str, stamp_ns: int) -> None:
        message.header.stamp = to_time(stamp_ns)
        message.header.frame_id = f'{camera}_camera_optical_frame'
        publisher.publish(message)
