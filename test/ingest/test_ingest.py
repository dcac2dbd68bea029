"""Which messages become an observation, and what is said when they do not. Time is passed in."""

import time
from pathlib import Path

import numpy as np
import pytest

from flashrt_ros.configuration import load_config, with_values
from flashrt_ros.ingest import Blocked, Ingest, Taken
from flashrt_ros.ingest.gates import Limits
from flashrt_ros.ingest.stream import Stream
from flashrt_ros.pictures import CameraImage, Framing
from ingest.messages import SECOND, compressed, compressed_bytes, image, joint_state, smooth_picture

CONFIG = load_config(Path(__file__).parents[2] / 'config' / 'so101.yaml')
NAMES = CONFIG.joint_names
NOW = 1_700_000_000 * SECOND
MILLISECOND = 1_000_000
PICTURE = smooth_picture()


@pytest.fixture
def ingest():
    return Ingest(CONFIG)


def offer(ingest, now=NOW, front=20, wrist=10, state=5, transport=3, positions=range(6)):
    """Offer one message for each input, of these ages [ms]; None leaves one out."""
    messages = {
        'base_0_rgb': (front, lambda stamp: compressed(PICTURE, stamp_ns=stamp)),
        'left_wrist_0_rgb': (wrist, lambda stamp: compressed(PICTURE, stamp_ns=stamp)),
        'state': (state, lambda stamp: joint_state(NAMES, positions, stamp_ns=stamp)),
    }
    for name, (age, make) in messages.items():
        if age is not None:
            stamp = now - age * MILLISECOND
            ingest.offer(name, make(stamp), stamp + transport * MILLISECOND)


RAW = {
    'cameras.base_0_rgb.transport': 'raw',
    'cameras.base_0_rgb.rotate': 90,
    'cameras.base_0_rgb.crop': [4, 2, 40, 30],
    'cameras.left_wrist_0_rgb.flip': 'vertical',
}
FRAMING = Framing(rotate=90, crop=(4, 2, 40, 30))


def observe_raw(decode=True, **changes):
    ingest = Ingest(with_values(CONFIG, {**RAW, **changes}), decode=decode)
    offer(ingest, front=None)
    message = image(PICTURE[..., ::-1].copy(), 'bgr8', padding=5, stamp_ns=NOW)
    ingest.offer('base_0_rgb', message, NOW)
    return ingest.observe(NOW)


def test_pictures_come_cut_turned_and_mirrored_as_the_cameras_are_mounted():
    images = observe_raw().observation.images
    np.testing.assert_array_equal(images['base_0_rgb'], np.rot90(PICTURE[2:32, 4:44], -1))
    plain = Ingest(CONFIG)
    offer(plain)
    wrist = plain.observe(NOW).observation.images['left_wrist_0_rgb']
    np.testing.assert_array_equal(images['left_wrist_0_rgb'], wrist[::-1])


def test_raw_frames_can_be_left_to_the_policy():
    picture = observe_raw(decode=False).observation.images['base_0_rgb']
    assert isinstance(picture, CameraImage)
    assert picture.framing == FRAMING
    np.testing.assert_array_equal(picture.array('base_0_rgb'), FRAMING.apply(PICTURE, 'base_0_rgb'))


@pytest.mark.parametrize('decode', [True, False])
def test_a_crop_beyond_the_frame_blocks_and_says_so(decode):
    blocked = observe_raw(decode, **{'cameras.base_0_rgb.crop': [40, 0, 40, 30]})
    assert isinstance(blocked, Blocked)
    assert blocked.refusal.kind == 'invalid'
    assert 'crop of 40 x 30 pixels at (40, 0) reaches beyond the frame of 64 x 48' in blocked.reason


def refusal(ingest, now=NOW):
    blocked = ingest.observe(now)
    assert isinstance(blocked, Blocked)
    return blocked


def test_an_observation_carries_the_oldest_stamp_and_all_its_times(ingest):
    offer(ingest)
    taken = ingest.observe(NOW)
    assert isinstance(taken, Taken)
    assert taken.stamp_ns == NOW - 20 * MILLISECOND
    assert list(taken.ages_s) == ['base_0_rgb', 'left_wrist_0_rgb', 'state']
    assert list(taken.ages_s.values()) == pytest.approx([0.020, 0.010, 0.005])
    assert taken.skew_s == pytest.approx(0.015)
    assert taken.transport_s == pytest.approx(0.003)
    assert taken.wait_s == pytest.approx(0.002)
    assert 0 < taken.take_s < 10
    assert taken.observation.prompt == CONFIG.prompt
    assert taken.observation.images['base_0_rgb'].shape == PICTURE.shape
    np.testing.assert_array_equal(taken.observation.state, np.arange(6, dtype=np.float32))


def test_pictures_are_seen_ahead_as_soon_as_they_are_there(ingest):
    seen = []

    def see(images):
        seen.append((images, ingest.streams['state'].latest().taken))

    ingest.see_ahead = see
    offer(ingest)
    taken = ingest.observe(NOW)
    [(images, state_was_taken)] = seen
    assert list(images) == ['base_0_rgb', 'left_wrist_0_rgb']
    assert all(taken.observation.images[view] is image for view, image in images.items())
    assert not state_was_taken


