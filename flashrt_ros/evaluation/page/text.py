"""An evaluation as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from flashrt_ros.evaluation.batch.summary import VariantResults
from flashrt_ros.evaluation.replay.problems import Problem
from flashrt_ros.evaluation.score.sample import Estimate

RULE = '─'


def evaluation_text(
    results: Sequence[VariantResults], broken: Mapping[str, Sequence[str]], failed: Mapping[str, str]
) -> str:
    """broken: variant -> limits that it does not keep. failed: 'VARIANT/EPISODE' -> why."""
    lines: list[str] = []
    for one in results:
        lines += _variant(one)
        lines += [f'  OVER THE LIMIT: {line}' for line in broken.get(one.name, ())]
    if len(results) > 1:
        lines += ['', *_comparison(results)]
    if failed:
        lines += ['', f'NOT EVALUATED: {", ".join(failed)}']
    return '\n'.join(lines)


def _variant(one: VariantResults) -> Iterator[str]:
    chunks, seconds = sum(e.chunks for e in one.episodes), sum(e.duration_s for e in one.episodes)
    yield ''
    yield f'{one.name}: {chunks} chunks from {seconds:.1f} s of {_count(len(one.episodes), "episode")}'
    yield RULE * 92
    yield f'  {"mrad or mm":<22}{"MAE":>7}  {"95 % interval":<18}{"RMSE":>8}{"p50":>8}{"p90":>8}{"p99":>9}'
    for column in (*one.episodes[0].joints, 'all'):
        yield '  ' + _errors(one, column)
    yield ''
    for label, name, scale, unit in HEADLINES:
        found = one.scores.metrics.get(name)
        if found is not None and found.value is not None:
            yield f'  {label:<44}{with_interval(found, scale)} {unit}'
    inference = one.stages.get('stage.inference.p50')
    if inference is not None and inference.value is not None:
        yield f'  {"inference on this machine, p50":<44}{with_interval(inference, 1e3)} ms'
    yield f'  intervals: 95 %, bootstrap over {one.scores.over} ({one.scores.units})'
    for episode in one.episodes:
        for problem in episode.problems[:5]:
            yield f'  {episode.name}: {Problem(**problem)}'


HEADLINES = (
    ('commands against recorded commands, MAE', 'command_error.all.mae', 1e3, 'mrad or mm'),
    ('chunk against the chunk before it, MAE', 'consistency.all.mae', 1e3, 'mrad or mm'),
    ('jump of the command at a new chunk, p90', 'seam.all.p90', 1e3, 'mrad or mm'),
    ('jerk of the commands, RMS', 'jerk.all.rmse', 1.0, 'rad/s^3 or m/s^3'),
    ('commands changed by a position limit', 'position_clamp.all.mean', 100.0, '%'),
    ('commands changed by a step or speed limit', 'motion_clamp.all.mean', 100.0, '%'),
    ('gripper events, commanded against recorded', 'gripper_delay.all.mae', 1e3, 'ms'),
    ('ticks without a chunk', 'blocked.all.mean', 100.0, '%'),
    ('observation to chunk, p50', 'staleness.all.p50', 1e3, 'ms'),
)
"""Label, metric, factor and unit of the lines that say most."""


COLUMNS = (
    ('action MAE', 'action_error.all.mae', 1e3),
    ('command MAE', 'command_error.all.mae', 1e3),
    ('seam p90', 'seam.all.p90', 1e3),
    ('late p50 [ms]', 'staleness.all.p50', 1e3),
)
"""Label, metric and factor of the columns that set variants side by side."""


def with_interval(found: Estimate, scale: float = 1.0) -> str:
    """The figure with its interval."""
    if found.value is None:
        return '-'
    if found.low is None or found.high is None:
        return f'{found.value * scale:.4g}'
    return f'{found.value * scale:.4g} [{found.low * scale:.4g}, {found.high * scale:.4g}]'


def _errors(one: VariantResults, column: str) -> str:
    def figure(statistic: str) -> str:
        found = one.scores.metrics[f'action_error.{column}.{statistic}']
        return '-' if found.value is None else f'{found.value * 1e3:.1f}'

    mae = one.scores.metrics[f'action_error.{column}.mae']
    between = '' if mae.low is None or mae.high is None else f'[{mae.low * 1e3:.1f}, {mae.high * 1e3:.1f}]'
    others = ''.join(f'{figure(name):>8}' for name in ('rmse', 'p50', 'p90'))
    return f'{column:<22}{figure("mae"):>7}  {between:<18}{others}{figure("p99"):>9}'


def _comparison(results: Sequence[VariantResults]) -> Iterator[str]:
    yield f'{"variant":<34}{"action MAE":>11}{"command MAE":>13}{"seam p90":>10}{"jerk":>10}{"late p50":>10}'
    yield RULE * 92
    names = (
        'action_error.all.mae',
        'command_error.all.mae',
        'seam.all.p90',
        'jerk.all.rmse',
        'staleness.all.p50',
    )
    for one in results:
        values = [one.scores.metrics[name].value for name in names]
        scaled = [
            '-' if v is None else f'{v * s:.1f}' for v, s in zip(values, (1e3, 1e3, 1e3, 1, 1e3), strict=True)
        ]
        widths = (11, 13, 10, 10, 10)
        yield f'{one.name:<34}' + ''.join(f'{v:>{w}}' for v, w in zip(scaled, widths, strict=True))


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}{"" if number == 1 else "s"}'
