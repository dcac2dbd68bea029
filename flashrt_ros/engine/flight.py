"""One inference on its way through the GPU, so that the next can be staged while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from flashrt_ros.engine.engine import Engine
from flashrt_ros.models.guidance import Guide
from flashrt_ros.pictures import CameraImage


class Flight:
    """Pinned inputs and the result of one inference; may be started again once it has landed.

    Two of them in turn let the host write the inputs of one inference while the GPU computes another: what
    they share lies on the engine's stream, which does one thing after the other.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self._staging = engine, dict[str, Tensor]()
        self._frames: Mapping[str, CameraImage] = {}
        spec = engine.spec
        self._result = torch.empty(spec.horizon, spec.action_dim, pin_memory=True)
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
        with torch.cuda.stream(engine.stream):
            self._begin.record()
            self._seen = True
            engine.see()

    def start(self, inputs: Mapping[str, Tensor], guide: Guide | None) -> None:
        """Stage the rest and launch it; returns at once. inputs: tokens, state, noise as `Engine.write`."""
        engine = self._engine
        staged = {name: self._pin(name, tensor) for name, tensor in inputs.items()}
        with torch.cuda.stream(engine.stream):
            engine.write_inputs(**staged, guide=guide)
            self._staged.record()
            engine.act()
            self._result.copy_(engine.actions, non_blocking=True)
            self._end.record()
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

    def _pin(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor in pinned memory of its own, from which the GPU copies without the host waiting."""
        kept = self._staging.get(name)
        if kept is None or kept.numel() < tensor.numel():
            kept = self._staging[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return kept.flatten()[: tensor.numel()].view(tensor.shape).copy_(tensor)


def pinned(image: CameraImage) -> CameraImage:
    """The image with its bytes where the GPU can read them: itself, or a copy."""
    frame = image.frame
    if frame.device_address:
        return image
    memory = torch.empty(frame.data.size, dtype=torch.uint8, pin_memory=True)
    data = memory.numpy()  # keeps the memory
    data[:] = frame.data
    return replace(image, frame=replace(frame, data=data, device_address=memory.data_ptr()))
