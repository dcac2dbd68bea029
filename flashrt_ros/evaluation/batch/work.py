"""One job from beginning to end, in whatever process it runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from flashrt_ros.configuration import RobotConfig
from flashrt_ros.errors import FlashRTError
from flashrt_ros.evaluation.bag import Bag, BagError, open_bag
from flashrt_ros.evaluation.batch.folder import DONE, EPISODE, RESULTS, TIMING, finished, write_json
from flashrt_ros.evaluation.batch.plan import Job
from flashrt_ros.evaluation.replay.episode import Episode, save_episode
from flashrt_ros.evaluation.replay.feed import Feed, find_sources
from flashrt_ros.evaluation.replay.from_topics import TopicReader
from flashrt_ros.evaluation.replay.play import Player, Timings
from flashrt_ros.evaluation.replay.results_bag import ResultsBag
from flashrt_ros.loading import load_for
from flashrt_ros.policy import Policy


@dataclass(frozen=True)
class Outcome:
    """error: why the episode has no results, or ''. reused: it had been finished before."""

    variant: str
    episode: str
    error: str = ''
    reused: bool = False


class Silent:
    """A logger for those who show progress otherwise."""

    def info(self, message: str) -> None:
        pass


class Worker:
    """Runs jobs one after the other, and keeps the policy loaded while its configuration stays the same."""

    def __init__(self) -> None:
        self._policy: Policy | None = None
        self._loaded = ''

    def run(self, job: Job, progress: Callable[[float], None] = lambda _: None) -> Outcome:
        """Raises nothing that a bag or configuration can cause: the outcome tells it."""
        key = job.key() if job.bag.exists() else ''
        if key and finished(job.folder, key):
            return Outcome(job.variant.name, job.name, reused=True)
        try:
            with open_bag(job.bag, readable_part=True) as bag:
                episode, timings = self._evaluate(job, bag, progress)
        except FlashRTError as error:
            return Outcome(job.variant.name, job.name, error=str(error))
        save_episode(episode, job.folder / EPISODE)
        write_json(job.folder / TIMING, {'stages': timings.stages, 'inference': timings.inference})
        write_json(job.folder / DONE, {'key': key, 'bag': str(job.bag), 'episode': job.name})
        return Outcome(job.variant.name, job.name)

    def _evaluate(self, job: Job, bag: Bag, progress: Callable[[float], None]) -> tuple[Episode, Timings]:
        if not bag.topics or bag.end_ns <= bag.start_ns:
            raise BagError('it is empty', str(bag.path), 'record it again')
        config, choices = job.variant.config, job.choices
        if choices.topics_only:
            reader = TopicReader(bag, config, choices.reference)
            episode, stages, inference = reader.read(job.name)
            _require_chunks(episode, bag)
            job.folder.mkdir(parents=True, exist_ok=True)
            return episode, Timings(stages, inference)
        sources = find_sources(bag, config, choices.renamed, choices.reference)
        policy = self._policy_for(config)
        policy.reseed(choices.seed)
        shutil.rmtree(job.folder, ignore_errors=True)
        job.folder.mkdir(parents=True)
        results = ResultsBag(
            job.folder / RESULTS,
            config,
            sources,
            policy.info.name,
            timed=job.variant.latency_s is None,
            images=choices.images,
        )
        with closing(results):
            player = Player(Feed(bag, sources), config, policy, job.variant.latency_s, (results,))
            episode = player.play(job.name, progress)
        _require_chunks(episode, bag)
        return episode, player.timings

    def _policy_for(self, config: RobotConfig) -> Policy:
        wanted = json.dumps(
            [config.policy.model_dump(mode='json'), config.model_dump(mode='json')['cameras']]
        )
        if self._policy is None or wanted != self._loaded:
            if self._policy is not None:
                self._policy.close()
                self._policy = None
            self._policy = load_for(config, Silent())
            self._loaded = wanted
        return self._policy


def _require_chunks(episode: Episode, bag: Bag) -> None:
    """Raise BagError if the policy could never run, with the reason."""
    if episode.chunks:
        return
    likely = max(episode.problems, key=lambda p: p['count'], default=None)
    why = (
        f'{likely["topic"]}: {likely["what"]}' if likely else ', '.join(episode.reasons) or 'it is too short'
    )
    raise BagError(
        f'no chunk could be computed from it ({why})',
        str(bag.path),
        'give the configuration of the robot that it was recorded from, or record it again',
    )
