"""`flashrt evaluate` on real bags with a real, tiny policy."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2.enums import CompressionFormat, CompressionMode

from evaluation.robots import BEGIN_NS, BagMaker, write_config
from flashrt_ros.cli.main import main
from flashrt_ros.control import chunk_from_message
from flashrt_ros.evaluation.bag import open_bag
from flashrt_ros.evaluation.replay.episode import load_episode


def evaluate(bag, robot, out, *more):
    bags = bag if isinstance(bag, list) else [bag]
    words = ['evaluate', *map(str, bags), '--config', str(robot), '--out', str(out), '--no-report', *more]
    return main(words)


def results(out):
    return json.loads((out / 'evaluation.json').read_text())


def episode_of(out, variant='robot', name='episode'):
    return load_episode(out / variant / name / 'episode.npz')


def test_a_bag_gives_chunks_commands_metrics_and_a_results_bag(robot_bag, robot, tmp_path, capsys):
    assert evaluate(robot_bag, robot, tmp_path / 'out') == 0
    found = results(tmp_path / 'out')['variants']['robot']
    episode = found['episodes']['episode']
    assert (episode['chunks'], episode['reference']) == (9, '/commands')
    assert episode['inputs']['front' if 'front' in episode['inputs'] else 'base_0_rgb']['rate_hz'] > 19
    assert (
        found['metrics']['action_error.all.mae']['low'] <= found['metrics']['action_error.all.mae']['value']
    )
    assert np.array(found['action_error_by_row']['mae']).shape == (20, 3)
    assert 'robot: 9 chunks from 2.0 s of 1 episode' in capsys.readouterr().out
    assert episode_of(tmp_path / 'out').actions.shape == (9, 20, 3)


def test_the_results_bag_holds_the_same_chunks_and_the_pictures_that_were_seen(robot_bag, robot, tmp_path):
    assert evaluate(robot_bag, robot, tmp_path / 'out') == 0
    episode = episode_of(tmp_path / 'out')
    with open_bag(tmp_path / 'out/robot/episode/results') as bag:
        chunks = [chunk_from_message(message) for _, message in bag.messages('/flashrt/action_chunk')]
        pictures = [bag.decode(record) for record in bag.records(['/front'])]
        commands = [message for _, message in bag.messages('/flashrt/commands')]
        counts = {topic.name: topic.count for topic in bag.topics.values()}
    np.testing.assert_allclose([chunk.actions for chunk in chunks], episode.actions, rtol=1e-6)
    assert [chunk.start_ns for chunk in chunks] == episode.start_ns.tolist()
    np.testing.assert_array_equal([command.position for command in commands], episode.commands)
    assert len(pictures) == 9
    assert pictures[0].data.size == 48 * 64 * 3
    # One tick came before the cameras.
    assert counts['/flashrt/inference_stats'] == 10


def test_the_same_bag_and_seed_give_the_same_bytes(robot_bag, robot, tmp_path):
    for name in ('first', 'second'):
        assert evaluate(robot_bag, robot, tmp_path / name) == 0
    for file in ('evaluation.json', 'robot/episode/episode.npz', 'robot/episode/results/results.mcap'):
        first, second = (tmp_path / name / file for name in ('first', 'second'))
        assert first.read_bytes() == second.read_bytes(), file


def test_another_seed_gives_other_chunks(robot_bag, robot, tmp_path):
    assert evaluate(robot_bag, robot, tmp_path / 'zero') == 0
    assert evaluate(robot_bag, robot, tmp_path / 'seven', '--seed', '7') == 0
    assert not np.allclose(episode_of(tmp_path / 'zero').actions, episode_of(tmp_path / 'seven').actions)


def test_latency_delays_chunks_and_misses_ticks_as_the_node_would(robot_bag, robot, tmp_path):
    assert evaluate(robot_bag, robot, tmp_path / 'out', '--latency', '0,50,300') == 0
    on_time, late = episode_of(tmp_path / 'out', 'robot-lockstep'), episode_of(tmp_path / 'out', 'robot-50ms')
    np.testing.assert_array_equal(on_time.actions, late.actions)
    assert set(late.ready_ns - late.looked_ns) == {50_000_000}
    # A tick at 0 is blocked, then one at 0.2 s; each inference of 300 ms ends after the next tick is due.
    slow = episode_of(tmp_path / 'out', 'robot-300ms')
    assert ((slow.looked_ns - BEGIN_NS) / 1e9).tolist() == pytest.approx([0.2, 0.5, 0.8, 1.1, 1.4, 1.7])
    assert slow.counts['ticks_skipped'] > 0


def test_measured_latency_is_that_of_this_machine(robot_bag, robot, tmp_path):
    assert evaluate(robot_bag, robot, tmp_path / 'out', '--latency', 'measured') == 0
    episode = episode_of(tmp_path / 'out', 'robot-measured')
    took = (episode.ready_ns - episode.looked_ns) / 1e9
    assert (took > 1e-4).all()
    timing = json.loads((tmp_path / 'out/robot-measured/episode/timing.json').read_text())
    np.testing.assert_allclose(took, timing['inference'], atol=1e-6)


@pytest.mark.parametrize(
    'maker',
    [
        BagMaker(storage=StoragePlugin.SQLITE3),
        BagMaker(compression=(CompressionMode.STORAGE, CompressionFormat.ZSTD)),
        BagMaker(storage=StoragePlugin.SQLITE3, compression=(CompressionMode.FILE, CompressionFormat.ZSTD)),
        BagMaker(
            storage=StoragePlugin.SQLITE3, compression=(CompressionMode.MESSAGE, CompressionFormat.ZSTD)
        ),
    ],
    ids=['sqlite3', 'mcap-zstd', 'sqlite3-file-zstd', 'sqlite3-message-zstd'],
)
def test_every_kind_of_bag_gives_the_same(maker, robot_bag, robot, tmp_path):
    bag = maker.write(tmp_path / 'episode')
    assert evaluate(robot_bag, robot, tmp_path / 'plain') == 0
    assert evaluate(bag, robot, tmp_path / 'other') == 0
    np.testing.assert_array_equal(
        episode_of(tmp_path / 'plain').actions, episode_of(tmp_path / 'other').actions
    )


@pytest.mark.parametrize('storage', list(StoragePlugin))
def test_a_bag_without_its_metadata_is_read_all_the_same(storage, robot_bag, robot, tmp_path):
    bag = BagMaker(storage=storage).write(tmp_path / 'episode')
    (bag / 'metadata.yaml').unlink()
    assert evaluate(robot_bag, robot, tmp_path / 'plain') == 0
    assert evaluate(bag, robot, tmp_path / 'other') == 0
    np.testing.assert_array_equal(
        episode_of(tmp_path / 'plain').actions, episode_of(tmp_path / 'other').actions
    )


def test_joints_in_another_order_give_the_same(robot_bag, robot, tmp_path):
    bag = BagMaker(joints=('gripper', 'extra', 'a', 'b')).write(tmp_path / 'episode')
    assert evaluate(robot_bag, robot, tmp_path / 'plain') == 0
    assert evaluate(bag, robot, tmp_path / 'other') == 0
    np.testing.assert_array_equal(
        episode_of(tmp_path / 'plain').actions, episode_of(tmp_path / 'other').actions
    )


def test_images_of_another_size_are_used(robot, tmp_path):
    bag = BagMaker(size=(30, 100)).write(tmp_path / 'episode')
    assert evaluate(bag, robot, tmp_path / 'out') == 0
    assert episode_of(tmp_path / 'out').chunks == 9


def test_a_renamed_topic_is_named_with_the_remedy_and_the_remedy_works(robot, tmp_path, capsys):
    bag = BagMaker(renamed={'/front': '/camera/front'}).write(tmp_path / 'episode')
    assert evaluate(bag, robot, tmp_path / 'out') == 2
    error = capsys.readouterr().err
    assert "the topic '/front' of the input 'base_0_rgb' is not in it" in error
    assert '--rename /front:=/camera/front' in error
    assert 'Traceback' not in error
    assert evaluate(bag, robot, tmp_path / 'out', '--rename', '/front:=/camera/front') == 0


def test_without_recorded_commands_the_joint_states_are_the_reference(robot, tmp_path):
    bag = BagMaker(left_out=('/commands',)).write(tmp_path / 'episode')
    assert evaluate(bag, robot, tmp_path / 'out') == 0
    assert episode_of(tmp_path / 'out').reference_topic == '/joint_states'


def test_a_configuration_for_another_robot_names_the_joint(robot_bag, tiny, tmp_path, capsys):
    joints = [{'name': name} for name in ('x', 'y', 'z')]
    other = write_config(tmp_path / 'other.yaml', tiny, robot={'joints': joints})
    assert evaluate(robot_bag, other, tmp_path / 'out') == 2
    assert "the joint 'x' is missing (names: a, b, gripper)" in capsys.readouterr().err


def test_an_empty_bag_and_one_that_is_not_there(robot, tmp_path, capsys):
    empty = BagMaker(seconds=0.0).write(tmp_path / 'empty')
    assert evaluate(empty, robot, tmp_path / 'out') == 2
    assert 'it is empty' in capsys.readouterr().err
    assert evaluate(tmp_path / 'nothing', robot, tmp_path / 'out') == 2
    assert 'no such file or directory' in capsys.readouterr().err


def test_damaged_pictures_are_named_and_the_others_used(robot, tmp_path):
    def cut(time_ns, message):
        if 0.5e9 < time_ns - BEGIN_NS < 1.0e9:
            message.data = message.data[:100]
        return message

    bag = BagMaker(change={'/wrist': cut}).write(tmp_path / 'episode')
    assert evaluate(bag, robot, tmp_path / 'out') == 0
    episode = episode_of(tmp_path / 'out')
    assert 5 <= episode.chunks < 9
    (problem,) = episode.problems
    assert problem['topic'] == '/wrist'
    assert 'corrupt JPEG' in problem['what']
    assert 0.5 <= problem['first_s'] <= 1.0


def test_stamps_that_go_back_are_counted(robot, tmp_path):
    def turn(time_ns, message):
        if time_ns - BEGIN_NS == 1_000_000_000:
            message.header.stamp.sec -= 1
        return message

    bag = BagMaker(change={'/joint_states': turn}).write(tmp_path / 'episode')
    assert evaluate(bag, robot, tmp_path / 'out') == 0
    told = [p['what'] for p in episode_of(tmp_path / 'out').problems]
    assert any('its stamp goes back by 0.980 s' in what for what in told)


class WithDamagedTime(BagMaker):
    """The last message's time is wrong by `hours`."""

    hours = 0.0

    def messages(self):
        found = list(super().messages())
        time_ns, *rest = found.pop()
        return [*found, (time_ns + round(self.hours * 3600) * 10**9, *rest)]