@pytest.mark.parametrize('offered', [{'front': None}, {'wrist': 300}, {'state': 300}, {'state': None}])
def test_what_a_gate_refuses_is_not_seen_ahead(ingest, offered):
    seen = []
    ingest.see_ahead = seen.append
    offer(ingest, **offered)
    assert isinstance(ingest.observe(NOW), Blocked)
    assert not seen


def test_the_time_of_taking_ends_where_pictures_are_seen_ahead(ingest):
    ingest.see_ahead = lambda images: time.sleep(0.05)
    offer(ingest)
    assert ingest.observe(NOW).take_s < 0.05


def test_pictures_that_the_host_decodes_are_not_seen_by_whoever_brings_them(ingest):
    seen = []
    ingest.see_ahead = seen.append
    offer(ingest)
    ingest.see(NOW)
    assert not seen


def test_the_latest_message_wins_and_the_others_are_counted(ingest):
    for age in (30, 20, 10):
        offer(ingest, front=age, state=age, positions=[age] * 6)
    assert ingest.observe(NOW).observation.state[0] == 10
    counts = ingest.streams['base_0_rgb'].counts
    assert (counts.received, counts.unused, counts.rejected) == (3, 2, 0)


def test_a_frame_that_was_used_is_not_counted_as_unused(ingest):
    offer(ingest)
    ingest.observe(NOW)
    offer(ingest)
    assert ingest.streams['base_0_rgb'].counts.unused == 0


@pytest.mark.parametrize(
    ('ages', 'message'),
    [
        ({'wrist': None}, "left_wrist_0_rgb: no message on '/camera/wrist/image_raw/compressed' yet"),
        ({'front': 251}, 'base_0_rgb: it is 0.251 s old, max_age_s is 0.25: no newer message has come'),
        ({'state': 200}, 'state: it is 0.200 s old, max_age_s is 0.15'),
        ({'front': 300, 'transport': 290}, 'it is 0.300 s old, max_age_s is 0.25: it took 0.290 s to arrive'),
        ({'front': 120}, 'base_0_rgb: it is 0.115 s behind state, max_skew_s is 0.1'),
        (
            {'front': -51, 'transport': -60},
            'base_0_rgb: its stamp is 0.051 s in the future: the clocks of sensor and computer differ',
        ),
    ],
)
def test_a_gate_that_closes_names_input_age_and_limit(ingest, ages, message):
    offer(ingest, **ages)
    assert message in refusal(ingest).reason


@pytest.mark.parametrize('ages', [{'front': 105}, {'front': -49, 'wrist': 50, 'transport': -60}])
def test_a_gate_stays_open_up_to_its_limit(ingest, ages):
    offer(ingest, **ages)
    assert isinstance(ingest.observe(NOW), Taken)


