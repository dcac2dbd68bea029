"""From messages to an Observation, or to the reason why there is none.

Any thread may `offer` messages; one thread calls `observe`. Decoding happens in `observe`, so that frames
nobody uses cost nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flashrt_ros.configuration.schema import Camera, JointStates, RobotConfig
from flashrt_ros.errors import ObservationError
from flashrt_ros.ingest.compressed import decompress
from flashrt_ros.ingest.decoding import decoding_of
from flashrt_ros.ingest.fresh import Fresh
from flashrt_ros.ingest.gates import Limits, Refusal, check_sample, check_skew
from flashrt_ros.ingest.joints import STATE, JointMap
from flashrt_ros.ingest.ring import ring_of
from flashrt_ros.ingest.stream import Sample, Stream
from flashrt_ros.ingest.typed import FRAMES
from flashrt_ros.pictures import CameraImage
from flashrt_ros.policy import Observation
from flashrt_ros.tracing import stage

_SECOND = 1_000_000_000


@dataclass(frozen=True)
class Taken:
    """An observation and its times. ages_s: input name -> age when taking began, views first, then 'state'.

    stamp_ns: the oldest stamp used [ROS time]. transport_s: stamp to reception, slowest input.
    wait_s: from the newest input that had come when taking began until then.
    take_s: messages to arrays, or to pictures that are seen ahead. skew_s: between stamps.
    """

    observation: Observation
    stamp_ns: int
    ages_s: Mapping[str, float]
    transport_s: float
    wait_s: float
    take_s: float
    skew_s: float


@dataclass(frozen=True)
class Blocked:
    """Why there is no observation, and since when [ROS time]. ages_s: of the inputs that are there."""

    refusal: Refusal
    since_ns: int
    now_ns: int
    ages_s: Mapping[str, float]

    @property
    def reason(self) -> str:
        lasting = max(0, self.now_ns - self.since_ns) / _SECOND
        return f'{self.refusal.input}: {self.refusal.detail} (for {lasting:.1f} s)'


@dataclass(frozen=True)
class _Seen:
    """Pictures that are seen ahead, what they were made of, from when on [ROS time], and for how long."""

    samples: Mapping[str, Sample]
    images: dict[str, Any]
    began_ns: int
    take_s: float


class Ingest:
    """The inputs of one robot. `limits` and `prompt` may be replaced at any time.

    fresh: whether every camera has a frame that no observation has used.
    pool: decodes the pictures of one observation side by side; None: one after the other, as a robot with few
    cores does. decode: False leaves frames to the policy as they are or were before compression
    (`CameraImage`); what is wrong with them is still found here.
    decoding: what makes pixels of JPEGs.
    see_ahead: called with the pictures of an observation before the rest of it is made, which may still be
    refused: by `observe` as soon as they have passed their gates, or before it by `see`. The time from there
    on is not in `Taken.take_s`.
    Raises BackendError where `ingest.decode` asks for the GPU and it cannot be had.
    """

    def __init__(self, config: RobotConfig, pool: Executor | None = None, decode: bool = True) -> None:
        self._pool, self._decode_raw = pool, decode
        self.joints = JointMap.of(config)
        self.limits = Limits.of(config)
        self.prompt = config.prompt
        self._prompt_topic = config.prompt_topic
        self._frames = {view: FRAMES[camera.transport] for view, camera in config.cameras.items()}
        compressed = [view for view, camera in config.cameras.items() if camera.transport == 'compressed']
        self._rings = {view: ring_of(config) for view in compressed}
        self.decoding = decoding_of(config)
        self._framings = {view: camera.framing for view, camera in config.cameras.items()}
        inputs: dict[str, Camera | JointStates] = {**config.cameras, STATE: config.joint_states}
        self.streams = {name: Stream(name, of.topic, of.latency_s) for name, of in inputs.items()}
        self.fresh = Fresh({view: self.streams[view] for view in config.cameras})
        self.see_ahead: Callable[[Mapping[str, np.ndarray | CameraImage]], None] | None = None
        self._seen: _Seen | None = None
        self._episode: tuple[str, str] | None = None
        self._since_ns = 0
        self._fine_ns = 0

    def offer(self, name: str, message: Any, received_ns: int) -> None:
        """Keep a message as the latest of its input. name: a view, or 'state'. received_ns: ROS time.

        Sources that have frames already give them to the stream of the view (`Stream.keep`).
        """
        if name == STATE:
            self.streams[name].offer(message, received_ns)
        else:
            self.streams[name].keep(self._frames[name](message, received_ns, 0))

    def observe(self, now_ns: int) -> Taken | Blocked:
        """Take the latest message of every input, if all pass the gates and can be decoded."""
        samples = {name: stream.latest() for name, stream in self.streams.items()}
        refusal = self._gates(samples, now_ns)
        present = {name: sample for name, sample in samples.items() if sample is not None}
        if refusal is None:
            with stage('take'):
                taken = self._take(present, now_ns)
            if isinstance(taken, Taken):
                self._episode, self._fine_ns = None, now_ns
                self.fresh.used()
                return taken
            refusal = taken
        return self._blocked(refusal, present, now_ns)

    def see(self, now_ns: int) -> None:
        """See ahead the latest pictures, which `observe` goes on from if it takes the very same.

        For the thread that brings the last of them, while the one that observes, and does not see meanwhile,
        still wakes. Nothing happens where pictures are decoded here, which is long, or cannot be used, which
        `observe` tells.
        """
        if self.see_ahead is None or self._rings or self._decode_raw:
            return
        samples = {view: stream.latest() for view, stream in self.streams.items() if view != STATE}
        present = {view: sample for view, sample in samples.items() if sample is not None}
        if len(present) < len(samples):
            return
        begin = time.perf_counter()
        with suppress(ObservationError):
            images = {view: self._decode(view, sample) for view, sample in present.items()}
            self._seen = _Seen(present, images, now_ns, time.perf_counter() - begin)
            self.see_ahead(images)

    def fault_of(self, name: str) -> ObservationError | None:
        """What is wrong with the latest message of an input, its times aside; None if nothing is."""
        sample = self.streams[name].latest()
        try:
            if sample is not None:
                self._decode(name, sample)
        except ObservationError as error:
            return error
        return None

    def _gates(self, samples: Mapping[str, Sample | None], now_ns: int) -> Refusal | None:
        for name, sample in samples.items():
            refusal = check_sample(self.streams[name], sample, now_ns, self.limits)
            if refusal is not None:
                return self._all_at_once(refusal, samples, now_ns)
        stamps = {name: sample.stamp_ns for name, sample in samples.items() if sample is not None}
        refusal = check_skew(stamps, self.limits)
        if refusal is None and not self.prompt.strip():
            where = f"set the parameter 'prompt' or publish on '{self._prompt_topic}'"
            return Refusal('prompt', 'prompt', f'it is empty: {where}')
        return refusal

    def _all_at_once(self, refusal: Refusal, samples: Mapping[str, Sample | None], now_ns: int) -> Refusal:
        """The same refusal; where every input was fine a moment ago and is stale now, it says so."""
        checked = (check_sample(self.streams[name], s, now_ns, self.limits) for name, s in samples.items())
        if self._fine_ns == 0 or not all(found and found.kind == 'stale' for found in checked):
            return refusal
        gap = (now_ns - self._fine_ns) / _SECOND
        hint = (
            f'as is every input, {gap:.3f} s after all were fine: the clock jumped ahead, or all stood still'
        )
        return replace(refusal, detail=f'{refusal.detail}; {hint}')

    def _take(self, samples: Mapping[str, Sample], now_ns: int) -> Taken | Refusal:
        begin = time.perf_counter()
        views = {name: sample for name, sample in samples.items() if name != STATE}
        seen = self._seen_before(views) or self._see_now(views, now_ns)
        if isinstance(seen, Refusal):
            return seen
        state = self._taken(STATE, samples[STATE])
        if isinstance(state, Refusal):
            return state
        take_s = seen.take_s if self.see_ahead is not None else time.perf_counter() - begin
        stamps = [sample.stamp_ns for sample in samples.values()]
        received = [sample.received_ns for sample in samples.values()]
        newest_ns = max((came for came in received if came <= seen.began_ns), default=seen.began_ns)
        return Taken(
            observation=Observation(seen.images, state, self.prompt),
            stamp_ns=min(stamps),
            ages_s=_ages(samples, seen.began_ns),
            transport_s=max(came - stamp for came, stamp in zip(received, stamps, strict=True)) / _SECOND,
            wait_s=(seen.began_ns - newest_ns) / _SECOND,
            take_s=take_s,
            skew_s=(max(stamps) - min(stamps)) / _SECOND,
        )

    def _see_now(self, samples: Mapping[str, Sample], now_ns: int) -> _Seen | Refusal:
        begin = time.perf_counter()
        images = self._pictures(samples)
        if isinstance(images, Refusal):
            return images
        take_s = time.perf_counter() - begin
        if self.see_ahead is not None:
            self.see_ahead(images)
        return _Seen(samples, images, now_ns, take_s)

    def _seen_before(self, samples: Mapping[str, Sample]) -> _Seen | None:
        """What `see` has made of these very samples, which count as used from now on."""
        seen, self._seen = self._seen, None
        if seen is None or any(seen.samples[view] is not sample for view, sample in samples.items()):
            return None
        for view, sample in samples.items():
            self.streams[view].take(sample)
        return seen

    def _pictures(self, samples: Mapping[str, Sample]) -> dict[str, Any] | Refusal:
        ahead = {
            view: self._pool.submit(self._decode, view, sample).result
            for view, sample in samples.items()
            if self._pool is not None
        }
        images: dict[str, Any] = {}
        for view, sample in samples.items():
            image = self._taken(view, sample, ahead.get(view))
            if isinstance(image, Refusal):
                return image
            images[view] = image
        return images

    def _taken(self, name: str, sample: Sample, decoded: Callable[[], Any] | None = None) -> Any | Refusal:
        """What was made of a sample, which counts as used from now on."""
        try:
            array = self._decode(name, sample) if decoded is None else decoded()
        except ObservationError as error:
            self.streams[name].reject(sample, f'{error.what}. {error.fix[:1].upper()}{error.fix[1:]}')
            return Refusal(name, 'invalid', sample.fault)
        self.streams[name].take(sample)
        return array

    def _decode(self, name: str, sample: Sample) -> np.ndarray | CameraImage:
        if name == STATE:
            return self.joints.to_checkpoint(self.joints.positions(sample.message))
        frame = sample.message
        if name in self._rings:
            frame = decompress(frame, name, self._rings[name], self.decoding.on_gpu.get(name))
        image = CameraImage(frame, self._framings[name])
        if self._decode_raw:
            return image.array(name)
        image.check(name)
        return image

    def _blocked(self, refusal: Refusal, samples: Mapping[str, Sample], now_ns: int) -> Blocked:
        episode = (refusal.input, refusal.kind)
        if episode != self._episode:
            self._episode, self._since_ns = episode, now_ns
        # Simulated time is 0 until it begins; nothing has lasted since then.
        self._since_ns = self._since_ns or now_ns
        return Blocked(refusal, self._since_ns, now_ns, _ages(samples, now_ns))


def _ages(samples: Mapping[str, Sample], now_ns: int) -> dict[str, float]:
    return {name: (now_ns - sample.stamp_ns) / _SECOND for name, sample in samples.items()}
