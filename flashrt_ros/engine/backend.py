"""The CUDA backend: a checkpoint as a `Policy`, computed by the engine.

Everything slow happens in `load`: kernels are compiled (once for a GPU) and weights packed (once for a
checkpoint), both cached on disk; then every graph is recorded and run once.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from flashrt_ros.engine.builds import exact_builds, policy_builds
from flashrt_ros.engine.calibration.ranges import Scales
from flashrt_ros.engine.calibration.scales import stored
from flashrt_ros.engine.cuda.device import (
    FP8_CAPABILITY,
    Gpu,
    find_gpu,
    gpu_failures,
    require_capability,
    require_memory,
)
from flashrt_ros.engine.cuda.driver import keep_forever
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.engine import Engine
from flashrt_ros.engine.expert.exact import back_format, exact_bytes
from flashrt_ros.engine.expert.exact import refusal as exact_refusal
from flashrt_ros.engine.flight import Flight, pinned
from flashrt_ros.engine.patience import Patience
from flashrt_ros.engine.weights.formats import uneven_products
from flashrt_ros.engine.weights.packing import PRECISIONS
from flashrt_ros.engine.weights.store import fingerprint, load_exact, load_packed, shares_exact
from flashrt_ros.errors import BackendError, FlashRTError
from flashrt_ros.models.backend import check_finite, check_noise, describe
from flashrt_ros.models.checkpoint import Checkpoint, open_checkpoint
from flashrt_ros.models.guidance import guidance_refusals, make_guide
from flashrt_ros.models.spec import PolicySpec
from flashrt_ros.models.tensors import parameter_count
from flashrt_ros.pictures import CameraImage
from flashrt_ros.policy import Guidance, Observation, PolicyOptions, Prediction
from flashrt_ros.tracing import stage

BYTES = {'bf16': 2.0, 'fp8': 1.2}
"""Bytes of GPU memory a parameter takes; in fp8 the embedding stays bf16."""

NOT_PREPARED = 'the policy was loaded without the weights that exact guidance needs (PolicyOptions.guidance)'

WORKSPACE = 1 << 30
"""Buffers, graphs and the libraries' own memory."""


def load(path: Path, options: PolicyOptions) -> CudaPolicy:
    """Load a checkpoint directory onto the first GPU, ready for its first inference.

    Raises BackendError for GPU, driver, memory, precision or sizes; CheckpointError for the checkpoint, and
    in fp8 also when its calibration is missing or belongs to other weights; ConfigError for the options.
    """
    gpu = find_gpu()
    _check_precision(gpu, options.precision)
    checkpoint = open_checkpoint(path, options)
    check_sizes(checkpoint.spec, options.precision)
    with gpu_failures(str(path)):
        exact = options.guidance == 'exact' and not exact_refusal(checkpoint.spec)
        engine = _build_engine(path, checkpoint, gpu, options.precision, exact)
    return CudaPolicy(checkpoint, engine, options)


def _build_engine(path: Path, checkpoint: Checkpoint, gpu: Gpu, precision: str, exact: bool) -> Engine:
    """Kernels, packed weights and graphs. What an error leaves behind is garbage and goes with it."""
    spec, processing = checkpoint.spec, checkpoint.processing
    key = fingerprint(path / 'model.safetensors')
    scales = stored(path, key) if precision == 'fp8' else Scales({})
    uneven = uneven_products(scales.crests)
    more = exact and not shares_exact(gpu, spec, precision)
    form = back_format(gpu, spec, precision)
    size = parameter_count(spec) * BYTES[precision] + WORKSPACE + more * exact_bytes(spec, form)
    require_memory(gpu, int(size), f'{spec.family} in {precision}')
    library = KernelLibrary(gpu)
    views = len(processing.views)
    builds = policy_builds(gpu, spec, precision, views, uneven)
    library.compile(builds + (exact_builds(gpu, spec, precision, views, uneven) if exact else []))
    packed = load_packed(key, spec, precision, views, gpu, lambda: checkpoint.tensors, uneven=uneven)
    if more:
        packed |= load_exact(key, spec, form, gpu, lambda: checkpoint.tensors)
    engine = Engine(library, spec, packed, views, scales, processing.resize, exact)
    engine.capture()
    return engine


