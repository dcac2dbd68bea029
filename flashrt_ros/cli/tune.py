"""Find the chunk rate, strategy and parameters that suit bags of a robot and this machine.

    flashrt tune BAG... --config robot.yaml --out tuned

First the configuration as it is runs with the latency measured here. Then every strategy runs at several
rates with that latency, and the parameters of the best are tried one by one. OUT/best.yaml is the
configuration with what came out best, OUT/trials.json the table of all; both say how the score is made.
"""

from __future__ import annotations

import argparse
import datetime
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from flashrt_ros.cli.exit_codes import GOOD
from flashrt_ros.cli.options import add_bag_options, choices_of
from flashrt_ros.cli.running import run_all
from flashrt_ros.configuration import RobotConfig, load_config, with_values
from flashrt_ros.errors import ConfigError, FlashRTError
from flashrt_ros.evaluation import tuning
from flashrt_ros.evaluation.batch.folder import write_json
from flashrt_ros.evaluation.batch.plan import Variant, plan_jobs, strategy_setting
from flashrt_ros.evaluation.batch.summary import VariantResults, machine, names_done, read_variant
from flashrt_ros.evaluation.tuning import Trial


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('bags', nargs='+', type=Path, metavar='BAG')
    parser.add_argument('--config', type=Path, required=True, metavar='YAML', help='of the robot')
    parser.add_argument('--out', type=Path, default=Path('tuned'), help='for results (%(default)s)')
    parser.add_argument('--rates', type=_numbers, default=[], metavar='HZ[,HZ]', help='chunk rates to try')
    parser.add_argument(
        '--strategies', type=_words, default=[], metavar='S[,S]', help='to try (default: all)'
    )
    parser.add_argument('--latency', type=float, metavar='MS', help='instead of the one measured here')
    parser.add_argument('--processes', type=int, metavar='N', help='at once')
    add_bag_options(parser)


def run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config)
    if arguments.strategies:
        strategy_setting(config, arguments.strategies)
    search = Search(arguments, config)
    best = search.run()
    print(search.table())
    path = write_best(arguments, search, best)
    print(f'\nBest: {best.name}, score {best.score:.3f} (the configuration as given: 1.000). Written: {path}')
    return GOOD


class Search:
    """trials: all so far, the configuration as given first. latency_s: of every trial."""

    def __init__(self, arguments: argparse.Namespace, config: RobotConfig) -> None:
        self._arguments, self._config = arguments, config
        if arguments.latency is None:
            measured = self._evaluate({'measured': config}, None)['measured']
            spent = np.concatenate([np.asarray(timing['inference']) for timing in measured.timings])
            self.latency_s = float(np.percentile(spent, 90))
        else:
            self.latency_s = arguments.latency / 1e3
        baseline = self._evaluate({'as_given': config}, self.latency_s)['as_given']
        self._baseline = baseline.scores
        self.horizon = baseline.episodes[0].actions.shape[1]
        score, figures = tuning.score_of(baseline.scores, baseline.scores)
        if score is None:
            raise ConfigError(
                'the configuration as given sends no commands', str(arguments.config), 'correct it first'
            )
        self.trials = [Trial('as given', {}, score, figures=figures)]

    def run(self) -> Trial:
        """Try everything. Returns the best."""
        arguments = self._arguments
        rates = arguments.rates or tuning.rates_to_try(self._config, self.horizon, self.latency_s)
        self._try(tuning.first_trials(self._config, rates, arguments.strategies))
        for _ in range(2):
            best = tuning.best_of(self.trials)
            chosen = with_values(self._config, best.changes, 'trial') if best.changes else self._config
            known = [trial.changes for trial in self.trials]
            further = [best.changes | {key: value} for key, value in tuning.refinements(chosen, self.horizon)]
            self._try([changes for changes in further if changes not in known])
        return tuning.best_of(self.trials)

    def table(self) -> str:
        """Every trial, the best first."""
        head = f'{"score":>7}{"error":>9}{"seam p90":>10}{"jerk":>9}{"silent":>8}  trial'
        ordered = sorted(self.trials, key=lambda t: (t.score is None, t.score or 0.0))
        return '\n'.join(
            [f'\nlatency of an inference: {self.latency_s * 1e3:.1f} ms', head, '─' * 92, *map(_row, ordered)]
        )

    def _try(self, all_changes: Sequence[dict[str, Any]]) -> None:
        configs: dict[str, RobotConfig] = {}
        trials = {}
        for changes in all_changes:
            trial = Trial(
                ', '.join(f'{key.split(".")[-1]} {value}' for key, value in changes.items()), dict(changes)
            )
            self.trials.append(trial)
            try:
                configs[_folder(changes)] = with_values(self._config, changes, 'trial')
                trials[_folder(changes)] = trial
            except FlashRTError as error:
                trial.why = error.what
        results = self._evaluate(configs, self.latency_s, trials)
        for folder, found in results.items():
            trials[folder].score, trials[folder].figures = tuning.score_of(found.scores, self._baseline)

    def _evaluate(
        self, configs: dict[str, RobotConfig], latency_s: float | None, trials: dict[str, Trial] | None = None
    ) -> dict[str, VariantResults]:
        """Results of those that could be evaluated; of the others, why, in their trial, or as an error."""
        out = self._arguments.out / 'trials'
        variants = [Variant(name, config, latency_s) for name, config in configs.items()]
        jobs = plan_jobs(variants, self._arguments.bags, choices_of(self._arguments, images=False), out)
        failed = run_all(jobs, self._arguments) if jobs else {}
        done = names_done(jobs, failed)
        for name, why in failed.items():
            if trials is None:
                raise ConfigError(why, name, 'correct this first')
            trials[name.partition('/')[0]].why = why
        # A trial counts only with every bag, else it would be compared on other bags than the others.
        whole = [v for v in variants if len(done.get(v.name, ())) == len(self._arguments.bags)]
        return {v.name: read_variant(out / v.name, v, done[v.name]) for v in whole}


