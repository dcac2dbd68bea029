"""`flashrt inspect`: what is in a checkpoint or a bag, and what does not fit."""

import json

import numpy as np
import pytest

from evaluation.robots import BagMaker, write_config
from flashrt_ros.cli.main import main


def inspect(capsys, *words):
    code = main(['inspect', *map(str, words), '--json'])
    return code, json.loads(capsys.readouterr().out)


def test_a_checkpoint(tiny, capsys):
    code, found = inspect(capsys, tiny)
    assert code == 0
    assert found['views'] == ['base_0_rgb', 'left_wrist_0_rgb', 'right_wrist_0_rgb']
    assert (found['family'], found['state_dim'], found['action_dim'], found['horizon']) == ('pi05', 3, 3, 20)
    assert len(found['state_statistics']['low']) >= 3
    assert 'fits' not in found


def test_a_bag(robot_bag, capsys):
    code, found = inspect(capsys, robot_bag)
    assert code == 0
    topics = found['topics']
    assert topics['/front']['size'] == [64, 48]
    assert topics['/front']['encoding'] == 'rgb8'
    assert topics['/wrist']['encoding'] == 'jpeg'
    assert topics['/joint_states']['joints'] == ['a', 'b', 'gripper']
    assert topics['/joint_states']['rate_hz'] == pytest.approx(50, rel=0.03)


def test_they_fit(robot_bag, robot, tiny, capsys):
    assert main(['inspect', str(robot_bag), '--config', str(robot)]) == 0
    assert '\nFITS' in capsys.readouterr().out
    assert main(['inspect', str(tiny), '--config', str(robot)]) == 0
    assert '\nFITS' in capsys.readouterr().out


def test_a_view_that_the_checkpoint_lacks(robot_bag, tiny, tmp_path, capsys):
    cameras = {'top': {'topic': '/front'}, 'base_0_rgb': {'topic': '/x'}}
    robot = write_config(tmp_path / 'robot.yaml', tiny, cameras=cameras)
    code, found = inspect(capsys, robot_bag, '--config', robot)
    assert code == 1
    assert any("has no view 'top'" in line for line in found['misfits'])
    assert any("the topic '/x'" in line for line in found['misfits'])


def test_degrees_where_radians_were_meant(robot, tmp_path, capsys):
    def degrees(_, message):
        message.position = np.degrees(message.position) + 90
        return message

    bag = BagMaker(change={'/joint_states': degrees}).write(tmp_path / 'bag')
    code, found = inspect(capsys, bag, '--config', robot)
    assert code == 1
    assert any("the joint 'a' is at" in line and 'check its scale' in line for line in found['misfits'])


def test_a_bag_that_was_cut(tmp_path, capsys):
    bag = BagMaker(seconds=4.0, size=(200, 300)).write(tmp_path / 'bag')
    file = next(bag.glob('*.mcap'))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    code, found = inspect(capsys, bag)
    assert code == 0
    assert 'not all of it can be read' in found['fault']
    assert 0 < found['topics']['/front']['messages'] < 80


def test_neither_bag_nor_checkpoint(tmp_path, capsys):
    assert main(['inspect', str(tmp_path)]) == 2
    assert 'it holds neither .mcap nor .db3 files' in capsys.readouterr().err
    assert main(['inspect', str(tmp_path / 'nothing')]) == 2
    assert 'no such file or directory' in capsys.readouterr().err