def test_an_unstamped_message(ingest):
    offer(ingest, front=NOW // MILLISECOND)
    assert 'base_0_rgb: its header.stamp is 0' in refusal(ingest).reason


def test_recorded_stamps_without_simulated_time_are_recognised(ingest):
    day = 24 * 3600 * 1000
    offer(ingest, front=day, transport=day - 1)
    assert 'another time base, is use_sim_time right?' in refusal(ingest).reason


def test_a_clock_that_jumped_back_is_named_until_new_messages_come(ingest):
    offer(ingest)
    earlier = NOW - 5 * SECOND
    assert 'the clock jumped back' in refusal(ingest, earlier).reason
    offer(ingest, now=earlier)
    assert isinstance(ingest.observe(earlier), Taken)


@pytest.mark.parametrize(
    ('now', 'stamp', 'message'),
    [
        (NOW, 90 * SECOND, 'it counts from the start of a simulation: set use_sim_time for this node'),
        (90 * SECOND, NOW, 'goes by simulated time and the sensor does not: set use_sim_time for both or'),
        (0, NOW, 'goes by simulated time (use_sim_time), and nobody publishes /clock'),
        (NOW, NOW + 86400 * SECOND, 'another time base, is use_sim_time right?'),
    ],
)
def test_a_forgotten_use_sim_time_is_named_on_whichever_side(ingest, now, stamp, message):
    for name in ('base_0_rgb', 'left_wrist_0_rgb'):
        ingest.offer(name, compressed(PICTURE, stamp_ns=stamp), now)
    ingest.offer('state', joint_state(NAMES, range(6), stamp_ns=stamp), now)
    assert message in refusal(ingest, now).reason


def test_a_clock_that_jumps_ahead_is_named_until_new_messages_come(ingest):
    offer(ingest)
    assert isinstance(ingest.observe(NOW), Taken)
    later = NOW + 50 * SECOND
    named = 'as is every input, 50.000 s after all were fine: the clock jumped ahead'
    assert named in refusal(ingest, later).reason
    offer(ingest, now=later)
    assert isinstance(ingest.observe(later), Taken)


def test_a_single_stale_input_is_no_jump_of_the_clock(ingest):
    offer(ingest)
    ingest.observe(NOW)
    later = NOW + SECOND
    offer(ingest, now=later, front=None)
    assert 'no newer message has come (for' in refusal(ingest, later).reason


def test_seconds_on_the_way_may_be_clocks_that_differ(ingest):
    offer(ingest, front=5000, transport=4990)
    assert 'it took 4.990 s to arrive, or the clocks of sensor and computer differ' in refusal(ingest).reason


def test_a_known_latency_puts_the_stamp_back():
    latencies = {'cameras.base_0_rgb.latency_s': 0.04, 'joint_states.latency_s': 0.01}
    ingest = Ingest(with_values(CONFIG, latencies))
    offer(ingest, front=20, wrist=10, state=5)
    taken = ingest.observe(NOW)
    assert list(taken.ages_s.values()) == pytest.approx([0.060, 0.010, 0.015])
    assert taken.stamp_ns == NOW - 60 * MILLISECOND
    assert taken.skew_s == pytest.approx(0.050)
    offer(ingest, front=NOW // MILLISECOND)
    assert 'base_0_rgb: its header.stamp is 0' in refusal(ingest).reason


def test_a_dropped_frame_is_counted_and_named_once_the_one_before_is_too_old(ingest):
    stream = ingest.streams['base_0_rgb']
    stream.drop('data needs 9 bytes and 3 are left')
    assert 'yet, but one that was dropped: data needs 9 bytes' in refusal(ingest).reason
    offer(ingest, front=90)
    stream.drop('data needs 9 bytes and 3 are left')
    assert isinstance(ingest.observe(NOW), Taken)
    assert 'the newer one was dropped: data needs 9 bytes' in refusal(ingest, NOW + 200 * MILLISECOND).reason
    assert (stream.counts.received, stream.counts.rejected) == (3, 2)


def test_frames_are_fresh_when_every_camera_has_one_that_was_not_used(ingest):
    offer(ingest, wrist=None)
    assert not ingest.fresh.wait(0.0)
    offer(ingest)
    assert ingest.fresh.wait(0.0)
    ingest.observe(NOW)
    assert not ingest.fresh.wait(0.0)
    offer(ingest, front=None)
    assert not ingest.fresh.wait(0.0)
    offer(ingest, wrist=None)
    assert ingest.fresh.wait(0.0)


def test_frames_that_were_there_are_not_those_expected(ingest):
    offer(ingest)
    ingest.fresh.expect()
    assert not ingest.fresh.wait(0.0)
    offer(ingest, front=None)
    assert not ingest.fresh.wait(0.0)
    offer(ingest, wrist=None)
    assert ingest.fresh.wait(0.0)


def test_the_reason_says_since_when_and_starts_again_after_recovery(ingest):
    offer(ingest, front=300)
    assert refusal(ingest, NOW).reason.endswith('(for 0.0 s)')
    later = NOW + 30 * MILLISECOND
    assert refusal(ingest, later).since_ns == NOW
    offer(ingest, now=later)
    assert isinstance(ingest.observe(later), Taken)
    assert refusal(ingest, later + SECOND).since_ns == later + SECOND


def test_a_corrupt_frame_is_counted_once_and_the_next_one_is_fine(ingest):
    offer(ingest)
    ingest.offer('base_0_rgb', compressed_bytes(b'\xff\xd8\xff' + bytes(50), NOW - MILLISECOND), NOW)
    for _ in range(3):
        assert 'base_0_rgb: corrupt JPEG of 53 bytes' in refusal(ingest).reason
    assert ingest.streams['base_0_rgb'].counts.rejected == 1
    offer(ingest)
    assert isinstance(ingest.observe(NOW), Taken)


def test_joints_that_do_not_match_block_like_any_other_input(ingest):
    offer(ingest)
    ingest.offer('state', joint_state(NAMES[:5], range(5), NOW - MILLISECOND), NOW)
    blocked = refusal(ingest)
    assert blocked.refusal.kind == 'invalid'
    assert "state: the joint 'gripper' is missing" in blocked.reason


def test_inference_waits_for_a_prompt(ingest):
    ingest.prompt = '  '
    offer(ingest)
    assert "prompt: it is empty: set the parameter 'prompt' or publish on 'prompt'" in refusal(ingest).reason
    ingest.prompt = 'fold'
    assert ingest.observe(NOW).observation.prompt == 'fold'


def test_limits_can_be_replaced_while_running(ingest):
    offer(ingest, front=300, wrist=290, state=280)
    assert isinstance(ingest.observe(NOW), Blocked)
    keys = ('cameras.base_0_rgb.max_age_s', 'cameras.left_wrist_0_rgb.max_age_s', 'joint_states.max_age_s')
    ingest.limits = Limits.of(with_values(CONFIG, dict.fromkeys(keys, 0.5)))
    assert isinstance(ingest.observe(NOW), Taken)


def test_a_message_is_rejected_once_however_often_it_is_looked_at():
    stream = Stream('state', '/joint_states')
    stream.offer(joint_state(NAMES, range(6), NOW), NOW)
    for fault in ('first', 'second'):
        stream.reject(stream.latest(), fault)
    assert stream.counts.rejected == 1
