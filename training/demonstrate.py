"""Writes a data set of scripted demonstrations, and how often the expert itself succeeds.

    python -m training.demonstrate data --episodes 2000 --processes 8

The expert is disturbed on purpose: it starts from odd places, its commands are noisy, cubes are turned and
dropped. A moment's chunk is what it would do undisturbed from there on, found out in a copy of the physics
(after DART, arXiv 1703.09327). Every episode follows from its seed; seeds below FIRST_SEED are kept for
validation. Goes on where it was interrupted.

With --policy a trained policy acts and the expert only says what it would have done: the states that the
policy comes to by its own mistakes (DAgger, arXiv 1011.0686).
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import mujoco
import numpy as np

from flashrt_ros.policy import Observation, Policy, PolicyOptions, load_policy
from flashrt_ros.simulation.cameras import Cameras
from flashrt_ros.simulation.prompts import PICK_AND_PLACE
from flashrt_ros.simulation.so101 import SAMPLING, so101
from flashrt_ros.simulation.world import World
from training.dataset import HORIZON, VIEWS, Moment, encode, write_shard
from training.expert import OPEN, Expert, tick
from training.kinematics import ARM

FIRST_SEED = 1_000_000
VIEW_NAMES = {'base_0_rgb': 'front', 'left_wrist_0_rgb': 'wrist'}
WIDTH, HEIGHT = 320, 240
TICKS_LONGEST, TICKS_AFTER = 200, 18
EVERY = 6
"""Ticks between two moments that are kept, on average."""

KICKS = (0.0, 0.0, 0.006, 0.012, 0.02)
"""rad; standard deviation of the noise on the commands of an episode, until it calms down."""

MEMORY = 0.7
"""Of the noise, from tick to tick."""


class Demonstrator:
    """One simulated robot with its expert and its cameras. policy: who acts, if not the expert."""

    def __init__(self, policy: Policy | None = None) -> None:
        self._policy = policy
        scene = so101()
        self._world, self._copy = World(scene), World(scene)
        self._expert, self._other = Expert(self._world), Expert(self._copy)
        self._cameras = Cameras(scene, WIDTH, HEIGHT)

    def episode(self, seed: int) -> tuple[list[Moment], bool]:
        """Moments, and whether the disturbed expert succeeded."""
        rng = np.random.default_rng(seed)
        world = self._world
        world.reset(seed)
        self._begin_anywhere(rng)
        kicks, calm, drop = rng.choice(KICKS), rng.integers(20, 80), rng.integers(20, 400)
        previous, noise = world.positions, np.zeros(ARM + 1)
        moments, after = [], 0
        if self._policy is not None:
            return self._acted(seed, rng, self._policy)
        for now in range(TICKS_LONGEST):
            if rng.random() < 1 / EVERY:
                moments.append(self._moment(previous, seed, now))
            command = self._expert.command(previous)
            noise = MEMORY * noise + kicks * (now < calm) * rng.normal(size=ARM + 1) * (1, 1, 1, 1, 1, 0)
            command = command + noise
            if drop <= now < drop + 8:
                command[ARM] = OPEN
            tick(world, previous, command)
            previous = command
            after += world.outcome.succeeded
            if world.outcome.failed or after > TICKS_AFTER:
                break
        return moments, after > 0

    def _acted(self, seed: int, rng: np.random.Generator, policy: Policy) -> tuple[list[Moment], bool]:
        """The policy's episode: a few rows of each chunk are executed, and every chunk is a moment."""
        world, now, after = self._world, 0, 0
        policy.reseed(seed)
        previous, moments = world.positions, []
        while now < TICKS_LONGEST and not world.outcome.failed and after <= TICKS_AFTER:
            snapshot = world.snapshot()
            views = {view: self._cameras.look(camera, snapshot) for view, camera in VIEW_NAMES.items()}
            moments.append(self._moment(previous, seed, now))
            seen = Observation(views, world.positions.astype(np.float32), PICK_AND_PLACE)
            chunk = policy.infer(seen).actions.astype(np.float64)
            for row in chunk[1 : 1 + rng.integers(3, 9)]:
                tick(world, previous, row)
                previous, now, after = row, now + 1, after + world.outcome.succeeded
        return moments, after > 0

    def _begin_anywhere(self, rng: np.random.Generator) -> None:
        """Half of the episodes begin at home, as the task does; the others with arm or gripper elsewhere."""
        world, task = self._world, self._world.task
        cube, goal = task.cube(world.data)[:2], task.goal
        if rng.random() < 0.25:
            cube = rng.uniform(SAMPLING[0] - 0.01, SAMPLING[1] + 0.01)
            while np.linalg.norm(goal - cube) < 0.05:
                cube = rng.uniform(SAMPLING[0] - 0.01, SAMPLING[1] + 0.01)
            task.place(world.data, cube, goal)
        if rng.random() < 0.25:
            yaw = rng.uniform(-0.8, 0.8)
            world.data.qpos[-4:] = (np.cos(yaw / 2), 0, 0, np.sin(yaw / 2))
        if rng.random() < 0.5:
            near = rng.random() < 0.4
            spot = cube + rng.normal(0, 0.03, 2) if near else rng.uniform(*SAMPLING)
            height = rng.uniform(0.05, 0.11) if near else rng.uniform(0.06, 0.14)
            arm = self._expert.kinematics.solve(np.array([*spot, height]), world.home)
            world.put(np.append(arm + rng.normal(0, 0.03, ARM), rng.uniform(-0.1, 1.3)))
        else:
            world.put(world.home + rng.normal(0, 0.03, ARM + 1))
        mujoco.mj_forward(world.scene.physics, world.data)

    def _moment(self, previous: np.ndarray, seed: int, now: int) -> Moment:
        snapshot = self._world.snapshot()
        pictures = tuple(encode(self._cameras.look(view, snapshot)) for view in VIEWS)
        return Moment(pictures, self._world.positions, self._foretold(previous), seed, now)

    def _foretold(self, previous: np.ndarray) -> np.ndarray:
        """[HORIZON, 6] What the expert would command from here on, if nothing disturbed it."""
        mujoco.mj_copyData(self._copy.data, self._world.scene.physics, self._world.data)
        self._copy.task.goal = self._world.task.goal
        rows = [previous]
        for _ in range(HORIZON - 1):
            rows.append(self._other.command(rows[-1]))
            tick(self._copy, rows[-2], rows[-1])
        return np.stack(rows)


