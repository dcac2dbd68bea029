"""What both nodes share: configuration as parameters, loud transitions, one teardown, diagnostics.

A subclass says what to do in `configure`, `activate`, `deactivate` and `teardown`; each may raise. rclpy
swallows exceptions of transitions, so they are logged here, and the transition fails: it can be tried again.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from flashrt_ros import tracing
from flashrt_ros.configuration import RobotConfig
from flashrt_ros.errors import FlashRTError
from flashrt_ros.nodes.identity import refuse_name_clash
from flashrt_ros.nodes.parameters import ConfigParameters

DIAGNOSTICS_PERIOD_S = 1.0


class ManagedNode(LifecycleNode):
    """A lifecycle node of this package. sections: top-level keys of the YAML that become its parameters.

    ending: why the process is about to end, once it is.
    """

    def __init__(self, name: str, sections: Sequence[str], **options: Any) -> None:
        self.state = 'unconfigured'
        self.ending = ''
        self._tracer: tracing.Tracer | None = None
        super().__init__(name, **options)
        self._started = time.monotonic()
        try:
            self.parameters = ConfigParameters(self, sections, self.config_changed)
        except BaseException:
            # Else it would go on announcing itself for as long as somebody holds the exception.
            self.destroy_node()
            raise
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 1)
        # On a clock that does not stand still with a simulation: an operator looks at it in real time.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(DIAGNOSTICS_PERIOD_S, self._publish_diagnostics, clock=steady)

    @property
    def config(self) -> RobotConfig:
        """The configuration with all parameters applied."""
        return self.parameters.config

    def configure(self) -> None:
        """Do all slow work."""

    def activate(self) -> None:
        """Start working. Publishers are active already."""

    def deactivate(self) -> None:
        """Stop working. Publishers are still active. Must do no harm if nothing runs."""

    def teardown(self) -> None:
        """Give back everything that `configure` made, as far as it came."""

    def config_changed(self, config: RobotConfig) -> None:
        """A dynamic parameter has a new value."""

    def diagnostics(self) -> list[DiagnosticStatus]:
        """What an operator should see."""
        return []

    def end(self) -> None:
        """Stop and give everything back, whatever the state."""
        self.deactivate()
        self._finish_trace()
        self.teardown()

    def destroy_node(self) -> None:
        """Leave the graph now; rclpy leaves the node in it while somebody holds the state machine."""
        super().destroy_node()
        self._state_machine.destroy_when_not_in_use()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        def configure() -> None:
            refuse_name_clash(self, self._started)
            name = self.get_fully_qualified_name().strip('/').replace('/', '.')
            self._tracer = tracing.tracer_of(self.config.tracing, name)
            self.configure()

        return self._transition('configure', 'inactive', configure, undo=self.teardown)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        def activate() -> None:
            refuse_name_clash(self, self._started)
            super(ManagedNode, self).on_activate(state)
            if self._tracer is not None:
                tracing.use(self._tracer)
            self.activate()

        def undo() -> None:
            if self._tracer is not None:
                tracing.use(None)
            super(ManagedNode, self).on_deactivate(state)

        return self._transition('activate', 'active', activate, undo)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        def deactivate() -> None:
            self.deactivate()
            self._finish_trace()
            super(ManagedNode, self).on_deactivate(state)

        return self._transition('deactivate', 'inactive', deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition('clean up', 'unconfigured', self.teardown)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition('shut down', 'finalized', self.end)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition('recover', 'unconfigured', self.end)

    def _transition(
        self, verb: str, new_state: str, work: Callable[[], None], undo: Callable[[], Any] | None = None
    ) -> TransitionCallbackReturn:
        """Do the work. If it raises: say why, undo and stay in the old state; without undo go to on_error."""
        try:
            work()
        except Exception as error:
            known = isinstance(error, FlashRTError)
            self.get_logger().error(f'cannot {verb}: {error if known else traceback.format_exc()}')
            if undo is None:
                return TransitionCallbackReturn.ERROR
            undo()
            return TransitionCallbackReturn.FAILURE
        self.state = new_state
        self.get_logger().info(f'{verb}: done')
        return TransitionCallbackReturn.SUCCESS

    def _finish_trace(self) -> None:
        if self._tracer is None or self.state != 'active':
            return
        tracing.use(None)
        written = self._tracer.finish()
        if written:
            self.get_logger().info(f'trace: {written}')

    def _publish_diagnostics(self) -> None:
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        message.status = self.diagnostics()
        self._diagnostics.publish(message)
