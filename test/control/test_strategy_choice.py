"""Which strategies a policy can do, and what the configuration says about them."""

from dataclasses import replace
from pathlib import Path

import pytest

from flashrt_ros.configuration import load_config, with_values
from flashrt_ros.control import STRATEGIES, PlannerSettings, check_strategy
from flashrt_ros.errors import ConfigError
from flashrt_ros.loading import options_of
from flashrt_ros.policy import NO_GUIDANCE, PolicyInfo

CONFIG = load_config(Path(__file__).parents[2] / 'config' / 'so101.yaml')

INFO = PolicyInfo(
    'nano',
    'pi05',
    (),
    6,
    6,
    50,
    10,
    'cpu',
    'fp32',
    1,
    guidance_refusals={'exact': '', 'identity': '', 'prefix': 'no'},
)


@pytest.mark.parametrize('strategy', ['sync', 'async', 'ensemble', 'rtc', 'rtc_identity'])
def test_what_a_policy_can_do_is_accepted(strategy):
    check_strategy(with_values(CONFIG, {'executor.strategy': strategy}), INFO)


def test_the_policy_is_loaded_for_what_the_strategy_will_ask_of_it():
    for strategy, expected in (('rtc', 'exact'), ('rtc_prefix', 'prefix'), ('async', '')):
        assert options_of(with_values(CONFIG, {'executor.strategy': strategy})).guidance == expected


@pytest.mark.parametrize(
    ('values', 'info', 'message'),
    [
        (
            {'strategy': 'rtc_prefix'},
            INFO,
            r"executor\.strategy: 'nano' cannot do rtc_prefix: no\. Choose one of",
        ),
        (
            {'strategy': 'rtc'},
            replace(INFO, guidance_refusals=NO_GUIDANCE),
            'this backend does not take guidance. Choose one of sync, async, ensemble',
        ),
        ({'strategy': 'rtc'}, replace(INFO, guidance_refusals={}), "the backend knows no guidance 'exact'"),
        ({'strategy': 'sync', 'execution_rows': 60}, INFO, '60 rows, but a chunk has 50'),
        (
            {'strategy': 'rtc_prefix', 'delay_rows': 5},
            replace(INFO, guidance_refusals={'prefix': ''}, trained_prefix=4),
            'trained with a prefix of 4',
        ),
        ({'strategy': 'rtc', 'delay_rows': 6}, INFO, 'a delay of 6 rows does not fit 5 rows'),
        ({'strategy': 'rtc', 'delay_rows': 5}, replace(INFO, horizon=9), 'a delay of 5 rows does not fit'),
    ],
)
def test_what_a_policy_cannot_do_is_refused_with_the_reason(values, info, message):
    config = with_values(CONFIG, {f'executor.{key}': value for key, value in values.items()})
    with pytest.raises(ConfigError, match=message):
        check_strategy(config, info)


def test_vlash_is_for_declared_kinds_only():
    with pytest.raises(ConfigError, match=r'output\.action_kind: vlash rolls the state forward'):
        with_values(CONFIG, {'executor.strategy': 'vlash'})
    with_values(CONFIG, {'executor.strategy': 'vlash', 'output.action_kind': 'joint_position'})


def test_settings_come_from_the_configuration():
    config = with_values(
        CONFIG, {'executor.strategy': 'rtc', 'executor.guidance_clip': 9.0, 'executor.delay_rows': 2}
    )
    settings = PlannerSettings.of(config)
    assert (settings.strategy, settings.clip, settings.delay_rows) == (STRATEGIES['rtc'], 9.0, 2)
    assert settings.kinds.kinds == ('position',) * 6