def check_sizes(spec: PolicySpec, precision: str) -> None:
    """Raises BackendError for dimensions that no kernel instance covers."""
    vision, towers = spec.vision, (spec.language, spec.expert)
    multiple = 16 if precision == 'fp8' else 8
    widths = [vision.width, vision.mlp, *(w for t in towers for w in (t.width, t.mlp))]
    wrong = [f'a width of {width}' for width in widths if width % multiple or width > 65536]
    wrong += [f'{t.kv_heads} key heads' for t in towers if t.kv_heads != 1]
    wrong += [f'a head size of {t.head_dim}' for t in towers if t.head_dim % 16 or t.head_dim > 256]
    if vision.tokens % 64 or vision.head_dim % 8:
        wrong.append(f'{vision.tokens} image tokens with heads of {vision.head_dim}')
    if wrong:
        raise BackendError(
            f'the kernels do not cover {", ".join(wrong)} in {precision}', spec.family, "choose device 'cpu'"
        )


class CudaPolicy:
    """Implements `flashrt_ros.policy.Pipelined`, `SeesAhead` and `Rehearses`. Not thread-safe."""

    def __init__(self, checkpoint: Checkpoint, engine: Engine, options: PolicyOptions) -> None:
        self.processing, self.spec = checkpoint.processing, checkpoint.spec
        refusals = guidance_refusals(checkpoint.spec, checkpoint.trained_prefix)
        refusals['exact'] = exact_refusal(checkpoint.spec) or ('' if engine.exact else NOT_PREPARED)
        self.info = describe(checkpoint, 'cuda', options.precision, refusals)
        self._engine: Engine | None = engine
        self._generator = torch.Generator()
        self._drawn: np.ndarray | None = None
        self.reseed(options.seed)
        self._flights: tuple[Flight, ...] = (Flight(engine), Flight(engine))
        self._last = 1
        self._ahead: _Ahead | None = None
        self._lost = False
        self._patience = Patience()
        self.rehearse: Callable[[], None] | None = None
        self._blank = np.zeros((self.spec.horizon, self.spec.action_dim), np.float32)

    def infer(
        self,
        observation: Observation,
        noise: np.ndarray | None = None,
        guidance: Guidance | None = None,
    ) -> Prediction:
        """See `Policy.infer`. Raises ObservationError, or BackendError for NaN, Inf or a GPU that fails."""
        return self._submit(observation, noise, guidance)()

    def submit(self, observation: Observation) -> Callable[[], Prediction]:
        """See `Pipelined.submit`. Raises, and what it returns raises, as `infer`."""
        return self._submit(observation, None, None)

    def _submit(
        self, observation: Observation, noise: np.ndarray | None, guidance: Guidance | None
    ) -> Callable[[], Prediction]:
        with stage('preprocess'):
            return self._staged(observation, noise, guidance)

    def _staged(
        self, observation: Observation, noise: np.ndarray | None, guidance: Guidance | None
    ) -> Callable[[], Prediction]:
        began = perf_counter()
        engine = self._require_engine()
        ahead, self._ahead = self._ahead, None
        number = 1 - self._last
        flight = self._flights[number]
        if ahead is not None and ahead.is_of(observation):
            began, seeing = ahead.began, ahead.launched
        else:
            if not self._only_frames(observation.images):
                self.processing.check(observation)
            self._see(flight, observation.images)
            seeing = perf_counter()
        # While the GPU sees, which has looked at the frames:
        self.processing.check_views(observation.images)
        self.processing.check_words(observation)
        guide = None
        if guidance is not None:
            guide = make_guide(guidance, self.processing, self.info, observation.state, self.spec.steps)
        self._write_noise(flight.noise, noise)
        tokens, state = self.processing.words_and_state(observation)
        with gpu_failures(self.info.name, self._abandon):
            flight.start(tokens, state, guide)
        self._last = number
        launched = perf_counter()
        host = launched - began

        def finish() -> Prediction:
            with gpu_failures(self.info.name, self._abandon), stage('graph'):
                self._wait_rehearsing(launched, observation.state)
                actions = flight.land().numpy().copy()
                self._patience.ended(launched)
            finished = perf_counter()
            with stage('postprocess'):
                check_finite(actions, self.info)
                restored = self.processing.restore(actions, observation.state)
            if self._last == number:
                # Besides the GPU's own times: in front, the host's until it was told to see, and while the
                # GPU waited for the prompt; behind, the way of the actions to the host.
                stages, span = {'preprocess': 0.0, **engine.stage_seconds()}, engine.span_seconds()
                stages['preprocess'] += seeing - began + span - sum(stages.values())
                landing = finished - seeing - span
            else:  # the events between the stages are the next inference's by now
                stages, landing = {'preprocess': host, 'graph': flight.seconds()}, 0.0
            return Prediction(restored, {**stages, 'postprocess': landing + perf_counter() - finished})

        return finish

    def _wait_rehearsing(self, launched: float, state: np.ndarray) -> None:
        """Sleep through most of what the GPU takes, and be warm when it is done."""
        self._draw_ahead()
        if self._patience.rest(launched):
            with stage('rehearse'):
                check_finite(self._blank, self.info)
                self.processing.restore(self._blank, state)
                if self.rehearse is not None:
                    self.rehearse()

    def see_ahead(self, images: Mapping[str, np.ndarray | CameraImage]) -> None:
        """See `SeesAhead.see_ahead`."""
        self._ahead = None
        if self._engine is None or not self._only_frames(images):
            return
        began = perf_counter()
        with suppress(FlashRTError):  # `infer` tells
            self._see(self._flights[1 - self._last], images)
            self._ahead = _Ahead(images, began, perf_counter())

    def _see(self, flight: Flight, images: Mapping[str, np.ndarray | CameraImage]) -> None:
        frames = self.processing.frames(images)
        with gpu_failures(self.info.name, self._abandon):
            flight.see(frames, self._flights[self._last])

    def shrink(self, observation: Observation) -> Observation:
        """See `Policy.shrink`: the GPU resizes, and reads the pictures where this leaves them."""
        self.processing.check(observation)
        frames = self.processing.frames(observation.images)
        return replace(observation, images={view: pinned(image) for view, image in frames.items()})

    def reseed(self, seed: int | None) -> None:
        """See `Policy.reseed`."""
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
        self._drawn = None

    def close(self) -> None:
        """Give back the GPU memory; the object is of no use afterwards."""
        if self._engine is not None and not self._lost:
            with suppress(FlashRTError), gpu_failures(self.info.name, self._abandon):
                self._engine.stream.synchronize()  # what is under way still reads and writes pinned memory
        self._engine, self._flights = None, ()
        if not self._lost:
            gc.collect()  # stages and the engine know each other
            torch.cuda.empty_cache()

    def _abandon(self) -> None:
        """Whatever lies in the context has gone with it."""
        if not self._lost:
            keep_forever((self._engine, self._flights))
        self._lost = True

    def _require_engine(self) -> Engine:
        if self._engine is None:
            raise BackendError('the policy is closed', self.info.name, 'load it again')
        return self._engine

    def _write_noise(self, out: np.ndarray, noise: np.ndarray | None) -> None:
        if noise is None:
            out[:] = self._draw_ahead()
            self._drawn = None
            return
        check_noise(noise, out.shape)
        out[:] = noise

    def _draw_ahead(self) -> np.ndarray:
        """The next inference's noise, drawn while there is time: it takes 0.1 ms where that is missing."""
        if self._drawn is None:
            shape = self.spec.horizon, self.spec.action_dim
            self._drawn = torch.randn(shape, generator=self._generator).numpy()
        return self._drawn

    def _only_frames(self, images: Mapping[str, np.ndarray | CameraImage]) -> bool:
        """Whether what the GPU sees first is checked when it is written (`FrameInputs.write_view`)."""
        known = [images[view] for view in self.processing.views if view in images]
        return bool(known) and all(isinstance(image, CameraImage) for image in known)


@dataclass(frozen=True)
class _Ahead:
    """What the GPU sees already, when that was begun, and when it was launched (perf_counter)."""

    images: Mapping[str, np.ndarray | CameraImage]
    began: float
    launched: float

    def is_of(self, observation: Observation) -> bool:
        mine, its = self.images, observation.images
        return mine.keys() == its.keys() and all(mine[view] is its[view] for view in mine)


def _check_precision(gpu: Gpu, precision: str) -> None:
    if precision not in PRECISIONS:
        raise BackendError(
            f"the engine cannot run precision '{precision}'", 'precision', "choose 'bf16' or 'fp8'"
        )
    if precision == 'fp8':
        require_capability(gpu, FP8_CAPABILITY, "precision 'fp8'")
