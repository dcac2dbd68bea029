"""The finished episodes of one evaluation: read again, scored, and written as evaluation.json."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flashrt_ros.configuration import RobotConfig
from flashrt_ros.configuration.load import parse_config
from flashrt_ros.errors import ConfigError
from flashrt_ros.evaluation.batch.folder import (
    EPISODE,
    EVALUATION,
    TIMING,
    ResultsError,
    read_json,
    write_json,
)
from flashrt_ros.evaluation.batch.plan import Choices, Job, Variant
from flashrt_ros.evaluation.replay.episode import FORMAT, Episode, load_episode
from flashrt_ros.evaluation.score import inputs
from flashrt_ros.evaluation.score.sample import Estimate
from flashrt_ros.evaluation.score.scores import Scores, Values, score


@dataclass(frozen=True)
class VariantResults:
    """What was found for one variant. stages: stage -> Estimate by 'p50', 'p90', 'p99' [s]."""

    name: str
    config: RobotConfig
    latency_s: float | None
    episodes: list[Episode]
    timings: list[dict[str, Any]]
    scores: Scores
    stages: dict[str, Estimate]


def read_variant(folder: Path, variant: Variant, names: Sequence[str]) -> VariantResults:
    """Read and score finished episodes. Raises ResultsError or EpisodeError for damaged ones."""
    episodes = [load_episode(folder / name / EPISODE) for name in names]
    timings = [read_json(folder / name / TIMING) for name in names]
    values = [_stage_values(episode, timing) for episode, timing in zip(episodes, timings, strict=True)]
    scores = score(episodes, values)
    stages = {name: e for name, e in scores.metrics.items() if name.startswith('stage.')}
    metrics = {name: e for name, e in scores.metrics.items() if name not in stages}
    kept = Scores(metrics, scores.rows, scores.over, scores.units)
    return VariantResults(variant.name, variant.config, variant.latency_s, episodes, timings, kept, stages)


def _stage_values(episode: Episode, timing: Mapping[str, Any]) -> Values:
    stages = {**timing['stages'], 'inference': timing['inference']}
    return {
        ('stage', name): (np.asarray(seconds, dtype=np.float64), episode.looked_ns)
        for name, seconds in stages.items()
        if len(seconds) == episode.chunks
    }


def write_summary(
    out: Path, results: Sequence[VariantResults], choices: Choices, failed: Mapping[str, str]
) -> None:
    """evaluation.json, which depends on bags, configuration and seed alone, and timing.json, which does not.

    failed: 'VARIANT/EPISODE' -> why it has no results.
    """
    write_json(
        out / EVALUATION,
        {
            'format': FORMAT,
            'seed': choices.seed,
            'failed': dict(failed),
            'variants': {one.name: _variant_json(one) for one in results},
        },
    )
    write_json(
        out / TIMING,
        {
            'date': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
            'machine': machine(),
            'variants': {
                one.name: {name: asdict(estimate) for name, estimate in one.stages.items()} for one in results
            },
        },
    )


def _variant_json(results: VariantResults) -> dict[str, Any]:
    return {
        'config': results.config.model_dump(mode='json'),
        'latency_s': results.latency_s,
        'intervals': f'95 %, bootstrap over {results.scores.over}',
        'units': results.scores.units,
        'episodes': {episode.name: _episode_json(episode) for episode in results.episodes},
        'metrics': {name: asdict(estimate) for name, estimate in results.scores.metrics.items()},
        'action_error_by_row': results.scores.rows,
    }


def _episode_json(episode: Episode) -> dict[str, Any]:
    return {
        'duration_s': episode.duration_s,
        'chunks': episode.chunks,
        'ticks': len(episode.ticks_ns),
        'blocked': {reason: int((episode.blocked == i).sum()) for i, reason in enumerate(episode.reasons)},
        'reference': episode.reference_topic,
        'inputs': inputs.as_json(inputs.input_figures(episode)),
        'counts': episode.counts,
        'problems': episode.problems,
    }


def read_results(path: Path) -> dict[str, VariantResults]:
    """The variants of a finished evaluation: its folder, or the evaluation.json in it.

    Raises ResultsError for anything else.
    """
    file = path / EVALUATION if path.is_dir() else path
    if not file.is_file():
        raise ResultsError(
            'there are no results', str(path), 'give the folder that flashrt evaluate has written'
        )
    content = read_json(file)
    if not isinstance(content, dict) or content.get('format') != FORMAT:
        raise ResultsError('it is no evaluation of this version', str(file), 'evaluate the bags again')
    try:
        return {
            name: read_variant(file.parent / name, _variant(name, entry), list(entry['episodes']))
            for name, entry in content['variants'].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f'it is damaged ({error!r})', str(file), 'evaluate the bags again') from error


def _variant(name: str, entry: Mapping[str, Any]) -> Variant:
    try:
        config = parse_config(entry['config'], name, Path('.'))
    except ConfigError as error:
        raise ResultsError(
            f'its configuration is damaged ({error})', name, 'evaluate the bags again'
        ) from error
    return Variant(name, config, entry['latency_s'])


def names_done(jobs: Sequence[Job], failed: Mapping[str, str]) -> dict[str, list[str]]:
    """Variant -> its episodes that have results."""
    done: dict[str, list[str]] = {}
    for job in jobs:
        if f'{job.variant.name}/{job.name}' not in failed:
            done.setdefault(job.variant.name, []).append(job.name)
    return done


def machine() -> str:
    """Processor, cores and system, in one line."""
    processor = platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text().splitlines() if line.startswith('model name')]
        processor = models[0].partition(':')[2].strip() if models else processor
    return f'{processor}, {os.cpu_count()} cores, {platform.system()} {platform.release()}'