def test_a_gap_does_not_hold_it_up(robot, tmp_path):
    maker = WithDamagedTime()
    maker.hours = 5.0
    assert evaluate(maker.write(tmp_path / 'episode'), robot, tmp_path / 'out') == 0
    episode = episode_of(tmp_path / 'out')
    assert 9 <= episode.chunks <= 12
    assert any('a damaged time' in problem['what'] for problem in episode.problems)


def test_a_time_years_from_all_others_is_told(robot, tmp_path, capsys):
    maker = WithDamagedTime()
    maker.hours = 24 * 365 * 30
    assert evaluate(maker.write(tmp_path / 'episode'), robot, tmp_path / 'out') != 0
    assert 'lie 10,950 days apart: a time in it is damaged' in capsys.readouterr().err


def test_a_truncated_bag_is_used_as_far_as_it_goes(robot, tmp_path):
    bag = BagMaker(seconds=6.0, size=(200, 300)).write(tmp_path / 'episode')
    file = next(bag.glob('*.mcap'))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert evaluate(bag, robot, tmp_path / 'out') == 0
    episode = episode_of(tmp_path / 'out')
    assert 5 < episode.chunks < 25
    assert 'not all of it can be read' in episode.problems[0]['what']


def test_a_flipped_byte_costs_its_part_of_the_bag_only(robot, tmp_path):
    bag = BagMaker(seconds=6.0, size=(200, 300)).write(tmp_path / 'episode')
    file = next(bag.glob('*.mcap'))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    assert evaluate(bag, robot, tmp_path / 'out') == 0
    episode = episode_of(tmp_path / 'out')
    # 1 MB of 22 are lost, a chunk of the file format.
    assert 25 <= episode.chunks <= 30
    assert (episode.looked_ns[-1] - BEGIN_NS) / 1e9 > 5.5


