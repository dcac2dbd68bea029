"""Managed node: camera frames and joint states in, action chunks out.

Subscribes to the topics of the configuration; publishes `action_chunk` for each inference and
`inference_stats` for each tick, blocked ones too. Callbacks keep a reference; a thread does the work.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.parameter import Parameter
from std_msgs.msg import String
from std_srvs.srv import Trigger

from flashrt_ros.configuration import RobotConfig
from flashrt_ros.control import STRATEGIES
from flashrt_ros.ingest.ring import ring_of
from flashrt_ros.loading import load_for
from flashrt_ros.msg import ActionChunk, InferenceStats
from flashrt_ros.nodes import diagnostics
from flashrt_ros.nodes.attending import Attendant
from flashrt_ros.nodes.frame_sources import frame_source
from flashrt_ros.nodes.gpu import gpu_values
from flashrt_ros.nodes.loop import FixedRateLoop
from flashrt_ros.nodes.main import run
from flashrt_ros.nodes.managed_node import ManagedNode
from flashrt_ros.nodes.policy_worker import PolicyWorker
from flashrt_ros.nodes.polling import PolledStates
from flashrt_ros.nodes.qos import COMMAND, RECORD
from flashrt_ros.policy import Policy
from flashrt_ros.scheduling import spare_collector, switch_quickly

_SECTIONS = (
    'robot',
    'cameras',
    'joint_states',
    'prompt',
    'prompt_topic',
    'policy',
    'rates',
    'gates',
    'ingest',
    'output',
    'executor',
    'tracing',
)


class PolicyNode(ManagedNode):
    """configure loads and warms up the policy; activate starts the worker; deactivate stops it first."""

    def __init__(self, **options: Any) -> None:
        self._policy: Policy | None = None
        self._worker: PolicyWorker | None = None
        self._loop: FixedRateLoop | None = None
        self._inputs: list[Any] = []
        self._stop_inputs: list[Callable[[], None]] = []
        self._outputs: list[Any] = []
        self._reset: Any = None
        self._epoch = 0
        self._monitor: diagnostics.InputMonitor | None = None
        super().__init__('policy_node', _SECTIONS, **options)

    def configure(self) -> None:
        config, clock, logger = self.config, self.get_clock(), self.get_logger()
        self._policy = load_for(config, logger)
        chunks = self.create_lifecycle_publisher(ActionChunk, 'action_chunk', COMMAND)
        stats = self.create_lifecycle_publisher(InferenceStats, 'inference_stats', RECORD)
        self._outputs = [chunks, stats]
        self._worker = PolicyWorker(config, self._policy, clock, logger, chunks.publish, stats.publish)
        # With sync the end of a chunk decides when to plan: look for it at every control period.
        waits = STRATEGIES[config.executor.strategy].waits
        rate_hz = config.rates.control_rate_hz if waits else config.rates.chunk_rate_hz
        before = {'frame': self._worker.await_frames, 'tick': lambda in_time: None}[config.rates.trigger]
        self._loop = FixedRateLoop('inference', rate_hz, self._worker.tick, logger, before)
        self._monitor = diagnostics.InputMonitor(self, config.robot.name)
        self._subscribe(config, self._worker)

    def activate(self) -> None:
        # Higher than any before, in earlier runs too: else an executor would drop the chunks of a new run.
        self._epoch = max(int(time.time()), self._epoch + 1)
        self._worker.begin_epoch(self._epoch)
        self._loop.start(self.get_clock())

    def reset_epoch(self, request: Any, response: Any) -> Trigger.Response:
        """The service ~/reset: the next chunk goes on from nothing, and those in flight are of the past."""
        response.success = self.state == 'active'
        response.message = f'the node is {self.state}'
        if response.success:
            self._epoch += 1
            self._worker.begin_epoch(self._epoch)
            response.message = f'epoch {self._epoch}: the next chunk goes on from nothing'
        return response

    def deactivate(self) -> None:
        if self._loop is not None:
            self._loop.stop()

    def teardown(self) -> None:
        for stop in self._stop_inputs:
            stop()
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        if self._reset is not None:
            self.destroy_service(self._reset)
        for publisher in self._outputs:
            self.destroy_lifecycle_publisher(publisher)
        if self._policy is not None:
            self._policy.close()
        if self._worker is not None:
            self._worker.ingest.decoding.close()
        self._stop_inputs, self._inputs, self._outputs = [], [], []
        self._policy = self._worker = self._loop = self._reset = None

    def config_changed(self, config: RobotConfig) -> None:
        if self._worker is not None:
            self._worker.apply(config)

    def diagnostics(self) -> list[DiagnosticStatus]:
        robot, name = self.config.robot.name, self.get_fully_qualified_name()
        if self._worker is None or self._loop is None:
            return [diagnostics.status(name, robot, diagnostics.OK, self.state, {})]
        ingest, now_ns = self._worker.ingest, self.get_clock().now().nanoseconds
        trouble = self._loop.failure or self._worker.trouble.current
        values = {
            'state': self.state,
            'prompt': ingest.prompt,
            'wanted rate [Hz]': self.config.rates.chunk_rate_hz,
            **diagnostics.pace_values('tick', self._loop),
            'strategy': self.config.executor.strategy,
            'JPEGs': ingest.decoding.text,
            **vars(self._worker.counts),
            **self._worker.report(),
            **gpu_values(self.config.policy.device),
        }
        level = diagnostics.ERROR if trouble and self.state == 'active' else diagnostics.OK
        own = diagnostics.status(name, robot, level, trouble or self.state, values)
        ages = ingest.limits.max_age_s
        inputs = ingest.streams.items()
        return [own, *(self._monitor.report(stream, ages[key], now_ns) for key, stream in inputs)]

    def _subscribe(self, config: RobotConfig, worker: PolicyWorker) -> None:
        for view, camera in config.cameras.items():
            make_ring = functools.partial(ring_of, config)
            source = frame_source(self, camera.topic, camera.transport, config.ingest.source, make_ring)
            self._stop_inputs.append(source.start(worker.ingest.streams[view]))
        states = PolledStates(self, config.joint_states.topic, worker.keep_state)
        self._inputs.append(states.subscription)
        self._stop_inputs.append(Attendant(self, states.subscription, states.take).stop)
        executing = self.create_subscription(ActionChunk, 'executing_chunk', worker.keep_executing, COMMAND)
        prompts = self.create_subscription(String, config.prompt_topic, self._take_prompt, COMMAND)
        self._inputs += [executing, prompts]
        self._reset = self.create_service(Trigger, '~/reset', self.reset_epoch)

    def _take_prompt(self, message: String) -> None:
        """The topic sets the parameter, so that there is one truth about the prompt."""
        if not message.data.strip():
            self.get_logger().warning(
                f"an empty prompt on '{self.config.prompt_topic}' is ignored: send a task in words"
            )
            return
        self.set_parameters([Parameter('prompt', value=message.data)])
        self.get_logger().info(f"prompt: '{message.data}'")


def main(args: list[str] | None = None) -> int:
    # Of the process, not of the node: others may run beside it in theirs.
    switch_quickly()
    spare_collector()
    return run(PolicyNode, args)


if __name__ == '__main__':
    sys.exit(main())