def write_best(arguments: argparse.Namespace, search: Search, best: Trial) -> Path:
    """best.yaml, and trials.json beside it."""
    data = yaml.safe_load(arguments.config.read_text(encoding='utf-8'))
    data = tuning.merged(data, best.changes)
    policy = load_config(arguments.config).policy
    for key in ('checkpoint', 'tokenizer'):
        if data['policy'].get(key):
            # Paths are relative to the file that names them, and this is another file.
            data['policy'][key] = os.path.relpath(getattr(policy, key), arguments.out)
    terms = [
        f'{weight} {name} relative to the configuration as given' for name, weight in tuning.WEIGHTS.items()
    ]
    terms.append(f'{tuning.SILENCE_WEIGHT} {tuning.SILENCE}')
    about = [
        f'Found by: flashrt tune {" ".join(map(str, arguments.bags))} --config {arguments.config}',
        f'On {datetime.date.today().isoformat()}, {machine()}.',
        f'Score {best.score:.3f} (the configuration as given: 1.000; less is better) = {" + ".join(terms)}.',
        f'Latency of an inference: {search.latency_s * 1e3:.1f} ms. Changed: {best.name}.',
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    path: Path = arguments.out / 'best.yaml'
    head = ''.join(f'# {line}\n' for line in about)
    path.write_text(head + yaml.safe_dump(data, sort_keys=False, default_flow_style=None), encoding='utf-8')
    load_config(path)
    content = {'about': about, 'latency_s': search.latency_s, 'trials': [asdict(t) for t in search.trials]}
    write_json(arguments.out / 'trials.json', content)
    return path


def _row(trial: Trial) -> str:
    if trial.score is None:
        return f'{"-":>7}{"":>36}  {trial.name}: {trial.why or "no commands"}'
    error, seam, jerk = (trial.figures[name] or 0.0 for name in tuning.WEIGHTS)
    silent = 100 * (trial.figures[tuning.SILENCE] or 0.0)
    figures = f'{trial.score:>7.3f}{error * 1e3:>9.1f}{seam * 1e3:>10.1f}{jerk:>9.0f}{silent:>7.1f}%'
    return f'{figures}  {trial.name}'


def _folder(changes: dict[str, Any]) -> str:
    return '_'.join(f'{key.split(".")[-1]}={value}' for key, value in changes.items())


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(',')]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of numbers") from None


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(',') if word.strip()]