def test_several_bags_and_configurations_in_processes(robot_bag, robot, tiny, tmp_path):
    second = BagMaker(seed=5).write(tmp_path / 'second')
    slow = write_config(tmp_path / 'slow.yaml', tiny, rates={'chunk_rate_hz': 2.0})
    out = tmp_path / 'out'
    code = evaluate([robot_bag, second], robot, out, '--config', str(slow), '--processes', '2')
    assert code == 0
    found = results(out)['variants']
    assert {name: list(v['episodes']) for name, v in found.items()} == {
        'robot': ['episode', 'second'],
        'slow': ['episode', 'second'],
    }
    assert found['robot']['intervals'] == '95 %, bootstrap over episodes'
    # What runs beside it changes nothing.
    assert evaluate([robot_bag, second], robot, tmp_path / 'alone', '--processes', '1') == 0
    assert (out / 'robot/second/episode.npz').read_bytes() == (
        tmp_path / 'alone/robot/second/episode.npz'
    ).read_bytes()


def test_one_bad_bag_of_two_is_named_and_the_other_evaluated(robot_bag, robot, tmp_path, capsys):
    bad = BagMaker(left_out=('/wrist',)).write(tmp_path / 'bad')
    assert evaluate([bad, robot_bag], robot, tmp_path / 'out') == 3
    assert 'robot/bad: ' in capsys.readouterr().err
    found = results(tmp_path / 'out')
    assert list(found['variants']['robot']['episodes']) == ['episode']
    assert list(found['failed']) == ['robot/bad']


