"""Managed node: action chunks in, commands at a fixed rate out. Runs in a process of its own, to keep time.

Subscribes to `action_chunk` and, to start from standstill, to the joint states; publishes on
`output.topic`, and on `executing_chunk` what it follows. Services ~/hold, ~/resume, ~/estop and ~/reset
stop it and let it go on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus

from flashrt_ros.configuration import RobotConfig
from flashrt_ros.control import Limits
from flashrt_ros.msg import ActionChunk
from flashrt_ros.nodes import diagnostics
from flashrt_ros.nodes.attending import Attendant
from flashrt_ros.nodes.clock import SPIN_NS
from flashrt_ros.nodes.command_frames import frame_maker
from flashrt_ros.nodes.command_worker import CommandWorker
from flashrt_ros.nodes.commands import MESSAGE_TYPES, command_maker
from flashrt_ros.nodes.description import described_limits
from flashrt_ros.nodes.loop import Early, FixedRateLoop
from flashrt_ros.nodes.main import run
from flashrt_ros.nodes.managed_node import ManagedNode
from flashrt_ros.nodes.operator import OperatorInterface
from flashrt_ros.nodes.output import ChunkOutput, Publish, StepOutput
from flashrt_ros.nodes.polling import Polled, PolledStates, never
from flashrt_ros.nodes.qos import COMMAND
from flashrt_ros.nodes.tick_gate import TickGate
from flashrt_ros.nodes.watchdog import Watchdog
from flashrt_ros.scheduling import (
    describe,
    outrank,
    prioritise,
    run_on,
    spare_collector,
    switch_quickly,
    take_short_turns,
)

_SECTIONS = ('robot', 'joint_states', 'rates', 'output', 'executor', 'safety', 'tracing', 'scheduling')

WATCH_S = 0.02
"""How often the watchdog looks, on real time, whether the robot must stop though no tick comes; and at the
joint states."""

WATCH_WAITS_NS = 5_000_000
"""It waits about so long for the tick that may be under way, and no longer."""

UNDISTURBED_NS = SPIN_NS + 70_000
"""Before a deadline whose command is made ahead: half of all takings are longer than foreseen."""


class ActionStreamer(ManagedNode):
    """configure connects; activate starts the command loop; deactivate ends it, with the robot at rest."""

    def __init__(self, **options: Any) -> None:
        self._worker: CommandWorker | None = None
        self._loop: FixedRateLoop | None = None
        self._inputs: list[Any] = []
        self._states: PolledStates | None = None
        self._chunks: Attendant | None = None
        self._gate: TickGate | None = None
        self._outputs: list[Any] = []
        self._operator: OperatorInterface | None = None
        self._watchdog: Watchdog | None = None
        self._monitor: diagnostics.InputMonitor | None = None
        self._priority: int | None = None
        self._scheduling = ''
        super().__init__('action_streamer', _SECTIONS, **options)

    def configure(self) -> None:
        config, logger, rate_hz = self.config, self.get_logger(), self.config.rates.control_rate_hz
        limits = Limits.of(config, described_limits(self, config))
        publisher = self.create_lifecycle_publisher(
            MESSAGE_TYPES[config.output.type], config.output.topic, COMMAND
        )
        executing = self.create_lifecycle_publisher(ActionChunk, 'executing_chunk', COMMAND)
        self._outputs = [publisher, executing]
        self._worker = CommandWorker(
            config,
            limits,
            self.get_clock(),
            logger,
            _output(config, publisher.publish),
            executing.publish,
            self._tell_stopped,
        )
        half_ns, early = round(0.5e9 / rate_hz), early_of(config, self._worker.prepare)
        into_ns = 0 if early is None else max(0, early.lead_ns - UNDISTURBED_NS)
        self._gate, watch_gate = TickGate(half_ns, into_ns), TickGate(min(half_ns, WATCH_WAITS_NS))
        self._loop = FixedRateLoop(
            'commands',
            rate_hz,
            self._worker.tick,
            logger,
            begin=self._schedule_commands,
            gates=(self._gate, watch_gate),
            early=early,
        )
        self._monitor = diagnostics.InputMonitor(self, config.robot.name)
        self._states = PolledStates(self, config.joint_states.topic, self._worker.keep_state)
        self._worker.take_states = self._states.take
        self._inputs = [
            self.create_subscription(ActionChunk, 'action_chunk', never, COMMAND, callback_group=Polled()),
            self._states.subscription,
        ]
        self._chunks = Attendant(self, self._inputs[0], self._take_chunk)
        self._operator = OperatorInterface(self, config, self._act, self._worker.deadman)
        self._watchdog = Watchdog(self, WATCH_S, self._watch, watch_gate)
        self._schedule()

    def activate(self) -> None:
        self._worker.begin()
        self._loop.start(self.get_clock())

    def deactivate(self) -> None:
        if self._loop is None:
            return
        self._loop.stop()
        if self.state == 'active':
            self._worker.come_to_rest(self.ending or 'deactivated')

    def teardown(self) -> None:
        for thread in (self._watchdog, self._chunks):
            if thread is not None:
                thread.stop()
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        if self._operator is not None:
            self._operator.destroy()
        for publisher in self._outputs:
            self.destroy_lifecycle_publisher(publisher)
        self._inputs, self._outputs = [], []
        self._worker = self._loop = self._operator = self._watchdog = self._chunks = self._states = None

    def config_changed(self, config: RobotConfig) -> None:
        if self._worker is not None:
            self._worker.apply(config)

    def diagnostics(self) -> list[DiagnosticStatus]:
        robot, name = self.config.robot.name, self.get_fully_qualified_name()
        if self._worker is None or self._loop is None:
            return [diagnostics.status(name, robot, diagnostics.OK, self.state, {})]
        worker, now_ns = self._worker, self.get_clock().now().nanoseconds
        values = {
            'state': self.state,
            'scheduling': self._scheduling,
            'strategy': self.config.executor.strategy,
            'wanted rate [Hz]': self.config.rates.control_rate_hz,
            **diagnostics.pace_values('command', self._loop),
            **worker.report(),
        }
        trouble = self._loop.failure or worker.trouble
        active = self.state == 'active'
        level = diagnostics.WARN if trouble and active else diagnostics.OK
        own = diagnostics.status(
            name,
            robot,
            diagnostics.ERROR if self._loop.failure else level,
            (trouble or worker.phase.value) if active else self.state,
            values,
        )
        max_age_s = self.config.joint_states.max_age_s
        return [own, self._monitor.report(worker.state, max_age_s, now_ns)]

    def _schedule(self) -> None:
        """Ask the system for what the configuration says; without it the node runs as well as it can."""
        wanted, logger = self.config.scheduling, self.get_logger()
        denied = '' if wanted.streamer_cpus is None else run_on(wanted.streamer_cpus)
        if denied:
            logger.warning(f'scheduling.streamer_cpus: {denied}')
        self._priority = wanted.streamer_priority
        denied = '' if self._priority is None else prioritise(self._priority)
        if denied:
            logger.warning(f'scheduling.streamer_priority: {denied}')
            self._priority = None
        self._scheduling = f'{describe()} ({denied})' if denied else describe()

    def _schedule_commands(self) -> None:
        if self._priority is not None:
            outrank(self._priority)

    def _take_chunk(self) -> None:
        """By the thread that waits for chunks: they come in time also while the executor is busy, and no
        command is late for them."""
        with self._gate.between():
            taken = self._inputs[0].handle.take_message(ActionChunk, False)
            if taken is not None and self.state == 'active':
                self._worker.take_chunk(taken[0])
                self._loop.make_ready()  # else its thread would, when it has no time left for it

    def _watch(self) -> None:
        self._states.take()
        if self.state == 'active':
            self._worker.watch(self._loop.failure)

    def _act(self, what: str) -> tuple[bool, str]:
        """An emergency stop is kept for later also where nothing moves yet; the rest needs an active node."""
        if self.state != 'active' and what in ('hold', 'resume'):
            return False, f'the node is {self.state}'
        return self._worker.act(what)

    def _tell_stopped(self, stopped: bool) -> None:
        if self._operator is not None:
            self._operator.tell_stopped(stopped)


def _output(config: RobotConfig, publish: Publish) -> StepOutput | ChunkOutput:
    period_ns = round(1e9 / config.rates.control_rate_hz)
    if config.output.mode == 'chunk':
        return ChunkOutput(config.joint_names, period_ns, publish)
    make = command_maker(config.output.type, config.joint_names, period_ns)
    return StepOutput(frame_maker(make, len(config.joint_names)), publish)


def early_of(config: RobotConfig, prepare: Callable[[int, int], None]) -> Early | None:
    """How early `prepare` is called; None where commands are made when they are due.

    A trajectory for a whole chunk names its own times: nothing is gained by making it ahead.
    """
    period_ns = round(1e9 / config.rates.control_rate_hz)
    lead_ns = min(round(config.scheduling.streamer_lead_s * 1e9), period_ns // 4)
    return Early(prepare, lead_ns) if lead_ns and config.output.mode == 'step' else None


def main(args: list[str] | None = None) -> int:
    # Of the process, not of the node: others may run beside it in theirs.
    switch_quickly()
    take_short_turns()
    spare_collector()
    return run(ActionStreamer, args)


if __name__ == '__main__':
    sys.exit(main())
