"""One inference on its way through the GPU, so that the next can be staged while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from flashrt_ros.engine.engine import Engine
from flashrt_ros.models.guidance import Guide
from flashrt_ros.pictures import CameraImage


class Flight:
    """Pinned inputs and the result of one inference; may be started again once it has landed.

    Two of them in turn let the host write the inputs of one inference while the GPU computes another: what
    they share lies on the engine's stream, which does one thing after the other.
    noise: fp32 [H, A], to be written between `see` and `start`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._frames: Mapping[str, CameraImage] = {}
        spec = engine.spec
        self._result, self._noise = (
            torch.zeros(spec.horizon, spec.action_dim, pin_memory=True) for _ in range(2)
        )
        self._words = torch.zeros(engine.inputs.words.shape, dtype=torch.int32, pin_memory=True)
        self._state = torch.zeros(spec.action_dim, pin_memory=True)
        # Written by numpy, which is at home in memory where torch's operators would be fetched first.
        self._words_array, self._state_array = self._words.numpy(), self._state.numpy()
        self.noise = self._noise.numpy()
        self._staged = torch.cuda.Event()
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._seen = self._started = False

    def see(self, frames: Mapping[str, CameraImage], before: Flight | None) -> None:
        """Stage the frames and launch what needs them alone; returns at once, and `start` has to follow.

        before: the flight started last. Its inputs must have left the host memory that all flights share.
        """
        engine = self._engine
        self._finish()
        self._frames = {view: pinned(image) for view, image in frames.items()}
        if before is not None:
            before._leave_the_host()
        engine.write_frames(self._frames)
        self._begin.record(engine.stream)
        self._seen = True
        engine.see()

    def start(self, tokens: Sequence[int], state: np.ndarray, guide: Guide | None) -> None:
        """Stage the rest and launch it; returns at once. tokens: of the prompt. state: normalised [D]."""
        engine = self._engine
        engine.put_words(tokens, self._words_array)
        self._state_array[: len(state)] = state
        self._state_array[len(state) :] = 0
        engine.write_words(self._words, len(tokens), self._state, self._noise, guide)
        self._staged.record(engine.stream)
        engine.act()
        engine.fetch(self._result)
        self._end.record(engine.stream)
        self._seen, self._started = False, True

    def land(self) -> Tensor:
        """Wait for the actions, fp32 [H, A] on the host; valid until the next start."""
        self._finish()
        self._frames = {}
        return self._result

    def _finish(self) -> None:
        """Wait for what was launched. Events are waited for only then: each costs as long as a launch."""
        if self._seen:  # a start that never came
            self._engine.stream.synchronize()
        if self._started:
            self._end.synchronize()
        self._seen = self._started = False

    def _leave_the_host(self) -> None:
        if self._seen:
            self._engine.stream.synchronize()
        elif self._started:
            self._staged.synchronize()

    def seconds(self) -> float:
        """On the GPU, from the staged frames to the actions; call after `land`."""
        return self._begin.elapsed_time(self._end) / 1e3


def pinned(image: CameraImage) -> CameraImage:
    """The image with its bytes where the GPU can read them: itself, or a copy."""
    frame = image.frame
    if frame.device_address:
        return image
    memory = torch.empty(frame.data.size, dtype=torch.uint8, pin_memory=True)
    data = memory.numpy()  # keeps the memory
    data[:] = frame.data
    return replace(image, frame=replace(frame, data=data, device_address=memory.data_ptr()))
