"""The network of pi0 and pi0.5: images and prompt once, then the flow from noise to actions.

Three stages, callable apart so that they can be timed and compared apart:

    features = model.see(images)                      # SigLIP and projector
    prefix   = model.prefill(features, tokens, state) # keys and values of every layer
    actions  = model.denoise(noise, prefix, table)    # `steps` Euler steps from t = 1 to t = 0

`table = model.flow_table(steps)` holds everything that depends on the flow time alone. It is made once.
The family decides two things only: how the flow time reaches the expert, and whether the state is a token.

Exact savings (they change the order of summation and nothing else): only valid prompt tokens and present
views come in; the last prefill layer is keys and values; modulation is tabulated; pi0's state token, which
sees neither actions nor time, is run once and lives in the prefix.

Shapes: V views, P = V * 256 + prompt tokens, H horizon, A padded action width, W expert width.
Source: openpi `models/pi0.py` and `models_pytorch/pi0_pytorch.py` at 15a9616; pi0 arXiv:2410.24164, pi0.5
arXiv:2504.16054.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashrt_ros.models.gemma import Cache, ExpertTower, LanguageTower, Rotary, rotary_table
from flashrt_ros.models.guidance import Guide, guided_velocity
from flashrt_ros.models.linear import Linear
from flashrt_ros.models.siglip import VisionTower, as_prefix
from flashrt_ros.models.spec import PolicySpec
from flashrt_ros.models.tensors import EXPERT, LANGUAGE, PROJECTOR, VISION, stays_fp32

MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0
"""Shortest and longest period of the flow time's sine embedding, in units of flow time."""

CANONICAL = {'vision': VISION, 'projector': PROJECTOR, 'language': LANGUAGE, 'expert': EXPERT}
"""Attribute of `PiModel` -> prefix of its tensors' canonical names; the heads' names are canonical."""


