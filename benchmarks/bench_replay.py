"""How fast bags are evaluated: reading and decoding alone, the nano policy on a CPU, or the full size on a
GPU.

    python -m benchmarks.bench_replay read     # parse and decode every frame; x real time
    python -m benchmarks.bench_replay nano     # flashrt evaluate with demo/so101_pi05; wall, CPU, memory
    python -m benchmarks.bench_replay memory --seconds 60 600    # bags of several lengths, tiny policy
    python -m benchmarks.bench_replay full --precision bf16      # full-size pi0.5, random weights

The bag is made first: two cameras with JPEGs of 640 x 480 at 30 Hz, joint states at 60 Hz, commands at 30 Hz.
Its pictures are smooth shapes with noise, about 60 kB each, as a real camera's.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from rosbags.rosbag2 import StoragePlugin, Writer

from flashrt_ros.configuration import RobotConfig, load_config, with_values
from flashrt_ros.evaluation.bag import open_bag
from flashrt_ros.evaluation.batch.summary import machine
from flashrt_ros.evaluation.interfaces import duration_of, header_at, known_types, make
from flashrt_ros.evaluation.replay.feed import COMPRESSED, JOINT_STATE, TRAJECTORY, Feed, find_sources
from flashrt_ros.evaluation.replay.play import Player
from flashrt_ros.evaluation.replay.watch import Latency, Looked, Watch
from flashrt_ros.ingest import Taken

if TYPE_CHECKING:
    from benchmarks.full_policy import FullPolicies

ROOT = Path(__file__).resolve().parents[1]
BEGIN_NS = 1_795_348_800 * 10**9
PICTURES = 30
"""Different pictures of each camera; they repeat, because making them is slow."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('what', choices=('read', 'nano', 'memory', 'full'))
    parser.add_argument('--seconds', type=float, nargs='+', default=[60.0], help='length of the bag, or bags')
    parser.add_argument('--precision', nargs='+', default=['bf16', 'fp8'], choices=('bf16', 'fp8'))
    parser.add_argument('--rate', type=float, help='chunks per second of the bag')
    arguments = parser.parse_args()
    measure = {'read': read, 'nano': nano, 'memory': memory, 'full': full}[arguments.what]
    lengths = arguments.seconds
    for arguments.seconds in lengths:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(write_bag(Path(folder, 'bag'), arguments.seconds), arguments)
        found |= {'seconds of bag': arguments.seconds, 'machine': machine(), 'load': os.getloadavg()[0]}
        print(json.dumps(found, indent=1), flush=True)


def robot(rate_hz: float) -> RobotConfig:
    """The demo's robot with this chunk rate."""
    config = load_config(ROOT / 'config/so101.yaml')
    control = max(config.rates.control_rate_hz, rate_hz)
    return with_values(
        config, {'rates.control_rate_hz': control, 'rates.chunk_rate_hz': rate_hz}, 'benchmark'
    )


