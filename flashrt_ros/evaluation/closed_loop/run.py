"""One episode after the other, in this process or in several; finished ones are read again."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from flashrt_ros.evaluation.batch.folder import ResultsError, read_json, write_json
from flashrt_ros.evaluation.batch.plan import Variant, state_of
from flashrt_ros.evaluation.batch.work import Silent
from flashrt_ros.evaluation.closed_loop.faults import CameraFault
from flashrt_ros.evaluation.closed_loop.recording import Recording
from flashrt_ros.evaluation.closed_loop.robot import SimulatedRobot
from flashrt_ros.evaluation.replay.episode import Episode
from flashrt_ros.evaluation.replay.play import Listener, Player
from flashrt_ros.evaluation.score.motion import jerk, seam_jumps
from flashrt_ros.loading import load_for
from flashrt_ros.policy import Policy
from flashrt_ros.simulation.cameras import Cameras
from flashrt_ros.simulation.robots import build
from flashrt_ros.simulation.world import World

WIDTH, HEIGHT = 320, 240
"""Of the simulated cameras."""


@dataclass(frozen=True)
class Condition:
    """What is tried under one name: a configuration with a latency, and cameras with a fault."""

    name: str
    variant: Variant
    fault: CameraFault


@dataclass(frozen=True)
class Trial:
    """One episode. seed: of the task's layout, the flow's noise and the frames that are lost.

    robot: name of the simulated robot. bag: record it as well. folder: of the condition's results.
    """

    condition: Condition
    seed: int
    robot: str
    limit_s: float
    folder: Path
    bag: bool = False

    @property
    def path(self) -> Path:
        return self.folder / f'{self.seed}.json'

    @property
    def bag_path(self) -> Path:
        return self.folder / f'{self.seed}_bag'

    def key(self) -> str:
        """The same for the same work."""
        config = self.condition.variant.config
        content = [
            config.model_dump(mode='json'),
            self.condition.variant.latency_s,
            asdict(self.condition.fault),
            [self.seed, self.robot, self.limit_s],
            state_of(Path(config.policy.checkpoint)),
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Result:
    """How one episode went. seconds: to success, or None. distance_m: from object to goal at the end.

    jerk: RMS over commands and joints [rad/s^3]. seam: 90th percentile of the commands' jump at a new chunk
    [rad]. blocked: share of ticks without a chunk. inference_ms: median on this machine. limited, refused:
    commands that the robot's controller changed or refused.
    """

    seed: int
    succeeded: bool
    seconds: float | None
    lost: bool
    distance_m: float
    duration_s: float
    chunks: int
    blocked: float
    jerk: float
    seam: float
    inference_ms: float
    limited: int
    refused: int


class Worker:
    """Keeps policy, physics and OpenGL context from one trial to the next."""

    def __init__(self) -> None:
        self._policy: Policy | None = None
        self._loaded = ''
        self._world: World | None = None
        self._cameras: Cameras | None = None

    def run(self, trial: Trial) -> Result:
        """Raises what `load_for` raises, and SimulationError; an episode itself raises nothing."""
        known = stored(trial)
        if known is not None:
            return known
        variant = trial.condition.variant
        policy = self._policy_for(trial)
        policy.reseed(trial.seed)
        world, cameras = self._robot(trial.robot)
        world.reset(trial.seed)
        with ExitStack() as stack:
            listeners: list[Listener] = []
            recording = None
            if trial.bag:
                recording = stack.enter_context(
                    closing(Recording(trial.bag_path, variant.config, policy.info.name))
                )
                listeners.append(recording)
            robot = SimulatedRobot(
                world,
                cameras,
                variant.config,
                trial.limit_s,
                trial.condition.fault,
                trial.seed,
                recording.arrived if recording else lambda _: None,
            )
            listeners.append(robot)
            player = Player(robot, variant.config, policy, variant.latency_s, tuple(listeners), live=True)
            episode = player.play(str(trial.seed))
        result = _result(trial.seed, robot, world, episode, player.timings.inference)
        trial.folder.mkdir(parents=True, exist_ok=True)
        write_json(trial.path, {'key': trial.key(), **asdict(result)})
        return result

    def _policy_for(self, trial: Trial) -> Policy:
        config = trial.condition.variant.config
        # The strategy is checked when a policy is loaded.
        wanted = json.dumps([config.policy.model_dump(mode='json'), config.executor.model_dump(mode='json')])
        if self._policy is None or wanted != self._loaded:
            if self._policy is not None:
                self._policy.close()
                self._policy = None
            self._policy, self._loaded = load_for(config, Silent()), wanted
        return self._policy

    def _robot(self, name: str) -> tuple[World, Cameras]:
        if self._world is None or self._cameras is None or self._world.scene.name != name:
            scene = build(name)
            self._world, self._cameras = World(scene), Cameras(scene, WIDTH, HEIGHT)
        return self._world, self._cameras


def _result(
    seed: int, robot: SimulatedRobot, world: World, episode: Episode, inference: Sequence[float]
) -> Result:
    _, jerks = jerk(episode.commands_ns, episode.commands)
    _, jumps = seam_jumps(episode)
    counts, seconds = robot.controller.counts, robot.seconds_to_success
    return Result(
        seed=seed,
        succeeded=seconds is not None,
        seconds=seconds,
        lost=world.outcome.failed,
        distance_m=world.outcome.distance_m,
        duration_s=episode.duration_s,
        chunks=episode.chunks,
        blocked=float((episode.blocked >= 0).mean()) if len(episode.blocked) else 1.0,
        jerk=float(np.sqrt(np.mean(jerks**2))) if jerks.size else 0.0,
        seam=float(np.percentile(np.abs(jumps), 90)) if jumps.size else 0.0,
        inference_ms=float(np.median(inference) * 1e3) if inference else 0.0,
        limited=sum(counts.limited.values()),
        refused=sum(counts.refused.values()),
    )


def stored(trial: Trial) -> Result | None:
    """The result of exactly this trial, if it has been run before (with its bag, if that is wanted)."""
    try:
        content = read_json(trial.path)
        if content.pop('key') != trial.key() or (trial.bag and not trial.bag_path.exists()):
            return None
        return Result(**content)
    except (ResultsError, KeyError, TypeError, AttributeError):
        return None


def run_trials(trials: Sequence[Trial], processes: int) -> Iterator[tuple[Trial, Result]]:
    """As they end."""
    if processes == 1:
        worker = Worker()
        for trial in trials:
            yield trial, worker.run(trial)
        return
    context = multiprocessing.get_context('spawn')
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    with ProcessPoolExecutor(processes, context, _begin, (threads,)) as pool:
        futures = {pool.submit(_work, trial): trial for trial in trials}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin(threads: int) -> None:
    global _worker
    import torch

    torch.set_num_threads(threads)
    _worker = Worker()


_worker: Worker


def _work(trial: Trial) -> Result:
    return _worker.run(trial)
