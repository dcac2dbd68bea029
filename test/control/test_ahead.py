"""A command that is made ahead of its time is the one that would have been made then, or it is not sent."""

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.test_motion import MS, PERIOD, World, moving
from flashrt_ros.control.motion import Motion

LEAD = PERIOD // 4

ACTS = {
    'configure': lambda world: world.motion.configure(
        world.motion.executor._settings, world.motion.supervisor.settings
    ),
    'begin': lambda world: world.motion.begin(),
    'accept': lambda world: world.send(),
    'tick': lambda world: world.motion.tick(world.ros, world.wall),
    'adopt': lambda world: world.motion.adopt(ahead_of(world), world.ros, world.wall),
    'hold': lambda world: world.motion.hold(),
    'estop': lambda world: world.motion.estop(),
    'resume': lambda world: world.motion.resume(world.wall),
    'reset': lambda world: world.motion.reset(world.ros),
    'deadman': lambda world: world.motion.deadman(True, world.wall),
    'end': lambda world: world.motion.end('deactivated'),
}
"""What does something to a motion."""

LOOKS = {'ahead', 'stands', 'starts_from_measured', 'watch'}
"""What does not. `watch` may begin a stop: see below."""


def ahead_of(world, ns=0):
    return world.motion.ahead(world.ros + ns, world.wall + ns)


def state(motion):
    """All that a motion is, as text."""
    return repr([_plain(motion.executor), _plain(motion.supervisor), motion._stopped])


def _plain(thing):
    """Objects as what they consist of, where they would show as an address."""
    if '__repr__' in type(thing).__dict__ or not hasattr(thing, '__dict__'):
        return repr(thing)
    return {name: _plain(value) for name, value in vars(thing).items() if name != 'limits'}


def positions(command):
    return None if command is None else (command.positions.tolist(), command.zero_velocity)


def test_to_make_one_ahead_changes_nothing():
    world = moving(acceleration=2.0)
    before = state(world.motion)
    for ns in (0, LEAD, 50 * PERIOD, 1000 * PERIOD):
        ahead_of(world, ns)
    assert state(world.motion) == before


@settings(max_examples=60, deadline=None)
@given(
    script=st.lists(
        st.sampled_from(['none'] * 8 + ['hold', 'estop', 'resume', 'reset', 'accept', 'deadman', 'end']),
        max_size=60,
    ),
    safe_action=st.sampled_from(['stop', 'hold', 'damp', 'zero_velocity']),
    acceleration=st.sampled_from([np.inf, 3.0]),
)
def test_commands_and_counts_are_those_of_ticks_whatever_happens_in_between(
    script, safe_action, acceleration
):
    """One robot is ticked; its twin makes every command ahead, and things happen before it is sent."""
    plain, early = (World(acceleration, safe_action=safe_action) for _ in range(2))
    plain.send()
    early.send()
    for act in script:
        ahead = ahead_of(early, LEAD)
        for world in (plain, early):
            if act != 'none':
                ACTS[act](world)
            world.ros, world.wall = world.ros + LEAD, world.wall + LEAD
        wanted = plain.motion.tick(plain.ros, plain.wall)
        adopted = early.motion.adopt(ahead, early.ros, early.wall)
        assert adopted is (act == 'none')
        told = ahead.command if adopted else early.motion.tick(early.ros, early.wall)
        assert positions(told) == positions(wanted)
        assert state(early.motion) == state(plain.motion)
        for world in (plain, early):
            world.at = world.at if wanted is None else float(wanted.positions[0])
            world.ros, world.wall = world.ros + PERIOD - LEAD, world.wall + PERIOD - LEAD


def test_everything_that_can_be_done_to_a_motion_is_known_here():
    methods = {name for name, _ in inspect.getmembers(Motion, inspect.isfunction) if name[0] != '_'}
    assert methods == {*ACTS, *LOOKS}


@pytest.mark.parametrize('act', ACTS)
def test_whatever_is_done_to_the_motion_what_was_made_before_is_not_sent(act):
    world = moving()
    ahead = ahead_of(world)
    assert world.motion.stands(ahead)
    ACTS[act](world)
    assert not world.motion.stands(ahead)
    before = state(world.motion)
    assert not world.motion.adopt(ahead, world.ros, world.wall)
    assert state(world.motion) == before


def test_a_stop_that_the_watchdog_has_begun_is_kept():
    world = moving(deadman=False, wall_ns=400 * MS)
    ahead = ahead_of(world)
    assert not world.motion.watch(world.ros, world.wall)
    assert world.motion.stands(ahead)
    assert world.motion.watch(world.ros, world.wall + 500 * MS)
    assert not world.motion.adopt(ahead, world.ros, world.wall)
    assert world.state == 'starved'


@pytest.mark.parametrize(('late', 'sent'), [(0, True), (MS, False)])
def test_the_deadman_is_judged_when_the_command_is_sent_not_when_it_is_due(late, sent):
    """It was pressed for the last time so long ago that it falls silent just behind the deadline."""
    world = World(deadman=True, deadman_ns=200 * MS)
    world.motion.deadman(True, world.wall)
    world.send(50)
    world.run(200, press=True)
    world.run(180)
    ahead = ahead_of(world)
    assert ahead.command is not None
    assert not ahead.motion.supervisor.stop
    assert world.motion.adopt(ahead, world.ros + late, world.wall + late) is sent


def test_a_chunk_that_is_over_when_the_command_is_sent_stops_it():
    world = moving(hold_ms=100)
    world.ros, world.wall = (now + 50 * 100 * MS + 100 * MS - 300 * MS - 1 for now in (world.ros, world.wall))
    ahead = ahead_of(world)
    assert ahead.command is not None
    assert not ahead.motion.supervisor.stop
    before = state(world.motion)
    assert not world.motion.adopt(ahead, world.ros + 1, world.wall + 1)
    assert state(world.motion) == before
    world.motion.tick(world.ros + 1, world.wall + 1)
    assert world.state == 'starved'


@pytest.mark.parametrize('off', [-500 * MS, -PERIOD, PERIOD, 500 * MS])
def test_where_the_time_is_another_by_a_period_it_is_made_anew(off):
    """Sent too late, or the clock was set in between."""
    world = moving()
    ahead = ahead_of(world)
    assert not world.motion.adopt(ahead, world.ros + off, world.wall)
    assert world.motion.adopt(ahead, world.ros + np.sign(off) * MS, world.wall)


def test_a_chunk_may_come_later_than_the_moment_for_which_a_command_is_made():
    """It was waited for while the command was made; there is no ramp."""
    world = World()
    world.send()
    assert positions(ahead_of(world, -MS).command) == ([0.0], False)