def read(bag: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every frame of both cameras through feed and ingest, in one thread."""
    config = robot(arguments.rate or 30.0)
    begin, cpu = time.perf_counter(), time.process_time()
    with open_bag(bag) as opened:
        watch = Watch(Feed(opened, find_sources(opened, config)), config, Latency(0.0))
        taken = sum(isinstance(e, Looked) and isinstance(e.outcome, Taken) for e in watch)
    wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
    return {
        'observations': taken,
        'wall s': wall,
        'CPU s': cpu,
        'x real time': arguments.seconds / wall,
        'x real time by CPU': arguments.seconds / cpu,
        'peak MiB': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def nano(bag: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The whole of flashrt evaluate: replay, results bag, metrics, report."""
    from flashrt_ros.cli.main import main as flashrt

    begin, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as out:
        code = flashrt(['evaluate', str(bag), '--config', str(ROOT / 'config/so101.yaml'), '--out', out])
    wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {'exit code': code, 'wall s': wall, 'CPU s': cpu, 'peak MiB': peak}


def memory(bag: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """flashrt evaluate in a process of its own, with a policy so small that only the evaluation counts."""
    from flashrt_ros.models.random import write_random_checkpoint
    from flashrt_ros.models.spec import TINY_PI05

    config = robot(arguments.rate or 4.0)
    joints = len(config.joint_names)
    checkpoint = write_random_checkpoint(bag.parent / 'tiny', TINY_PI05, state_dim=joints, action_dim=joints)
    words = [
        'evaluate',
        str(bag),
        '--config',
        str(ROOT / 'config/so101.yaml'),
        '--out',
        str(bag.parent / 'out'),
    ]
    words += ['--checkpoint', str(checkpoint), '--set', f'rates.chunk_rate_hz={config.rates.chunk_rate_hz:g}']
    begin = time.perf_counter()
    code = subprocess.run(
        [sys.executable, '-m', 'flashrt_ros.cli', *words], stdout=subprocess.DEVNULL
    ).returncode
    # The largest of the children so far: give lengths in ascending order.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {'exit code': code, 'wall s': time.perf_counter() - begin, 'peak MiB': peak}


def full(bag: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Chunks per second of a lockstep replay, against the engine replaying its graph and doing nothing
    else."""
    from benchmarks.full_policy import FullPolicies

    policies = FullPolicies()
    return {precision: _full(bag, policies, precision, arguments) for precision in arguments.precision}


def _full(bag: Path, policies: FullPolicies, precision: str, arguments: argparse.Namespace) -> dict[str, Any]:
    policy, engine = policies.make(precision)
    config = robot(arguments.rate or 30.0)
    with open_bag(bag) as opened:
        sources = find_sources(opened, config)
        begin, cpu = time.perf_counter(), time.process_time()
        episode = Player(Feed(opened, sources), config, policy).play('measured')
        wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
    # The graph that the replay used last, with what it wrote last.
    spent = []
    for _ in range(300):
        at = time.perf_counter()
        engine.replay()
        engine.read()
        spent.append(time.perf_counter() - at)
    alone = float(np.median(spent))
    return {
        'chunks': episode.chunks,
        'wall s': wall,
        'CPU s': cpu,
        'chunks per s': episode.chunks / wall,
        'engine alone, replays per s': 1 / alone,
        'engine alone, ms': alone * 1e3,
        'share of the engine': episode.chunks / wall * alone,
    }


def write_bag(path: Path, seconds: float) -> Path:
    """Two cameras out of phase, joint states and commands of the demo's robot."""
    config, types = robot(4.0), known_types()
    topics = {view: camera.topic for view, camera in config.cameras.items()}
    joints = list(config.joint_names)
    rng = np.random.default_rng(0)
    pictures = {view: [_jpeg(rng, i) for i in range(PICTURES)] for view in topics}
    events: list[tuple[int, str, str, int]] = []
    for number, (view, topic) in enumerate(topics.items()):
        events += [(_at(i / 30 + number / 60), topic, view, i) for i in range(round(seconds * 30))]
    events += [(_at(i / 60), '/joint_states', 'state', i) for i in range(round(seconds * 60))]
    events += [(_at(i / 30 + 0.001), '/commands', 'command', i) for i in range(round(seconds * 30))]
    kinds = dict.fromkeys(topics.values(), COMPRESSED)
    kinds |= {'/joint_states': JOINT_STATE, '/commands': TRAJECTORY}
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as bag:
        connections = {t: bag.add_connection(t, kind, typestore=types) for t, kind in kinds.items()}
        for time_ns, topic, name, number in sorted(events):
            if name in pictures:
                data = pictures[name][number % PICTURES]
                message = make(COMPRESSED, header=header_at(time_ns), format='jpeg', data=data)
            else:
                message = _motion(name, time_ns, joints)
            bag.write(connections[topic], time_ns, types.serialize_cdr(message, kinds[topic]))
    return path


def _motion(name: str, time_ns: int, joints: list[str]) -> Any:
    empty, seconds = np.zeros(0), (time_ns - BEGIN_NS) / 1e9
    positions = 0.4 * np.sin(seconds + np.arange(len(joints)))
    if name == 'state':
        fields = {'position': positions, 'velocity': empty, 'effort': empty}
        return make(JOINT_STATE, header=header_at(time_ns), name=joints, **fields)
    point = make(
        'trajectory_msgs/msg/JointTrajectoryPoint',
        positions=positions,
        velocities=empty,
        accelerations=empty,
        effort=empty,
        time_from_start=duration_of(0),
    )
    return make(TRAJECTORY, header=header_at(time_ns), joint_names=joints, points=[point])


def _at(seconds: float) -> int:
    return BEGIN_NS + round(seconds * 1e9)


def _jpeg(rng: np.random.Generator, number: int) -> np.ndarray:
    y, x = np.mgrid[0:480, 0:640].astype(np.float32)
    shapes = [np.sin(x / (20 + 7 * c) + number / 5) * np.cos(y / (30 + 5 * c)) for c in range(3)]
    pixels = 127 + 90 * np.stack(shapes, axis=-1) + rng.normal(0, 6, (480, 640, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, 'JPEG', quality=85)
    return np.frombuffer(buffer.getvalue(), dtype=np.uint8)


if __name__ == '__main__':
    main()
