"""Managed node: camera frames and joint states in, action chunks out.

Subscribes to the topics of the configuration; publishes `action_chunk` for each inference and
`inference_stats` for each tick, blocked ones too. Callbacks keep a reference; a thread does the work.
"""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from flashrt_ros.configuration import RobotConfig, check_against
from flashrt_ros.control import Planner
from flashrt_ros.errors import ConfigError
from flashrt_ros.ingest import Ingest
from flashrt_ros.ingest.gates import Limits
from flashrt_ros.ingest.joints import STATE
from flashrt_ros.msg import ActionChunk, InferenceStats
from flashrt_ros.nodes import diagnostics
from flashrt_ros.nodes.loop import FixedRateLoop
from flashrt_ros.nodes.main import run
from flashrt_ros.nodes.managed_node import ManagedNode
from flashrt_ros.nodes.policy_worker import PolicyWorker
from flashrt_ros.nodes.qos import COMMAND, RECORD, subscribe_latest
from flashrt_ros.nodes.stats import InferenceCounts, StatsWriter
from flashrt_ros.policy import Observation, Policy, PolicyOptions, load_policy

_SECTIONS = ('robot', 'cameras', 'joint_states', 'prompt', 'prompt_topic', 'policy', 'rates', 'gates')
_IMAGE_TYPES = {'raw': Image, 'compressed': CompressedImage}