def test_finished_episodes_are_not_done_again_unless_something_changed(robot_bag, robot, tmp_path):
    out = tmp_path / 'out'
    done = out / 'robot/episode/done.json'
    assert evaluate(robot_bag, robot, out) == 0
    before = done.stat().st_mtime_ns
    assert evaluate(robot_bag, robot, out) == 0
    assert done.stat().st_mtime_ns == before
    assert evaluate(robot_bag, robot, out, '--seed', '3') == 0
    assert done.stat().st_mtime_ns > before


def test_limits_decide_the_exit_code(robot_bag, robot, tmp_path, capsys):
    limits = tmp_path / 'limits.yaml'
    limits.write_text('limits: {action_error.all.mae: 0.0001}\n')
    assert evaluate(robot_bag, robot, tmp_path / 'out', '--thresholds', str(limits)) == 1
    assert 'OVER THE LIMIT: action_error.all.mae is' in capsys.readouterr().out
    limits.write_text('limits: {action_eror.all.mae: 0.1}\n')
    assert evaluate(robot_bag, robot, tmp_path / 'out', '--thresholds', str(limits)) == 2
    assert "did you mean 'action_error.all.mae'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ('words', 'told'),
    [
        (['--strategy', 'magic'], "there is no strategy 'magic'"),
        (['--set', 'rates.chunk_rate=3'], 'rates.chunk_rate'),
        (['--set', 'nonsense'], "'nonsense' is no KEY=VALUE"),
        (['--rename', '/a'], "'/a' is no TOPIC:=NAME"),
        (['--reference', '/front'], "the reference '/front' holds sensor_msgs/msg/Image"),
        (['--precision', 'fp8'], "'fp8' does not run on 'cpu'"),
    ],
)
def test_wrong_options_are_told_in_one_line(words, told, robot_bag, robot, tmp_path, capsys):
    assert evaluate(robot_bag, robot, tmp_path / 'out', *words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert 'Traceback' not in error


def test_an_interrupted_run_keeps_what_is_finished_and_goes_on(robot, tmp_path):
    bags = [BagMaker(seconds=8.0, seed=i).write(tmp_path / f'bag{i}') for i in range(8)]
    out = tmp_path / 'out'
    command = [sys.executable, '-m', 'flashrt_ros.cli', 'evaluate', *map(str, bags)]
    command += ['--config', str(robot), '--out', str(out), '--no-report', '--processes', '1']
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    deadline = time.monotonic() + 60
    while not (out / 'robot/bag0/done.json').exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130, error
    assert 'Traceback' not in error
    kept = {path.parent.name: path.stat().st_mtime_ns for path in out.glob('robot/*/done.json')}
    assert 1 <= len(kept) < 8
    assert main(command[3:]) == 0
    after = {path.parent.name: path.stat().st_mtime_ns for path in out.glob('robot/*/done.json')}
    assert len(after) == 8
    assert {name: after[name] for name in kept} == kept


@pytest.mark.parametrize('strategy', ['sync', 'async', 'ensemble', 'rtc_identity', 'rtc'])
def test_strategies_execute_the_same_policy_in_their_own_way(strategy, robot_bag, robot, tmp_path):
    words = ['--strategy', strategy, '--latency', '100']
    assert evaluate(robot_bag, robot, tmp_path / 'out', *words) == 0
    episode = episode_of(tmp_path / 'out', 'robot-100ms')
    assert len(episode.commands) > 80
    starts = np.diff(episode.looked_ns) / 1e9
    if strategy == 'sync':
        # A chunk of 20 rows lasts 1 s, and only then comes the next inference.
        assert (starts >= 1.0).all()
    else:
        np.testing.assert_allclose(starts, 0.2)


def test_several_strategies_in_one_run(robot_bag, robot, tmp_path):
    assert evaluate(robot_bag, robot, tmp_path / 'out', '--strategy', 'async,ensemble') == 0
    found = results(tmp_path / 'out')['variants']
    assert list(found) == ['robot-async', 'robot-ensemble']
    jumps = [one['metrics']['seam.all.mae']['value'] for one in found.values()]
    assert jumps[1] < jumps[0]


def test_a_strategy_that_the_policy_cannot_do_is_told(robot_bag, robot, tmp_path, capsys):
    assert evaluate(robot_bag, robot, tmp_path / 'out', '--strategy', 'rtc_prefix') == 2
    assert 'cannot do rtc_prefix' in capsys.readouterr().err


def test_without_ray_the_remedy_is_told(robot_bag, robot, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    assert evaluate(robot_bag, robot, tmp_path / 'out', '--ray') == 2
    assert 'pip install ray' in capsys.readouterr().err.lower()


@pytest.mark.slow
def test_through_ray_the_same_comes_out(robot_bag, robot, tmp_path):
    pytest.importorskip('ray', reason='needs Ray: pip install ray')
    second = BagMaker(seed=5).write(tmp_path / 'second')
    bad = BagMaker(left_out=('/wrist',)).write(tmp_path / 'bad')
    assert evaluate([robot_bag, second, bad], robot, tmp_path / 'ray', '--ray') == 3
    assert evaluate([robot_bag, second], robot, tmp_path / 'here') == 0
    for name in ('episode', 'second'):
        file = f'robot/{name}/episode.npz'
        assert (tmp_path / 'ray' / file).read_bytes() == (tmp_path / 'here' / file).read_bytes()
    assert list(results(tmp_path / 'ray')['failed']) == ['robot/bad']
