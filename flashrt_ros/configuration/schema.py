"""Every section and key of the robot's YAML, with type, unit, range, default and description.

This is the single source: `load` validates files with it, `leaves` turns it into ROS parameters, and
`document` prints it as the table of docs/configuration.md. A dynamic key may change while the node runs.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator

from flashrt_ros.configuration.execution import Executor, Output, Safety
from flashrt_ros.configuration.fields import Section, Topic, problem, resolved_path, setting, suggestion
from flashrt_ros.configuration.intake import Intake
from flashrt_ros.configuration.scheduling import Scheduling
from flashrt_ros.configuration.tracing import Tracing
from flashrt_ros.pictures.framing import TURNS, Framing

Name = Annotated[str, StringConstraints(pattern=r'^[A-Za-z][A-Za-z0-9_]*$')]
"""A joint, view or robot name; one component of a ROS parameter name."""

MICROSECOND = 1e-6


class Joint(Section):
    """One column of state and action. ROS speaks SI units, the checkpoint those of its training data."""

    name: Name = setting(description='Name of the joint in JointState messages and in commands')
    scale: float = setting(
        1.0,
        description='Checkpoint units per rad or m: value = scale * ros + offset; degrees: 57.29577951',
        ge=-1e6,
        le=1e6,
    )
    offset: float = setting(
        0.0, description='Value for the checkpoint at 0 rad or m, in its own unit', ge=-1e6, le=1e6
    )
    position_min: float | None = setting(
        None, description='Lowest position ever commanded', unit='rad or m', ge=-1e3, le=1e3
    )
    position_max: float | None = setting(
        None, description='Highest position ever commanded', unit='rad or m', ge=-1e3, le=1e3
    )
    max_step: float | None = setting(
        None,
        description='Largest change from one command to the next',
        unit='rad or m',
        ge=MICROSECOND,
        le=1e3,
    )
    max_velocity: float | None = setting(
        None, description='Highest speed ever commanded', unit='rad/s or m/s', ge=MICROSECOND, le=1e3
    )
    max_acceleration: float | None = setting(
        None, description='Largest change of speed commanded', unit='rad/s2 or m/s2', ge=MICROSECOND, le=1e5
    )
    max_jump: float | None = setting(
        None,
        description='A new chunk that differs by more from the one in execution is blended in or refused '
        '(executor.seam)',
        unit='rad or m',
        ge=0.0,
        le=1e3,
    )
    kind: Literal['position', 'delta', 'step', 'gripper'] | None = setting(
        None,
        description='What its action column means, where it differs from output.action_kind; gripper: the '
        'opening as a fraction, 0 at position_min and 1 at position_max',
    )

    @model_validator(mode='after')
    def _limits_make_sense(self) -> Joint:
        if self.scale == 0.0:
            raise problem('scale', 'must not be 0', 'give the number of checkpoint units per rad or m')
        low, high = self.position_min, self.position_max
        if low is not None and high is not None and low >= high:
            raise problem(
                'position_min', f'{low} is not below position_max {high}', 'swap or correct the two limits'
            )
        if self.kind == 'gripper' and (low is None or high is None):
            raise problem(
                'kind', 'a gripper opens between two positions', 'give position_min and position_max'
            )
        return self


class Robot(Section):
    name: Name = setting(description='Name of the robot, shown in diagnostics')
    joints: list[Joint] = setting(description='Joints in the order of the checkpoint', min_length=1)
    description: str | None = setting(
        None, description='URDF file whose limits tighten those of the joints; relative like checkpoint'
    )
    description_topic: Topic | None = setting(
        None, description='Topic of the URDF (robot_description), in place of a file; configure waits for it'
    )

    @field_validator('description')
    @classmethod
    def _relative_to_the_file(cls, value: str | None, info: ValidationInfo) -> str | None:
        return resolved_path(value, info)

    @model_validator(mode='after')
    def _joints_are_distinct(self) -> Robot:
        seen: set[str] = set()
        for joint in self.joints:
            if joint.name in seen:
                raise problem('joints', f"the joint '{joint.name}' is listed twice", 'list every joint once')
            seen.add(joint.name)
        return self


class Camera(Section):
    topic: Topic = setting(description='Topic of the images')
    transport: Literal['raw', 'compressed'] = setting(
        'raw', description='Message type: sensor_msgs/Image (raw) or sensor_msgs/CompressedImage (compressed)'
    )
    latency_s: float = setting(
        0.0,
        description='From the exposure to the stamp, subtracted from it: readout and transfer, where the '
        'driver stamps on arrival',
        unit='s',
        ge=0.0,
        le=10.0,
    )
    max_age_s: float = setting(
        0.2, description='An older frame blocks inference', unit='s', ge=1e-3, le=60.0, dynamic=True
    )
    rotate: int = setting(
        0,
        description='How far the picture is turned clockwise to stand upright: 0, 90, 180 or 270',
        unit='deg',
        ge=0,
        le=270,
    )
    flip: Literal['none', 'horizontal', 'vertical'] = setting(
        'none', description='Mirrors the picture once it is turned: left and right, or top and bottom'
    )
    crop: list[int] | None = setting(
        None,
        description='Part that is kept: x, y, width and height, before the picture is turned; unset: all',
        unit='pixels of the frame',
    )

    @model_validator(mode='after')
    def _framing_makes_sense(self) -> Camera:
        if self.rotate not in TURNS:
            raise problem(
                'rotate', f'{self.rotate} is no quarter turn', 'choose 0, 90, 180 or 270; clockwise'
            )
        crop = self.crop
        if crop is not None and (len(crop) != 4 or min(crop) < 0 or min(crop[2:]) < 1):
            raise problem(
                'crop', f'{crop} is no part of a picture', 'give [x, y, width, height] in pixels, from 0'
            )
        return self

    @property
    def framing(self) -> Framing:
        crop = None if self.crop is None else (self.crop[0], self.crop[1], self.crop[2], self.crop[3])
        return Framing(self.rotate, self.flip, crop)


class JointStates(Section):
    topic: Topic = setting('joint_states', description='Topic of sensor_msgs/JointState')
    latency_s: float = setting(
        0.0, description='From the measurement to the stamp, subtracted from it', unit='s', ge=0.0, le=10.0
    )
    max_age_s: float = setting(
        0.1, description='An older joint state blocks inference', unit='s', ge=1e-3, le=60.0, dynamic=True
    )


class PolicySection(Section):
    checkpoint: str = setting(
        description='Checkpoint folder; relative to the YAML, or to the working folder if a ROS parameter'
    )
    device: Literal['cpu', 'cuda'] = setting('cpu', description='Where the policy runs')
    precision: Literal['fp32', 'bf16', 'fp8'] | None = setting(
        None, description='Arithmetic (fp32: CPU only, fp8: CUDA only); unset: fp32 on the CPU, bf16 on CUDA'
    )
    steps: int | None = setting(
        None, description='Flow integration steps; unset: as the checkpoint says', ge=1, le=100
    )
    prompt_form: Literal['state', 'plain'] | None = setting(
        None, description='Whether the discretised state is part of the prompt; unset: as the checkpoint says'
    )
    resize: Literal['pil', 'torch'] | None = setting(
        None,
        description='Image resize convention: pil (openpi) or torch (lerobot); unset: as the checkpoint says',
    )
    tokenizer: str | None = setting(
        None, description='Tokenizer file, relative like checkpoint; unset: the one in the checkpoint folder'
    )
    asset_id: str | None = setting(
        None, description='Which normalisation statistics of an openpi checkpoint to use'
    )
    state_dim: int | None = setting(
        None, description='Width of the state where the checkpoint does not say, or says more', ge=1, le=128
    )
    action_dim: int | None = setting(
        None, description='Width of the action where the checkpoint does not say, or says more', ge=1, le=128
    )
    delta_joints: list[str] | None = setting(
        None,
        description='Joints whose action is predicted relative to the state (openpi checkpoints do not say); '
        'unset: as the checkpoint says',
    )
    masked_views: list[str] = setting(
        [], description='Views of the checkpoint that this robot has no camera for; the policy masks them out'
    )
    threads: int | None = setting(
        None,
        description='CPU threads of the policy; unset: one for every core. On few cores, 1 or 2 '
        'leave the others to cameras, middleware and streamer',
        ge=1,
        le=256,
    )
    trained_prefix: int | None = setting(
        None,
        description='Rows of frozen prefix that the checkpoint was trained with (training-time real-time '
        'chunking); unset: as the checkpoint says',
        ge=0,
        le=1000,
    )
    seed: int | None = setting(
        None, description='Seed of the starting noise; unset: drawn from the system', ge=0, le=2**31 - 1
    )

    @field_validator('checkpoint', 'tokenizer')
    @classmethod
    def _relative_to_the_file(cls, value: str | None, info: ValidationInfo) -> str | None:
        return resolved_path(value, info)

    @model_validator(mode='after')
    def _precision_fits_device(self) -> PolicySection:
        fitting = {('cpu', 'fp8'): 'fp32 or bf16', ('cuda', 'fp32'): 'bf16 or fp8'}
        impossible = fitting.get((self.device, self.precision or ''))
        if impossible:
            raise problem(
                'precision', f"'{self.precision}' does not run on '{self.device}'", f'choose {impossible}'
            )
        return self


class Rates(Section):
    chunk_rate_hz: float = setting(
        description='Inferences, and so action chunks, per second', unit='Hz', ge=0.05, le=500.0
    )
    action_rate_hz: float = setting(
        description='Rows of a chunk per second: the rate of the data the checkpoint was trained on',
        unit='Hz',
        ge=0.5,
        le=1000.0,
    )
    control_rate_hz: float = setting(description='Commands per second', unit='Hz', ge=1.0, le=1000.0)
    trigger: Literal['tick', 'frame'] = setting(
        'tick',
        description='What starts an inference: the clock (tick), or new frames of all cameras (frame), '
        'at most chunk_rate_hz times a second',
    )

    @model_validator(mode='after')
    def _chunks_can_be_executed(self) -> Rates:
        if self.chunk_rate_hz > self.control_rate_hz:
            raise problem(
                'chunk_rate_hz',
                f'{self.chunk_rate_hz:g} Hz is above control_rate_hz {self.control_rate_hz:g} Hz: '
                'some chunks would never reach the robot',
                'lower chunk_rate_hz or raise control_rate_hz',
            )
        return self


class Gates(Section):
    max_skew_s: float = setting(
        0.1,
        description='A larger spread between input stamps blocks inference',
        unit='s',
        ge=1e-3,
        le=60.0,
        dynamic=True,
    )
    max_future_s: float = setting(
        0.05,
        description='A stamp further ahead of the clock blocks inference',
        unit='s',
        ge=0.0,
        le=60.0,
        dynamic=True,
    )


class RobotConfig(Section):
    """The whole file."""

    robot: Robot
    cameras: Annotated[
        dict[Name, Camera], Field(min_length=1, description='View name of the checkpoint: its camera')
    ]
    joint_states: JointStates = JointStates()
    prompt: str = setting(
        '', description='The task in plain words; inference waits while it is empty', dynamic=True
    )
    prompt_topic: Topic = setting('prompt', description='Topic of std_msgs/String that replaces the prompt')
    policy: PolicySection
    rates: Rates
    gates: Gates = Gates()
    ingest: Intake = Intake()
    output: Output
    executor: Executor = Executor()
    safety: Safety = Safety()
    tracing: Tracing = Tracing()
    scheduling: Scheduling = Scheduling()

    @model_validator(mode='after')
    def _one_camera_per_topic(self) -> RobotConfig:
        views: dict[str, str] = {}
        for view, camera in self.cameras.items():
            if camera.topic in views:
                raise problem(
                    f'cameras.{view}.topic',
                    f"'{camera.topic}' is already the topic of the view '{views[camera.topic]}'",
                    'give every view its own camera',
                )
            views[camera.topic] = view
        return self

    @model_validator(mode='after')
    def _gpu_decodes_for_the_gpu(self) -> RobotConfig:
        if self.ingest.decode == 'gpu' and self.policy.device != 'cuda':
            raise problem(
                'ingest.decode',
                f"'gpu' decodes for a policy on the GPU, and policy.device is '{self.policy.device}'",
                "choose 'cpu', or policy.device: cuda",
            )
        return self

    @model_validator(mode='after')
    def _delta_joints_exist(self) -> RobotConfig:
        for joint in self.policy.delta_joints or ():
            if joint not in self.joint_names:
                hint = suggestion(joint, self.joint_names)
                raise problem(
                    'policy.delta_joints', f"there is no joint '{joint}'; {hint}", 'use names of robot.joints'
                )
        return self

    @model_validator(mode='after')
    def _zero_velocity_has_a_place(self) -> RobotConfig:
        if self.executor.safe_action == 'zero_velocity' and self.output.type == 'float64_multi_array':
            raise problem(
                'executor.safe_action',
                'a float64_multi_array holds positions only: zeros would be a place to drive to',
                "choose 'hold' or 'damp', or another output.type",
            )
        return self

    @model_validator(mode='after')
    def _one_strategy_for_kinds(self) -> RobotConfig:
        if self.executor.strategy == 'vlash' and self.output.action_kind is None:
            raise problem(
                'output.action_kind',
                'vlash rolls the state forward, and for that has to know what the actions mean',
                'declare it',
            )
        return self

    @property
    def action_kinds(self) -> tuple[str, ...]:
        """What each column of the policy means: 'position', 'delta', 'step' or 'gripper'."""
        general = (self.output.action_kind or 'joint_position').removeprefix('joint_')
        return tuple(joint.kind or general for joint in self.robot.joints)

    @property
    def joint_names(self) -> tuple[str, ...]:
        return tuple(joint.name for joint in self.robot.joints)