class PolicyNode(ManagedNode):
    """configure loads and warms up the policy; activate starts the worker; deactivate stops it first."""

    def __init__(self, **options: Any) -> None:
        self._policy: Policy | None = None
        self._ingest: Ingest | None = None
        self._worker: PolicyWorker | None = None
        self._planner: Planner | None = None
        self._loop: FixedRateLoop | None = None
        self._epoch = 0
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._monitor = diagnostics.InputMonitor()
        super().__init__('policy_node', _SECTIONS, **options)

    def configure(self) -> None:
        config = self.config
        self._policy = self._load(config)
        self._ingest = Ingest(config)
        self._subscribe(config)
        chunks = self.create_lifecycle_publisher(ActionChunk, 'action_chunk', COMMAND)
        stats = self.create_lifecycle_publisher(InferenceStats, 'inference_stats', RECORD)
        self._outputs = [chunks, stats]
        counts = InferenceCounts()
        writer = StatsWriter(self._policy.info.name, 1.0 / config.rates.chunk_rate_hz, self._ingest, counts)
        self._planner = Planner(
            self._policy, self._ingest.joints, config.rates.action_rate_hz, self._new_epoch()
        )
        self._worker = PolicyWorker(
            self._ingest,
            self._planner,
            writer,
            counts,
            self.get_clock(),
            self.get_logger(),
            chunks.publish,
            stats.publish,
        )
        self._loop = FixedRateLoop(
            'inference', config.rates.chunk_rate_hz, self._worker.tick, self.get_logger()
        )

    def activate(self) -> None:
        # What came in before is old, and chunks of an earlier activation must not be continued.
        self._ingest.forget()
        self._planner.reset(self._new_epoch())
        self._loop.start(self.get_clock())

    def deactivate(self) -> None:
        if self._loop is not None:
            self._loop.stop()

    def teardown(self) -> None:
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        for publisher in self._outputs:
            self.destroy_lifecycle_publisher(publisher)
        self._inputs, self._outputs = [], []
        if self._policy is not None:
            self._policy.close()
        self._policy = self._ingest = self._worker = self._planner = self._loop = None

    def config_changed(self, config: RobotConfig) -> None:
        if self._ingest is not None:
            self._ingest.limits, self._ingest.prompt = Limits.of(config), config.prompt

    def diagnostics(self) -> list[DiagnosticStatus]:
        robot, name = self.config.robot.name, self.get_fully_qualified_name()
        if self._ingest is None or self._loop is None or self._worker is None:
            return [diagnostics.status(name, robot, diagnostics.OK, self.state, {})]
        now_ns, ages = self.get_clock().now().nanoseconds, self._ingest.limits.max_age_s
        inputs = [
            self._monitor.report(stream, ages[key], now_ns, name, robot)
            for key, stream in self._ingest.streams.items()
        ]
        trouble = self._loop.failure or self._worker.trouble.current
        values = {
            'state': self.state,
            'prompt': self._ingest.prompt,
            **diagnostics.pace_values('tick', self._loop.meter.pace()),
            **vars(self._worker.counts),
            'ticks_skipped': self._loop.skipped,
        }
        level = diagnostics.ERROR if trouble and self.state == 'active' else diagnostics.OK
        return [diagnostics.status(name, robot, level, trouble or self.state, values), *inputs]

    def _new_epoch(self) -> int:
        """Higher than any before, in earlier runs too: else an executor would drop chunks of a new run."""
        self._epoch = max(int(time.time()), self._epoch + 1)
        return self._epoch

    def _load(self, config: RobotConfig) -> Policy:
        """The policy, checked against the robot and warmed up."""
        chosen, logger, begin = config.policy, self.get_logger(), time.monotonic()
        logger.info(f'loading {chosen.checkpoint} onto {chosen.device}')
        policy = load_policy(Path(chosen.checkpoint), _options(config))
        info = policy.info
        logger.info(
            f'{info.name}: {info.family}, {info.parameters / 1e6:.1f} M parameters in {info.precision}, '
            f'{info.horizon} rows of {info.action_dim}, {info.steps} steps ({time.monotonic() - begin:.1f} s)'
        )
        try:
            check_against(config, info)
            logger.info('warming up')
            begin = time.monotonic()
            _warm_up(policy, config)
            logger.info(f'warm ({time.monotonic() - begin:.2f} s)')
        except BaseException:
            policy.close()
            raise
        return policy

    def _subscribe(self, config: RobotConfig) -> None:
        for view, camera in config.cameras.items():
            message_type = _IMAGE_TYPES[camera.transport]
            keep = functools.partial(self._keep, view)
            self._inputs.append(subscribe_latest(self, message_type, camera.topic, keep))
        keep = functools.partial(self._keep, STATE)
        self._inputs.append(subscribe_latest(self, JointState, config.joint_states.topic, keep))
        self._inputs.append(self.create_subscription(String, config.prompt_topic, self._take_prompt, COMMAND))

    def _keep(self, name: str, message: Any) -> None:
        self._ingest.offer(name, message, self.get_clock().now().nanoseconds)

    def _take_prompt(self, message: String) -> None:
        """The topic sets the parameter, so that there is one truth about the prompt."""
        if not message.data.strip():
            error = ConfigError('the prompt is empty', self.config.prompt_topic, 'send a task in plain words')
            self.get_logger().warning(str(error))
            return
        self.set_parameters([Parameter('prompt', value=message.data)])
        self.get_logger().info(f"prompt: '{message.data}'")


def _options(config: RobotConfig) -> PolicyOptions:
    chosen, deltas = config.policy, config.policy.delta_joints
    return PolicyOptions(
        device=chosen.device,
        precision=chosen.precision or ('fp32' if chosen.device == 'cpu' else 'bf16'),
        steps=chosen.steps,
        prompt_form=chosen.prompt_form,
        resize=chosen.resize,
        state_dim=chosen.state_dim,
        action_dim=chosen.action_dim,
        delta_actions=None if deltas is None else tuple(joint in deltas for joint in config.joint_names),
        asset_id=chosen.asset_id,
        tokenizer=Path(chosen.tokenizer) if chosen.tokenizer else None,
        seed=chosen.seed,
    )


def _warm_up(policy: Policy, config: RobotConfig) -> None:
    """One inference on grey pictures, so that the first real one finds every cache and graph ready."""
    grey = np.full((224, 224, 3), 128, dtype=np.uint8)
    state = np.zeros(policy.info.state_dim, dtype=np.float32)
    policy.infer(Observation(dict.fromkeys(config.cameras, grey), state, config.prompt or 'warm up'))


def main(args: list[str] | None = None) -> int:
    return run(PolicyNode, args)


if __name__ == '__main__':
    sys.exit(main())