class PiModel(nn.Module):
    """One pi0 or pi0.5 network. `load_model` fills it from canonical tensors."""

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__()
        self.spec = spec
        self.vision = VisionTower(spec.vision)
        self.projector = nn.ModuleDict({'linear': Linear(spec.vision.width, spec.language.width)})
        self.language = LanguageTower(spec.language, spec.vocab)
        self.expert = ExpertTower(spec.expert, spec.has_ada_rms)
        width = spec.expert.width
        self.action_in_proj = Linear(spec.action_dim, width)
        self.action_out_proj = Linear(width, spec.action_dim)
        if spec.has_ada_rms:
            self.time_mlp_in = Linear(width, width)
            self.time_mlp_out = Linear(width, width)
        else:
            self.state_proj = Linear(spec.action_dim, width)
            self.action_time_mlp_in = Linear(2 * width, width)
            self.action_time_mlp_out = Linear(width, width)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the towers; heads and norms are fp32 in any case."""
        return self.language.embed_tokens.weight.dtype

    def see(self, images: Tensor) -> Tensor:
        """Images fp32 [V, 3, 224, 224] in [-1, 1] -> features [1, V * 256, language width]."""
        return as_prefix(self.projector['linear'](self.vision(images)))

    def prefill(self, features: Tensor, tokens: Tensor, state: Tensor | None = None) -> list[Cache]:
        """Features of the present views, valid token ids int64 [1, N], padded state fp32 [1, A] (pi0 only).

        Returns the keys and values of every layer over P prefix positions (P + 1 with pi0's state token).
        """
        prefix = torch.cat([features, self.language.embed(tokens)], 1)
        caches = self.language(prefix)
        if not self.spec.has_state_token:
            return caches
        token = self.state_proj(state)[:, None].to(self.dtype)
        return self.expert(token, self._rotary(caches, 1), caches)[1]

    def denoise(
        self, noise: Tensor, prefix: list[Cache], table: Tensor, guide: Guide | None = None
    ) -> Tensor:
        """Noise fp32 [1, H, A] at t = 1 -> normalised actions fp32 [1, H, A] at t = 0.

        guide: see `guidance`; 'exact' needs prefix and table made outside of `torch.inference_mode`.
        """
        rotary = self._rotary(prefix, noise.shape[1])
        if guide is not None:
            return self._denoise_guided(noise, prefix, table, rotary, guide)
        actions = noise
        for condition in table:
            actions = actions - self.velocity(actions, condition, prefix, rotary) / len(table)
        return actions

    def _denoise_guided(
        self, noise: Tensor, prefix: list[Cache], table: Tensor, rotary: Rotary, guide: Guide
    ) -> Tensor:
        steps, horizon = len(table), noise.shape[1]
        actions = guide.freeze(noise)
        for step, condition in enumerate(table):
            if guide.method == 'prefix':
                rows = self._clean_rows(condition, guide.rows, horizon)
                velocity = self.velocity(actions, rows, prefix, rotary)
            else:
                field = partial(self.velocity, condition=condition, prefix=prefix, rotary=rotary)
                time = 1 - step / steps
                velocity = guided_velocity(field, actions, time, guide.gammas[step], guide)
            actions = guide.freeze(actions - velocity / steps)
        return actions

    def _clean_rows(self, condition: Tensor, rows: int, horizon: int) -> Tensor:
        """Modulation for each action token [2 * layers + 1, 3, H, W]: that of t = 0 for the first `rows`."""
        clean = self.conditions(torch.zeros(1, device=condition.device))[0]
        frozen = torch.arange(horizon, device=condition.device)[:, None] < rows
        return torch.where(frozen, clean[:, :, None], condition[:, :, None])

    def velocity(self, actions: Tensor, condition: Tensor, prefix: list[Cache], rotary: Rotary) -> Tensor:
        """The flow field at one time: [1, H, A] -> [1, H, A].

        condition: one row of `flow_table`; in pi0.5 also [2 * layers + 1, 3, H, W], one for each action.
        """
        tokens = self._embed(actions, condition).to(self.dtype)
        modulation = condition if self.spec.has_ada_rms else None
        return self.action_out_proj(self.expert(tokens, rotary, prefix, modulation)[0].float())

    def flow_table(self, steps: int) -> Tensor:
        """What depends on the flow time alone, fp32, one row for each of t = 1, 1 - 1/steps, ..., 1/steps."""
        times = [1 - step / steps for step in range(steps)]
        return self.conditions(torch.tensor(times, device=self.action_in_proj.weight.device))

    def conditions(self, times: Tensor) -> Tensor:
        """Flow times fp32 [N] -> pi0.5: all modulations [N, 2 * layers + 1, 3, W]; pi0: [N, W]."""
        width = self.spec.expert.width
        embedded = time_embedding(times, width)
        if self.spec.has_ada_rms:
            hidden = F.silu(self.time_mlp_in(embedded))
            return self.expert.modulation(F.silu(self.time_mlp_out(hidden)))
        mixer = self.action_time_mlp_in
        return F.linear(embedded, mixer.weight[:, width:], mixer.bias)

    def _embed(self, actions: Tensor, condition: Tensor) -> Tensor:
        """Noisy actions -> expert tokens fp32 [1, H, W].

        pi0 mixes time in with a layer over [action, time]. Its time half is the condition, so only the action
        half of the matrix is multiplied here.
        """
        tokens = self.action_in_proj(actions)
        if self.spec.has_ada_rms:
            return tokens
        mixed = F.linear(tokens, self.action_time_mlp_in.weight[:, : tokens.shape[-1]]) + condition
        return self.action_time_mlp_out(F.silu(mixed))

    def _rotary(self, prefix: list[Cache], count: int) -> Rotary:
        """Rotations for `count` tokens that follow the prefix."""
        keys = prefix[0][0]
        positions = torch.arange(keys.shape[2], keys.shape[2] + count, device=keys.device)
        return rotary_table(positions, self.spec.expert.head_dim)


def time_embedding(times: Tensor, width: int) -> Tensor:
    """Flow times fp32 [N] -> [sin, cos] over width / 2 periods, fp32 [N, width]; computed in fp64."""
    fraction = torch.linspace(0, 1, width // 2, dtype=torch.float64, device=times.device)
    periods = MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** fraction
    angles = times[:, None].double() * (2 * math.pi / periods)
    return torch.cat([angles.sin(), angles.cos()], -1).float()


def load_model(spec: PolicySpec, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> PiModel:
    """Build the network from canonical tensors, one at a time, on the device that they come on.

    dtype: fp32 everywhere, or bf16 with the parts that openpi keeps in fp32 (`tensors.stays_fp32`).
    Tensors that inference does not touch (last language layer, final norm) are never read.
    """
    with torch.device('meta'):
        model = PiModel(spec)
    weights = {}
    for name in model.state_dict():
        canonical = canonical_name(name)
        kept = torch.float32 if stays_fp32(canonical) else dtype
        weights[name] = tensors[canonical].to(kept)
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def canonical_name(parameter: str) -> str:
    """Name of a `PiModel` parameter -> canonical name of its tensor."""
    part, _, rest = parameter.partition('.')
    return CANONICAL[part] + rest if part in CANONICAL else parameter
