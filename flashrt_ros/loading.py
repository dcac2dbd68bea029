"""Loads the policy of a configuration, checks that the robot fits it, and warms it up, with progress."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flashrt_ros.configuration import RobotConfig, check_against
from flashrt_ros.control import STRATEGIES, check_strategy
from flashrt_ros.policy import Observation, Policy, PolicyOptions, load_policy


class Logger(Protocol):
    """Anything that shows progress to people: a ROS logger, or a command-line one."""

    def info(self, message: str) -> Any: ...


def load_for(config: RobotConfig, logger: Logger) -> Policy:
    """A policy ready for its first inference. Raises as `load_policy`, or ConfigError if it does not fit."""
    chosen, begin = config.policy, time.monotonic()
    logger.info(f'loading {chosen.checkpoint} onto {chosen.device}')
    policy = load_policy(Path(chosen.checkpoint), options_of(config))
    info = policy.info
    logger.info(
        f'{info.name}: {info.family}, {info.parameters / 1e6:.1f} M parameters in {info.precision}, '
        f'{info.horizon} rows of {info.action_dim}, {info.steps} steps ({time.monotonic() - begin:.1f} s)'
    )
    try:
        check_against(config, info)
        check_strategy(config, info)
        begin = time.monotonic()
        _warm_up(policy, config)
        # The first noise of a seed belongs to the first observation, whatever was run to warm up.
        policy.reseed(chosen.seed)
        logger.info(f'warmed up ({time.monotonic() - begin:.2f} s)')
    except BaseException:
        policy.close()
        raise
    return policy


def options_of(config: RobotConfig) -> PolicyOptions:
    """What the configuration says about the policy."""
    chosen, deltas = config.policy, config.policy.delta_joints
    return PolicyOptions(
        device=chosen.device,
        precision=chosen.precision or ('fp32' if chosen.device == 'cpu' else 'bf16'),
        steps=chosen.steps,
        prompt_form=chosen.prompt_form,
        resize=chosen.resize,
        state_dim=chosen.state_dim,
        action_dim=chosen.action_dim,
        delta_actions=None if deltas is None else tuple(joint in deltas for joint in config.joint_names),
        asset_id=chosen.asset_id,
        tokenizer=Path(chosen.tokenizer) if chosen.tokenizer else None,
        trained_prefix=chosen.trained_prefix,
        guidance=STRATEGIES[config.executor.strategy].guidance,
        seed=chosen.seed,
        threads=chosen.threads,
    )


def _warm_up(policy: Policy, config: RobotConfig) -> None:
    """One inference on grey pictures, so that the first real one finds every cache and graph ready."""
    grey = np.full((224, 224, 3), 128, dtype=np.uint8)
    state = np.zeros(policy.info.state_dim, dtype=np.float32)
    policy.infer(Observation(dict.fromkeys(config.cameras, grey), state, config.prompt or 'warm up'))
