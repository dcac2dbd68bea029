"""What stands between a robot and the network: observation -> network inputs, network output -> actions.

`Processing` is read from a checkpoint by `openpi` or `lerobot` and is the same object for both, so that the
CPU backend and the CUDA engine call the same code. In order of use:

    prepared = processing.prepare(observation)           # images, tokens, padded state
    actions  = processing.restore(network_output, observation.state)

The parts are usable alone: `check`, `images`, `normalized_state`, `padded_state`, `tokens`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from flashrt_ros.errors import ObservationError
from flashrt_ros.models.image import check_image, resize_with_pad, square_bytes
from flashrt_ros.models.normalize import Normalizer
from flashrt_ros.models.prompt import encode_prompt, prompt_pieces
from flashrt_ros.models.tokenizer import Tokenizer
from flashrt_ros.pictures import CameraImage, picture_array
from flashrt_ros.policy import Observation

CONSTANT_WIDTH = 1e-5
"""A column that changes by less, in its own unit, between normalised 0 and 1 carries no information."""


@dataclass(frozen=True)
class Prepared:
    """Inputs of the network, without padding and without absent views.

    images: fp32 [V, 3, S, S] in [-1, 1]. tokens: int64 [1, N]. state: fp32 [1, padded width], normalised.
    """

    images: Tensor
    tokens: Tensor
    state: Tensor


@dataclass(frozen=True)
class Processing:
    """All conventions of one checkpoint.

    views: names in the checkpoint's order; one at least has to be present, absent ones are masked out.
    state_dim, action_dim: the robot's widths; 0 where the checkpoint does not say, then any state that the
    statistics cover is taken and all `actions.width` columns are given.
    delta: for each action column whether the network predicts it relative to the state; shorter than the row
    or empty means absolute for the rest.
    """

    views: tuple[str, ...]
    image_size: int
    resize: str
    state: Normalizer
    actions: Normalizer
    state_dim: int
    action_dim: int
    padded_dim: int
    prompt_form: str
    max_tokens: int
    tokenizer: Tokenizer
    delta: tuple[bool, ...] = ()

    def prepare(self, observation: Observation) -> Prepared:
        """Raises ObservationError for anything that the checkpoint cannot take."""
        self.check(observation)
        tokens, state = self.text_and_state(observation)
        return Prepared(self.images(observation), tokens, state)

    def text_and_state(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """`Prepared.tokens` and `Prepared.state` of an observation that has been checked. Raises
        ObservationError for a prompt that is too long."""
        tokens, state = self.words_and_state(observation)
        return torch.tensor([tokens]), self.padded_state(state)

    def words_and_state(self, observation: Observation) -> tuple[list[int], np.ndarray]:
        """The same as token ids and normalised state [D] alone."""
        state = self.normalized_state(observation.state)
        return self.tokens(observation.prompt, state), state

    def shrunk(self, observation: Observation) -> Observation:
        """The same observation with its pictures already resized; `prepare` gives the same of both.

        Only the `pil` convention has such an in-between; others give the observation as it is.
        """
        if self.resize != 'pil':
            return observation
        self.check(observation)
        images = {
            view: square_bytes(picture_array(x, view), self.image_size)
            for view, x in observation.images.items()
        }
        return replace(observation, images=images)

    def check(self, observation: Observation) -> None:
        """Raises ObservationError for unknown views or none, bad pixels, a wrong state or no prompt."""
        self.check_views(observation.images)
        for view, image in observation.images.items():
            if isinstance(image, CameraImage):
                image.check(view)
            else:
                check_image(view, image)
        self.check_words(observation)

    def check_views(self, images: Mapping[str, np.ndarray | CameraImage]) -> None:
        """The part of `check` about the names of images."""
        unknown = [view for view in images if view not in self.views]
        if unknown:
            raise ObservationError(
                f"there is no view '{unknown[0]}' in this checkpoint",
                'observation',
                f'use its names: {", ".join(self.views)}',
            )
        if not images:
            raise ObservationError(
                'there is no image at all', 'observation', f'give at least one of {", ".join(self.views)}'
            )

    def check_words(self, observation: Observation) -> None:
        """The part of `check` about what is no image."""
        self._check_state(observation.state)
        if not observation.prompt.strip():
            raise ObservationError('the prompt is empty', 'observation', 'say what the robot should do')

    def images(self, observation: Observation) -> Tensor:
        """Present views in the checkpoint's order -> fp32 [V, 3, S, S]."""
        resized = [resize_with_pad(x, self.image_size, self.resize) for x in self._present(observation)]
        return torch.stack(resized)

    def frames(self, images: Mapping[str, np.ndarray | CameraImage]) -> dict[str, CameraImage]:
        """Present views in the checkpoint's order, for a backend that decodes and resizes itself."""
        present = {view: images[view] for view in self.views if view in images}
        return {v: x if isinstance(x, CameraImage) else CameraImage.of(x) for v, x in present.items()}

    def _present(self, observation: Observation) -> list[np.ndarray]:
        images = observation.images
        return [picture_array(images[view], view) for view in self.views if view in images]

    def normalized_state(self, state: np.ndarray) -> np.ndarray:
        """State in robot units [D] -> normalised [D], in the precision of the statistics."""
        return self.state.narrow(len(state)).normalize(state)

    def padded_state(self, normalized: np.ndarray) -> Tensor:
        """Normalised state [D] -> fp32 [1, padded width], zeros behind."""
        padded = torch.zeros(1, self.padded_dim)
        padded[0, : len(normalized)] = torch.from_numpy(normalized.astype(np.float32))
        return padded

    def tokens(self, prompt: str, normalized: np.ndarray) -> list[int]:
        """Task and normalised state [D] -> valid token ids, bos first."""
        return encode_prompt(
            self.tokenizer, prompt_pieces(self.prompt_form, prompt, normalized), self.max_tokens
        )

    def restore(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Network output fp32 [H, padded width], state [D] -> absolute actions fp32 [H, action width]."""
        width = self.action_dim or self.actions.width
        restored = self.actions.narrow(width).restore(actions[:, :width])
        columns = [column for column, relative in enumerate(self.delta[:width]) if relative]
        if columns:
            restored = restored.copy()
            restored[:, columns] += state[columns].astype(restored.dtype)
        return np.ascontiguousarray(restored, dtype=np.float32)

    def encode(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        """The inverse of `restore`: absolute actions [R, width], state [D] -> fp32 [R, padded width].

        Columns behind the robot's are 0, as they were in training. A constant column gets its constant: the
        least deviation would be divided by a width of nearly 0.
        """
        width = actions.shape[1]
        normalizer = self.actions.narrow(width)
        relative = actions.astype(np.float64)
        columns = [column for column, delta in enumerate(self.delta[:width]) if delta]
        relative[:, columns] -= state[columns].astype(np.float64)
        constant = self.constant_columns(width)
        relative[:, constant] = normalizer.restore(np.zeros((1, width)))[:, constant]
        encoded = np.zeros((len(actions), self.padded_dim), dtype=np.float32)
        encoded[:, :width] = normalizer.normalize(relative)
        return encoded

    def constant_columns(self, width: int) -> np.ndarray:
        """bool [width]: actions that never changed in the training data, by the checkpoint's statistics."""
        normalizer = self.actions.narrow(width)
        low, high = normalizer.restore(np.zeros((1, width))), normalizer.restore(np.ones((1, width)))
        return np.asarray(np.abs(high - low)[0] < CONSTANT_WIDTH)

    def _check_state(self, state: np.ndarray) -> None:
        if (
            not isinstance(state, np.ndarray)
            or state.ndim != 1
            or not np.issubdtype(state.dtype, np.floating)
        ):
            kind = (
                f'{state.dtype} {list(state.shape)}'
                if isinstance(state, np.ndarray)
                else type(state).__name__
            )
            raise ObservationError(
                f'the state is {kind}', 'observation', 'give floating-point values [state_dim]'
            )
        low, high = (self.state_dim, self.state_dim) if self.state_dim else (1, self.state.width)
        if not low <= len(state) <= high:
            wanted = f'{high}' if low == high else f'1 to {high}'
            raise ObservationError(
                f'the state has {len(state)} values, and this checkpoint takes {wanted}',
                'observation',
                "give the checkpoint's state, in its order",
            )
        if not np.isfinite(state).all():
            where = ', '.join(str(i) for i in np.flatnonzero(~np.isfinite(state)))
            raise ObservationError(
                f'the state is not finite at index {where}', 'observation', 'check the joint-state source'
            )
        if len(self.delta) > len(state) and any(self.delta[len(state) :]):
            raise ObservationError(
                f'the state has {len(state)} values, too few for the actions that are relative to it',
                'observation',
                'give the whole state',
            )
