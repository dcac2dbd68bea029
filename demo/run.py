"""One run of the demo: play the episode into the nodes, judge what they did, write and show the results."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from demo.graph import Graph, Options
from demo.progress import Progress
from flashrt_ros.configuration import RobotConfig, load_config
from flashrt_ros.evaluation.bag import Bag, BagError, open_bag
from flashrt_ros.evaluation.plots import write_plots
from flashrt_ros.evaluation.report import to_text, write_json
from flashrt_ros.evaluation.run import absolute, input_topics, read_run
from flashrt_ros.evaluation.verdict import Verdict, judge

ROOT = Path(__file__).resolve().parents[1]


def run(options: Options) -> Verdict:
    """Run the demo and write its results into `options.out`.

    Raises FlashRTError for wrong input, ChildDied or TransitionFailed if a process does not do its part.
    """
    config = load_config(options.config)
    progress = Progress()
    with open_bag(options.bag) as bag:
        inputs_hz = _recorded_rates(bag, config)
        _prepare(options)
        length = min(options.duration, bag.duration_s)
        with Graph(options, config, bag, progress) as graph:
            graph.bring_up()
            progress.step(f'playing {shown(options.bag)} ({length:.1f} s)')
            graph.play()
    progress.step('judging')
    graph.recorder.write(options.out / 'results')
    return _conclude(options, config, inputs_hz)


def shown(path: Path) -> str:
    """The path, without the working folder in front."""
    path, here = path.resolve(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _prepare(options: Options) -> None:
    """An empty folder for the results, and a DDS domain of their own for this process and its children."""
    options.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(options.out / 'results', ignore_errors=True)
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ['ROS_DOMAIN_ID'] = str(options.domain)
    os.environ.setdefault('FASTDDS_DEFAULT_PROFILES_FILE', str(ROOT / 'config/fastdds_large_images.xml'))


def _recorded_rates(bag: Bag, config: RobotConfig) -> dict[str, float]:
    """Input name -> Hz in the bag. Raises BagError for an input that is not in it."""
    topics = {name: absolute(topic) for name, topic in input_topics(config).items()}
    missing = [topic for topic in topics.values() if topic not in bag.topics]
    if missing:
        raise BagError(
            f"there is no topic '{missing[0]}', only {', '.join(sorted(bag.topics))}",
            str(bag.path),
            'play a bag of the robot that the configuration describes',
        )
    return {name: (bag.topics[topic].count - 1) / bag.duration_s for name, topic in topics.items()}


def _conclude(options: Options, config: RobotConfig, inputs_hz: dict[str, float]) -> Verdict:
    with open_bag(options.out / 'results') as bag:
        happened = read_run(bag, config)
    verdict = judge(happened, config, inputs_hz)
    about = _about(options, config)
    text = to_text(verdict, about)
    print(text)
    (options.out / 'report.txt').write_text(text, encoding='utf-8')
    write_json(options.out / 'report.json', verdict, about)
    written = write_plots(options.out, happened, verdict, config.rates.control_rate_hz)
    written += [options.out / name for name in ('report.json', 'report.txt', 'results')]
    print('Written: ' + ', '.join(shown(path) for path in written))
    return verdict


def _about(options: Options, config: RobotConfig) -> dict[str, Any]:
    checkpoint = options.checkpoint or Path(config.policy.checkpoint)
    return {
        'date': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
        'machine': f'{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}',
        'software': f'Python {platform.python_version()}, ROS 2 {os.environ.get("ROS_DISTRO", "unknown")}',
        'policy': f'{shown(checkpoint)} on {options.device or config.policy.device}',
        'episode': shown(options.bag),
        'command': ' '.join(['python -m demo', *sys.argv[1:]]),
    }


def _processor() -> str:
    for line in Path('/proc/cpuinfo').read_text().splitlines():
        if line.startswith('model name'):
            return line.partition(':')[2].strip()
    return platform.machine()
