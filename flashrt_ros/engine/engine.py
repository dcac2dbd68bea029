"""One policy on one GPU: static buffers, four stages in two graphs.

    engine = Engine(library, spec, packed, views=2, resize='pil')
    engine.write(frames, tokens, state, noise, guide=guide); engine.replay(); actions = engine.read()

Seeing (preprocess, vision) is captured for 1 .. views present images, acting (prefill, denoise) for
each of them with the prompt sizes of `prompt_sizes`. The length inside a size is read on the device, so
nothing is ever captured again. They are two, so that the host can turn state and prompt into tokens while the
GPU sees:

    engine.write_frames(frames); engine.see()
    engine.write_inputs(tokens, state, noise); engine.act()
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from flashrt_ros.engine.buffers import Inputs, PrefixCache, round_up
from flashrt_ros.engine.cuda.copies import Copies
from flashrt_ros.engine.cuda.graph import Stage, StagedGraph
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.expert.denoise import PREFIX as FUSED
from flashrt_ros.engine.expert.denoise import FusedDenoise, restore
from flashrt_ros.engine.expert.exact import ExactDenoise, Forward, own_weights
from flashrt_ros.engine.expert.forward import FusedForward
from flashrt_ros.engine.frame_inputs import FrameInputs
from flashrt_ros.engine.operators.backward import BackwardOperators
from flashrt_ros.engine.operators.forward import Operators
from flashrt_ros.engine.operators.gemm import Product
from flashrt_ros.engine.towers.denoise import PlainDenoise
from flashrt_ros.engine.towers.flow import FlowHeads
from flashrt_ros.engine.towers.prefill import Prefill
from flashrt_ros.engine.towers.vision import VisionTower
from flashrt_ros.errors import ObservationError
from flashrt_ros.models.guidance import Guide
from flashrt_ros.models.spec import PolicySpec
from flashrt_ros.pictures import CameraImage

PROMPT_ROWS = (64, 128)
"""Prompt sizes captured besides the longest: most prompts are 20 to 60 tokens, and rows cost prefill time."""

PROMPT_MULTIPLE = 8
"""What the longest is rounded up to: kernels run whole tiles, but what they read and write ends there."""


def prompt_sizes(max_tokens: int) -> tuple[int, ...]:
    """Rows that the prompt may take in a graph, ascending; the last holds the longest prompt."""
    longest = round_up(max_tokens, PROMPT_MULTIPLE)
    return tuple(sorted({rows for rows in PROMPT_ROWS if rows < longest} | {longest}))


def longest_prefix(spec: PolicySpec, views: int, rows: int) -> int:
    """Valid rows of the longest prefix in a graph of so many prompt rows. A prompt never fills all rows of
    the largest graph, and nothing behind the prefix (tables of rotations, room for keys) is made for that."""
    return views * spec.vision.tokens + min(rows, spec.max_tokens)


class Engine:
    """Call from one thread at a time.

    resize: convention by which camera frames are resized on the GPU ('pil' or 'torch'); None takes images
    that are prepared already, as calibration does.
    """

    def __init__(
        self,
        library: KernelLibrary,
        spec: PolicySpec,
        packed: Mapping[str, Tensor],
        views: int,
        scales: Mapping[str, float] | None = None,
        resize: str | None = None,
        exact: bool = False,
    ) -> None:
        """exact: also take the guidance of that name (`pack` or `load_exact` have packed weights for it)."""
        self.spec, self.views, self.library = spec, views, library
        device, operators, scales = library.gpu.device, Operators(library), scales or {}
        self.stream = library.context.new_stream()
        self._copy = Copies(self.stream)
        # Not at the interpreter's end, when torch frees what it has in an order of its own.
        weakref.finalize(self, library.context.return_stream, self.stream).atexit = False
        torch.cuda.synchronize(device)  # the weights may still be on their way, on another stream
        with torch.cuda.stream(self.stream):
            self.inputs = Inputs.allocate(spec, views, device)
            frames = FrameInputs(library, spec.vision, resize, views, self.stream) if resize else None
            self.frames = frames
            self.cache = PrefixCache.allocate(spec, views, device, self.inputs.length)
            self.vision = VisionTower(operators, spec.vision, packed, scales, views)
            self.prefill = Prefill(operators, spec, packed, scales, views, self.cache)
            self.denoise = _make_denoise(operators, spec, packed, scales, self.cache, views)
            self.exact = _make_exact(operators, spec, packed, scales, self.cache, views) if exact else None
        self._result = torch.zeros(spec.horizon, spec.action_dim).pin_memory()
        self._seeing: dict[int, StagedGraph] = {}
        self._acting: dict[tuple[int, int, bool], StagedGraph] = {}
        self._views, self._chosen = views, (views, prompt_sizes(spec.max_tokens)[-1], False)

    def capture(self, timed: bool = True) -> None:
        """Record every graph; afterwards no call allocates, compiles or records. timed: see `StagedGraph`."""
        pool = torch.cuda.graph_pool_handle()
        self.denoise.actions.zero_()
        for views in range(self.views, 0, -1):
            self._seeing[views] = StagedGraph(self.seeing(views), self.stream, pool, timed)
            for rows in reversed(prompt_sizes(self.spec.max_tokens)):
                self.cache.length.fill_(longest_prefix(self.spec, views, rows))
                torch.cuda.synchronize()
                for exact in (False, True) if self.exact is not None else (False,):
                    stages = self.acting(views, rows, exact)
                    self._acting[views, rows, exact] = StagedGraph(stages, self.stream, pool, timed)

    def stages(self, views: int, rows: int, exact: bool = False) -> list[Stage]:
        """All stages for this many present views and prompt rows, as functions that launch them."""
        return [*self.seeing(views), *self.acting(views, rows, exact)]

    def seeing(self, views: int) -> list[Stage]:
        """Those that need the frames alone."""
        frames = self.frames
        if frames is None:
            return [('vision', lambda: self.vision.run(self.inputs.images[:views]))]
        return [
            ('preprocess', lambda: frames.launch(0, views, self.vision.patch_rows(views))),
            ('vision', lambda: self.vision.see(views)),
        ]

    def acting(self, views: int, rows: int, exact: bool = False) -> list[Stage]:
        """The others."""
        loop = self._loop(exact)
        tokens, projected = self.inputs.tokens[:rows], self.vision.output(views)

        def read_prefix() -> None:
            self.prefill.run(projected, self.vision.projector, tokens)

        def denoise() -> None:
            loop.run()
            self._result.copy_(loop.actions, non_blocking=True)

        return [('prefill', read_prefix), ('denoise', denoise)]

    def write(
        self,
        images: Tensor | Mapping[str, CameraImage],
        tokens: Tensor,
        state: Tensor,
        noise: Tensor,
        *,
        guide: Guide | None = None,
    ) -> None:
        """Stage one observation on the engine's stream (pinned tensors do not block).

        images: frames by view, in the checkpoint's order, to be kept until `read` returns; without `resize` a
        tensor [present views, ...] as `Inputs.images`. tokens int [N], all valid; state fp32 [A]; noise fp32
        [H, A]; guide: what to go on from. Raises ObservationError for a prompt or a number of views beyond
        what the buffers hold, and for frames that cannot be read.
        """
        self.write_frames(images)
        self.write_inputs(tokens, state, noise, guide=guide)

    def write_frames(self, images: Tensor | Mapping[str, CameraImage]) -> None:
        """The part of `write` that `see` reads."""
        views = len(images)
        if not 1 <= views <= self.views:
            raise ObservationError(f'{views} images came', 'images', f'give 1 to {self.views}')
        if isinstance(images, Tensor):
            with torch.cuda.stream(self.stream):
                self.inputs.images[:views].copy_(images, non_blocking=True)
        elif self.frames is not None:
            self.frames.write(images)
        self._views = views

    def write_inputs(
        self, tokens: Tensor, state: Tensor, noise: Tensor, *, guide: Guide | None = None
    ) -> None:
        """The part of `write` that `act` reads, for the frames written last."""
        words = torch.zeros(self.inputs.words.shape, dtype=torch.int32)
        self.put_words(tokens.tolist(), words.numpy())
        with torch.cuda.stream(
            self.stream
        ):  # torch keeps pinned memory that is let go until it has been read
            self._write_words(_torch_copy, words, tokens.shape[0], state, noise, guide)

    def put_words(self, tokens: Sequence[int], words: np.ndarray) -> None:
        """Write the prompt and the length of the prefix that it ends, for the frames written last, into
        words int32, as `Inputs.words`. Raises ObservationError for a prompt that is too long."""
        count = len(tokens)
        if not 1 <= count <= self.spec.max_tokens:
            raise ObservationError(
                f'the prompt has {count} tokens', 'prompt', f'shorten it to at most {self.spec.max_tokens}'
            )
        words[:count] = tokens
        words[-1] = self._views * self.spec.vision.tokens + count

    def write_words(
        self, words: Tensor, count: int, state: Tensor, noise: Tensor, guide: Guide | None
    ) -> None:
        """`write_inputs` of what `put_words` wrote, `count` tokens, from pinned memory that stays until the
        stream has read it."""
        self._write_words(self._copy, words, count, state, noise, guide)

    def _write_words(
        self,
        copy: Callable[[Tensor, Tensor], None],
        words: Tensor,
        count: int,
        state: Tensor,
        noise: Tensor,
        guide: Guide | None,
    ) -> None:
        exact = guide is not None and guide.method == 'exact'
        loop = self._loop(exact)
        copy(self.inputs.words, words)
        copy(loop.actions, noise)
        if self.spec.has_state_token:
            copy(loop.state, state)
        if guide is not None or not loop.guide.off:
            with torch.cuda.stream(self.stream):
                loop.guide.write(guide)
        self._chosen = self._views, self.prompt_rows(count), exact

    def _loop(self, exact: bool) -> PlainDenoise | FusedDenoise | ExactDenoise:
        if not exact:
            return self.denoise
        if self.exact is None:
            raise ValueError('the engine was not made for exact guidance')
        return self.exact

    def prompt_rows(self, count: int) -> int:
        """The smallest captured prompt size that holds `count` tokens."""
        return next(rows for rows in prompt_sizes(self.spec.max_tokens) if rows >= count)

    @property
    def actions(self) -> Tensor:
        """Of the loop that was chosen last, fp32 [H, A] on the GPU."""
        return self._loop(self._chosen[2]).actions

    def fetch(self, actions: Tensor) -> None:
        """Copy them to pinned fp32 [H, A], which stays until the stream has written it; returns at once."""
        self._copy(actions, self.actions)

    def replay(self) -> None:
        """Launch both graphs for what was written last; returns at once."""
        self.see()
        self.act()

    def see(self) -> None:
        """Launch what needs the frames alone, on the engine's stream; returns at once."""
        self._seeing[self._views].launch()

    def act(self) -> None:
        """Launch the rest, as `see`."""
        self._acting[self._chosen].launch()

    def stage_seconds(self) -> dict[str, float]:
        """Seconds of each stage in the last replay; call after `read`."""
        seen, acted = self._replayed()
        return seen.stage_seconds() | acted.stage_seconds()

    def span_seconds(self) -> float:
        """Seconds of the last replay from its first stage to its last, with what lies between them, while the
        GPU waited for the host; call after `read`, of graphs that are timed."""
        seen, acted = self._replayed()
        return seen.seconds_until(acted)

    def _replayed(self) -> tuple[StagedGraph, StagedGraph]:
        return self._seeing[self._chosen[0]], self._acting[self._chosen]

    def read(self) -> Tensor:
        """Wait for the graph and return the actions, fp32 [H, A] on the host; valid until the next replay."""
        self.stream.synchronize()
        return self._result

    def products(self) -> list[Product]:
        """Every quantisable product, for calibration; only the plain denoise loop has them all."""
        if not isinstance(self.denoise, PlainDenoise):
            raise ValueError('calibration needs weights packed for the plain denoise loop')
        towers = (self.vision.layers, self.prefill.layers, self.denoise.layers)
        inner = [product for layers in towers for layer in layers for product in layer.values()]
        return [*inner, self.vision.projector, self.prefill.last]


