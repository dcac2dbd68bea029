"""The sections of the robot's YAML that say how actions go out: output, executor, safety. See `schema`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from flashrt_ros.configuration.fields import Section, Topic, problem, setting

Strategy = Literal['sync', 'async', 'ensemble', 'rtc', 'rtc_identity', 'rtc_prefix', 'vlash']


class Output(Section):
    type: Literal['joint_trajectory', 'float64_multi_array', 'joint_state'] = setting(
        description='Message type of the commands'
    )
    topic: Topic = setting(description='Topic of the commands')
    mode: Literal['step', 'chunk'] = setting(
        'step',
        description='One command at control_rate_hz, or one joint_trajectory with velocities for every chunk',
    )
    action_kind: Literal['joint_position', 'joint_delta', 'joint_step'] | None = setting(
        None,
        description='What a column of the policy means: absolute position, offset from the position at the '
        'observation, or offset from the row before; unset: joint_position',
    )

    @model_validator(mode='after')
    def _chunks_are_trajectories(self) -> Output:
        if self.mode == 'chunk' and self.type != 'joint_trajectory':
            raise problem('mode', f'{self.type} holds one command only', "choose type 'joint_trajectory'")
        return self


class Executor(Section):
    strategy: Strategy = setting(
        'async',
        description='How chunks follow each other (docs/execution.md): sync finishes one, then plans; async '
        'replaces on the grid; ensemble averages; rtc guides the flow, rtc_identity cheaply; rtc_prefix and '
        'vlash need checkpoints trained for them',
    )
    execution_rows: int | None = setting(
        None, description='sync: rows executed of every chunk; unset: all', ge=1, le=1000
    )
    ensemble_decay: float = setting(
        0.01,
        description='ensemble: the i-th oldest chunk weighs exp(-decay * i)',
        ge=-10.0,
        le=10.0,
        dynamic=True,
    )
    guidance_clip: float = setting(
        5.0, description='rtc, rtc_identity: largest guidance weight (beta)', ge=0.0, le=100.0, dynamic=True
    )
    guidance_schedule: Literal['exp', 'linear', 'ones'] = setting(
        'exp', description='rtc, rtc_identity: how the pull fades over the old chunk', dynamic=True
    )
    guidance_rows: int | None = setting(
        None,
        description='rtc, rtc_identity: rows of the old chunk that pull; unset: all that are left',
        ge=1,
        le=1000,
        dynamic=True,
    )
    delay_rows: int | None = setting(
        None,
        description='rtc*, vlash: rows consumed while the policy thinks; unset: the largest of the last '
        'delay_window counts',
        ge=0,
        le=1000,
        dynamic=True,
    )
    delay_window: int = setting(
        10, description='rtc*, vlash: counts of rows consumed that are remembered', ge=1, le=1000
    )
    interpolation: Literal['linear', 'step'] = setting(
        'linear', description='Between the rows of a chunk: on the line between them, or the earlier row'
    )
    ramp_s: float = setting(
        1.0,
        description='From standstill, time over which commands blend into the chunk',
        unit='s',
        ge=0.0,
        le=30.0,
        dynamic=True,
    )
    seam: Literal['blend', 'refuse'] = setting(
        'blend',
        description="What becomes of a chunk that jumps by more than a joint's max_jump",
        dynamic=True,
    )
    seam_blend_s: float = setting(
        0.2, description='Time over which a jump is blended', unit='s', ge=0.0, le=10.0, dynamic=True
    )
    hold_s: float = setting(
        0.5,
        description='After the last row, time the last command is repeated before the safe action',
        unit='s',
        ge=0.0,
        le=60.0,
        dynamic=True,
    )
    safe_action: Literal['stop', 'hold', 'damp', 'zero_velocity'] = setting(
        'stop',
        description='After hold_s, at an operator stop and at the end: brake and stop publishing; brake '
        'and go '
        'on repeating the last command; the same over damp_s; or send zero velocities with it',
    )
    damp_s: float = setting(
        0.5, description='damp: time to come to rest', unit='s', ge=0.0, le=10.0, dynamic=True
    )
    max_chunk_age_s: float = setting(
        1.0,
        description='A chunk from an older observation is refused',
        unit='s',
        ge=0.01,
        le=60.0,
        dynamic=True,
    )


class Safety(Section):
    deadman_topic: Topic | None = setting(
        None, description='Topic of std_msgs/Bool that has to say true for the robot to move; unset: none'
    )
    deadman_timeout_s: float = setting(
        0.2, description='An older true counts as released', unit='s', ge=0.01, le=60.0, dynamic=True
    )
    stop_topic: Topic | None = setting(
        None,
        description='Topic of std_msgs/Bool, latched: true while the robot is stopped, false while it '
        'may move',
    )
    wall_s: float | None = setting(
        None,
        description='Time without a new chunk, on a clock that nobody sets, after which the safe action '
        'is due '
        'whatever ROS time says; unset: the length of the last chunk + hold_s, and never on simulated time',
        unit='s',
        ge=0.01,
        le=3600.0,
        dynamic=True,
    )
    restart: Literal['automatic', 'operator'] = setting(
        'automatic',
        description='After a stop for want of chunks: go on with the next one, or wait for the resume '
        'service',
        dynamic=True,
    )
