"""The executables as a user starts them: command lines, exit codes, signals, and what stands on stderr."""

import signal
import subprocess
import sys
import time

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from flashrt_ros.msg import ActionChunk
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from nodes.graph import Sensors, wait_until

pytestmark = pytest.mark.ros


def drive(graph, name, *transitions):
    """Transitions of a process that may still be starting, while a dead one of its name is in the graph."""
    state, change = (
        graph.client(GetState, f'{name}/get_state'),
        graph.client(ChangeState, f'{name}/change_state'),
    )
    answers = []

    def ask():
        answers.append(state.call_async(GetState.Request()))
        time.sleep(0.2)
        return any(answer.done() for answer in answers)

    # On cores that others use too, importing torch alone may take most of a minute.
    wait_until(ask, 90.0, name)
    for transition in transitions:
        request = ChangeState.Request(transition=Transition(id=transition))
        assert graph.call(change, request, 60.0).success


def bring_up(graph, start, config, **environment):
    """Both nodes as active processes, and what they publish."""
    policy, streamer = (
        start('policy_node', f'config:={config}', **environment),
        start('action_streamer', f'config:={config}', **environment),
    )
    chunks, commands = graph.watch(ActionChunk, 'action_chunk'), graph.watch(JointTrajectory, '/commands')
    diagnostics = graph.watch(DiagnosticArray, '/diagnostics')
    drive(graph, 'action_streamer', Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
    drive(graph, 'policy_node', Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
    wait_until(lambda: len(chunks) > 10, 20.0, 'chunks')
    wait_until(lambda: len(commands) > 100, 20.0, 'commands')
    return policy, streamer, commands, diagnostics


def wait_for_safe_action(graph, diagnostics):
    def safe(array):
        return any('safe action taken' in status.message for status in array.status)

    graph.messages_after(diagnostics, safe, what='the safe action')


def test_two_processes_turn_camera_frames_into_commands_and_end_on_a_signal(graph, start, robot_yaml):
    Sensors(graph)
    policy, streamer, _, diagnostics = bring_up(graph, start, robot_yaml())
    policy.send_signal(signal.SIGTERM)
    assert policy.wait(10) == 0
    wait_for_safe_action(graph, diagnostics)
    streamer.send_signal(signal.SIGINT)
    wait_until(lambda: 'ending: SIGINT' in streamer.output(), what='the end')
    streamer.send_signal(signal.SIGINT)  # a launch that was interrupted with its whole group says it again
    assert streamer.wait(10) == 0
    assert 'ending: SIGTERM' in policy.output()
    assert 'ending: SIGINT' in streamer.output()
    assert 'Traceback' not in policy.output() + streamer.output()


@pytest.mark.slow
def test_a_killed_policy_can_be_restarted_under_the_streamer(graph, start, robot_yaml):
    Sensors(graph)
    config = robot_yaml()
    policy, streamer, commands, diagnostics = bring_up(graph, start, config)
    policy.kill()
    policy.wait()
    wait_for_safe_action(graph, diagnostics)
    assert streamer.poll() is None
    count = len(commands)
    again = start('policy_node', f'config:={config}')
    drive(graph, 'policy_node', Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
    wait_until(lambda: len(commands) > count + 20, 20.0, 'commands of the restarted policy')
    assert again.poll() is None


@pytest.mark.parametrize('node', ['action_streamer', 'sim_node', 'recorder'])
def test_what_computes_no_policy_does_not_load_torch(node):
    """It would start two seconds of a processor later, and take 180 MiB more."""
    check = f"import sys, flashrt_ros.nodes.{node}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', check], check=False).returncode == 0


@pytest.mark.parametrize(
    ('change', 'parameter', 'message'),
    [
        (
            {'rates.chunk_rat_hz': 3.0},
            '',
            "rates.chunk_rat_hz: there is no key 'chunk_rat_hz'; did you mean 'chunk_rate_hz'",
        ),
        ({}, 'config:=/nowhere.yaml', '/nowhere.yaml: the file does not exist'),
        ({}, 'executor.hold_s:=2', 'executor.hold_s: '),
    ],
)
def test_a_wrong_configuration_ends_the_process_with_one_line(start, robot_yaml, change, parameter, message):
    parameters = (
        [f'config:={robot_yaml(change)}', parameter] if parameter else [f'config:={robot_yaml(change)}']
    )
    process = start('action_streamer', *parameters)
    assert process.wait(60) == 1
    assert message in process.output()
    assert process.output().startswith('flashrt_ros: ')
    assert len(process.output().splitlines()) == 1


def test_without_a_configuration_the_parameter_is_named(start):
    process = start('policy_node')
    assert process.wait(60) == 1
    assert (
        'parameter: config: no configuration file is given. Start the node with --ros-args -p config:='
        in process.output()
    )


def test_a_middleware_that_is_not_installed_is_named(start, robot_yaml):
    process = start('policy_node', f'config:={robot_yaml()}', RMW_IMPLEMENTATION='rmw_nowhere')
    assert process.wait(60) == 1
    assert "asks for 'rmw_nowhere', which is not installed (but: rmw_fastrtps_cpp" in process.output()
    assert 'Traceback' not in process.output()


def test_nothing_is_imported_while_the_robot_moves(graph, start, robot_yaml):
    """An import keeps Python's lock, and commands wait: 50 ms have been seen."""
    Sensors(graph)
    verbose = {'PYTHONPROFILEIMPORTTIME': '1'}
    policy, streamer, _, diagnostics = bring_up(graph, start, robot_yaml(), **verbose)

    for key in ('inference p50 [ms]', 'command late p50 [ms]'):
        graph.messages_after(
            diagnostics,
            lambda array, key=key: any(pair.key == key for status in array.status for pair in status.values),
            what=key,
        )
    for service in ('action_streamer/hold', 'action_streamer/resume', 'policy_node/reset'):
        assert graph.call(graph.client(Trigger, service), Trigger.Request()).success
    wanted = Parameter('executor.ramp_s', Parameter.Type.DOUBLE, 0.1).to_parameter_msg()
    client = graph.client(SetParameters, 'action_streamer/set_parameters')
    assert graph.call(client, SetParameters.Request(parameters=[wanted])).results[0].successful
    for process in (policy, streamer):
        _, activated, since = process.output().partition('activate: done')
        assert activated
        assert 'import time:' not in since