def _torch_copy(to: Tensor, source: Tensor) -> None:
    to.copy_(source, non_blocking=True)


def _make_exact(
    operators: Operators,
    spec: PolicySpec,
    packed: Mapping[str, Tensor],
    scales: Mapping[str, float],
    cache: PrefixCache,
    views: int,
) -> ExactDenoise:
    """Its forward pass is the fused loop's where the weights were packed for that."""
    forward: Forward
    if any(name.startswith(FUSED) for name in packed):
        weights, activations = restore(packed, spec, scales, cache.length.device)
        heads = FlowHeads(packed, spec, cache.length.device)
        longest = longest_prefix(spec, views, spec.max_tokens)
        forward = FusedForward(operators, spec, weights, activations, heads, cache, longest)
    else:
        forward = PlainDenoise(operators, spec, own_weights(packed), {}, cache, keeps=True)
    return ExactDenoise(operators, BackwardOperators(operators.library), forward, packed, cache)


def _make_denoise(
    operators: Operators,
    spec: PolicySpec,
    packed: Mapping[str, Tensor],
    scales: Mapping[str, float],
    cache: PrefixCache,
    views: int,
) -> PlainDenoise | FusedDenoise:
    """The loop that the weights were packed for."""
    if any(name.startswith(FUSED) for name in packed):
        longest = longest_prefix(spec, views, spec.max_tokens)
        return FusedDenoise(operators.library, spec, packed, scales, cache, longest)
    return PlainDenoise(operators, spec, packed, scales, cache)