_demonstrator: Demonstrator | None = None


def shard(path: Path, seeds: range, checkpoint: Path | None) -> tuple[int, int]:
    """Write the episodes of these seeds. Returns how many moments and how many successes there are."""
    global _demonstrator
    if _demonstrator is None:
        options = PolicyOptions(threads=1, delta_actions=(True,) * ARM + (False,))
        _demonstrator = Demonstrator(None if checkpoint is None else load_policy(checkpoint, options))
    moments, successes = [], 0
    for seed in seeds:
        found, succeeded = _demonstrator.episode(seed)
        moments += found
        successes += succeeded
    write_shard(path, moments)
    return len(moments), successes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path, help='folder to write')
    parser.add_argument('--episodes', type=int, default=2000)
    parser.add_argument(
        '--first', type=int, default=FIRST_SEED, help='seed of the first episode (%(default)s)'
    )
    parser.add_argument('--shard', type=int, default=25, help='episodes in a file (%(default)s)')
    parser.add_argument('--policy', type=Path, metavar='CHECKPOINT', help='who acts; default: the expert')
    parser.add_argument('--processes', type=int, default=1)
    arguments = parser.parse_args()
    arguments.data.mkdir(parents=True, exist_ok=True)
    last = arguments.first + arguments.episodes
    parts = [
        range(first, min(first + arguments.shard, last))
        for first in range(arguments.first, last, arguments.shard)
    ]
    tasks = {arguments.data / f'{part.start}.npz': part for part in parts}
    tasks = {path: part for path, part in tasks.items() if not path.exists()}
    began, episodes, moments, successes = time.monotonic(), 0, 0, 0
    with ProcessPoolExecutor(arguments.processes) as pool:
        for part, (count, succeeded) in zip(
            tasks.values(), pool.map(shard, tasks, tasks.values(), repeat(arguments.policy)), strict=True
        ):
            episodes, moments, successes = episodes + len(part), moments + count, successes + succeeded
            print(
                f'{episodes} episodes, {moments} moments, success {successes / episodes:.1%}, '
                f'{time.monotonic() - began:.0f} s',
                flush=True,
            )


if __name__ == '__main__':
    main()
