"""Runs that were good enough, runs that were not, each with its reason; and what is written about them."""

import json

import numpy as np
import pytest
from PIL import Image

from evaluation.runs import INPUTS_HZ, make_config, make_run, make_stats, times
from flashrt_ros.evaluation.plots import write_plots
from flashrt_ros.evaluation.report import to_json, to_text
from flashrt_ros.evaluation.run import Series
from flashrt_ros.evaluation.verdict import judge

EMPTY = Series(np.zeros(0, dtype=np.int64), np.zeros((0, 2)))


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path)


def failures(run, config):
    return '\n'.join(judge(run, config, INPUTS_HZ).failures)


def test_run_that_kept_every_rate_passes_with_the_figures_it_was_made_of(config):
    verdict = judge(make_run(), config, INPUTS_HZ)
    assert verdict.passed
    # 49 chunks follow the first one, until the last joint state at 9.983 s.
    assert verdict.rates['chunks'].achieved_hz == pytest.approx(49 / 9.983, rel=1e-3)
    assert verdict.rates['commands'].achieved_hz == pytest.approx(50.0, rel=0.01)
    assert verdict.rates['front'].achieved_hz == pytest.approx(30.0, rel=0.01)
    assert verdict.stages['denoise'].p50 == pytest.approx(0.007)
    assert verdict.inference.p99 == pytest.approx(0.05)
    assert verdict.ages['front'].p50 == pytest.approx(0.02)
    assert verdict.jitter.largest < 1e-6
    assert verdict.tracking['a'].p50 == pytest.approx(0.1)
    assert verdict.counts['chunks'] == 50
    assert verdict.counts['underruns'] == 2


def test_slow_policy_fails_and_says_how_slow(config):
    chunks_ns = times(3.0)
    slow = [make_stats(i, inference=0.33) for i in range(len(chunks_ns))]
    run = make_run(chunks_ns=chunks_ns, chunks=make_run().chunks[:30], stats_ns=chunks_ns, stats=slow)
    message = failures(run, config)
    assert 'chunks: 2.90 Hz instead of 5 Hz (42% missing)' in message
    assert 'an inference takes 330 ms (p90 330 ms) and the period is 200 ms' in message


def test_blocked_inference_fails_and_says_what_blocked_it(config):
    base = make_run()
    reason = 'front: it is 0.400 s old, max_age_s is 0.2 (for 3.0 s)'
    stats = [make_stats(i, blocked=reason if i % 2 else '') for i in range(50)]
    run = make_run(chunks_ns=base.chunks_ns[::2], chunks=base.chunks[::2], stats=stats)
    verdict = judge(run, config, INPUTS_HZ)
    assert verdict.blocked == {'front': 25}
    assert f'25 ticks were blocked, the last because of {reason}' in '\n'.join(verdict.failures)


def test_streamer_that_pauses_fails_and_says_for_how_long(config):
    kept = times(50.0)
    kept = kept[(kept < times(50.0)[100]) | (kept >= times(50.0)[200])]
    run = make_run(commanded=Series(kept, np.zeros((len(kept), 2))))
    message = failures(run, config)
    assert 'commands: 39.9' in message
    assert 'the longest time without one was 2020 ms' in message


def test_commands_are_counted_from_the_first_one_if_it_comes_soon(config):
    late = times(50.0, begin_s=1.0)
    verdict = judge(make_run(commanded=Series(late, np.zeros((len(late), 2)))), config, INPUTS_HZ)
    assert verdict.rates['commands'].achieved_hz == pytest.approx(50.0, rel=0.01)
    assert verdict.passed


def test_start_that_takes_half_of_the_run_is_missing_from_the_rate(config):
    late = times(50.0, begin_s=5.0)
    assert 'commands: 28.' in failures(make_run(commanded=Series(late, np.zeros((len(late), 2)))), config)
    base, late_chunks = make_run(), make_run().chunks_ns >= times(5.0)[25]
    stats = [make_stats(i) for i in range(25)]
    run = make_run(
        chunks=base.chunks[25:],
        chunks_ns=base.chunks_ns[late_chunks],
        stats_ns=base.stats_ns[25:],
        stats=stats,
    )
    assert 'chunks: 2.' in failures(run, config)


def test_camera_that_never_sent_anything(config):
    run = make_run(inputs_ns={'front': np.zeros(0, dtype=np.int64), 'state': times(60.0)})
    assert judge(run, config, INPUTS_HZ).failures == [
        'front: 0.00 Hz instead of 30 Hz (100% missing): '
        'its sender was late, or messages were lost on the way'
    ]


def test_commands_that_never_came(config):
    assert 'commands: 0.00 Hz instead of 50 Hz (100% missing)' in failures(make_run(commanded=EMPTY), config)


def test_camera_that_lost_every_third_frame(config):
    frames = times(30.0)
    lossy = np.delete(frames, np.arange(0, len(frames), 3))
    run = make_run(inputs_ns={'front': lossy, 'state': times(60.0)})
    assert 'front: 20.0' in failures(run, config)


def test_nine_percent_missing_is_tolerated_eleven_percent_is_not(config):
    for missing, passed in ((0.09, True), (0.11, False)):
        thinned = times(50.0 * (1 - missing))
        run = make_run(commanded=Series(thinned, np.zeros((len(thinned), 2))))
        assert judge(run, config, INPUTS_HZ).passed is passed


def test_run_without_any_chunk(config):
    none = np.zeros(0, dtype=np.int64)
    stats = [make_stats(-1, blocked="front: no message on '/front' yet (for 0.2 s)") for _ in range(50)]
    run = make_run(chunks=[], chunks_ns=none, stats=stats, commanded=EMPTY)
    verdict = judge(run, config, INPUTS_HZ)
    assert verdict.failures == [
        'no chunk was published: 50 ticks were blocked, the last because of '
        "front: no message on '/front' yet (for 0.2 s)"
    ]


def test_json_is_complete_and_has_no_nan(config):
    run = make_run(commanded=EMPTY)
    text = to_json(judge(run, config, INPUTS_HZ), {'machine': 'test'})
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f'{name} is no JSON'))
    assert content['passed'] is False
    assert content['about'] == {'machine': 'test'}
    assert content['rates']['chunks']['wanted_hz'] == 5.0
    assert content['jitter']['p50'] is None
    assert content['stages']['vision']['p99'] == pytest.approx(0.005)


def test_table_shows_every_stage_rate_and_reason(config):
    run = make_run(commanded=EMPTY)
    text = to_text(judge(run, config, INPUTS_HZ), {'machine': 'test'})
    for expected in ('vision', 'denoise', 'age of front', 'skew', 'jitter', 'deadline misses 0', 'machine'):
        assert expected in text
    assert 'FAILED: commands: 0.00 Hz' in text
    assert 'nan' not in text
    assert 'PASSED: every rate was kept for 10.0 s' in to_text(judge(make_run(), config, INPUTS_HZ), {})


@pytest.mark.parametrize(
    'changes', [{}, {'commanded': EMPTY, 'reference': EMPTY}], ids=['full', 'no commands']
)
def test_plots_are_pictures(tmp_path, config, changes):
    run = make_run(**changes)
    paths = write_plots(tmp_path, run, judge(run, config, INPUTS_HZ), 50.0)
    assert [path.name for path in paths] == ['joints.png', 'jitter.png', 'latency.png']
    for path in paths:
        pixels = np.asarray(Image.open(path).convert('L'))
        assert pixels.shape[1] > 800
        assert pixels.std() > 5  # not blank
