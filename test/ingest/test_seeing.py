"""Pictures that whoever brings the last of them sees ahead, before there is an observation."""

from pathlib import Path

import numpy as np
import pytest

from flashrt_ros.configuration import load_config, with_values
from flashrt_ros.ingest import Blocked, Ingest
from ingest.messages import SECOND, image, joint_state, smooth_picture

VIEWS = ('base_0_rgb', 'left_wrist_0_rgb')
CONFIG = with_values(
    load_config(Path(__file__).parents[2] / 'config' / 'so101.yaml'),
    {f'cameras.{view}.transport': 'raw' for view in VIEWS},
)
NOW = 1_700_000_000 * SECOND
MILLISECOND = 1_000_000


@pytest.fixture
def raw():
    """Inputs whose pictures the policy decodes, and what it has seen ahead."""
    ingest, seen = Ingest(CONFIG, decode=False), []
    ingest.see_ahead = seen.append
    return ingest, seen


def offer_raw(ingest, age=10, encoding='rgb8'):
    """One message for each input, of this age [ms]."""
    stamp = NOW - age * MILLISECOND
    for view in VIEWS:
        ingest.offer(view, image(smooth_picture(), encoding, stamp_ns=stamp), stamp)
    ingest.offer('state', joint_state(CONFIG.joint_names, np.arange(6.0), stamp_ns=stamp), stamp)


def test_what_was_seen_before_an_observation_is_what_it_takes(raw):
    ingest, seen = raw
    offer_raw(ingest)
    ingest.see(NOW)
    taken = ingest.observe(NOW)
    assert len(seen) == 1
    assert all(taken.observation.images[view] is picture for view, picture in seen[0].items())
    assert all(stream.latest().taken for stream in ingest.streams.values())


def test_its_times_are_of_when_the_pictures_were_seen(raw):
    ingest, _ = raw
    offer_raw(ingest, age=10)
    ingest.see(NOW)
    state = joint_state(CONFIG.joint_names, np.arange(6.0), stamp_ns=NOW - 2 * MILLISECOND)
    ingest.offer('state', state, NOW + MILLISECOND)  # came while they were seen
    taken = ingest.observe(NOW + 5 * MILLISECOND)
    assert list(taken.ages_s.values()) == pytest.approx([0.010, 0.010, 0.002])
    assert taken.wait_s == pytest.approx(0.010)
    assert 0.0 < taken.take_s < 0.1


def test_newer_pictures_than_those_seen_are_seen_anew(raw):
    ingest, seen = raw
    offer_raw(ingest, age=20)
    ingest.see(NOW)
    offer_raw(ingest, age=10)
    taken = ingest.observe(NOW)
    assert len(seen) == 2
    assert all(taken.observation.images[view] is picture for view, picture in seen[1].items())


def test_what_was_seen_is_used_once(raw):
    ingest, seen = raw
    offer_raw(ingest)
    ingest.see(NOW)
    ingest.observe(NOW)
    ingest.observe(NOW)
    assert len(seen) == 2


def test_what_a_gate_refuses_is_not_taken_though_it_was_seen(raw):
    ingest, _ = raw
    offer_raw(ingest, age=5000)
    ingest.see(NOW)
    assert isinstance(ingest.observe(NOW), Blocked)
    assert not any(stream.latest().taken for stream in ingest.streams.values())


def test_pictures_that_are_missing_or_bad_are_not_seen_and_observing_tells_why(raw):
    ingest, seen = raw
    ingest.see(NOW)
    offer_raw(ingest, encoding='infrared')
    ingest.see(NOW)
    assert not seen
    blocked = ingest.observe(NOW)
    assert blocked.refusal.kind == 'invalid'
    assert ingest.streams['base_0_rgb'].counts.rejected == 1
