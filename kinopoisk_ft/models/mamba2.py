"""Define the mixer of Mamba-2, and the RMS norm and initialization for Mamba and Mamba-2.

Mamba-2: Dao & Gu, 2024, https://arxiv.org/abs/2405.21060. RMS norm: Zhang & Sennrich, 2019,
https://arxiv.org/abs/1910.07467. The weights are named as in `transformers`. Shapes: B batch,
L length, D d_model, E d_inner, H heads, P head_dim, G groups, N d_state.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Mamba2Config

from kinopoisk_ft.ops.conv.op import causal_conv1d, match_conv_backend
from kinopoisk_ft.ops.rms_norm.op import rms_norm
from kinopoisk_ft.ops.ssd.op import ssd


class RMSNorm(nn.RMSNorm):
    """RMS normalization of the last dimension, computed by `rms_norm` of `kinopoisk_ft.ops`."""

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Normalize x (..., width); the output has the dtype of x unless `dtype` is given."""
        return rms_norm(x, self.weight, self.eps, dtype=dtype)


class GatedRMSNorm(nn.Module):
    """RMS normalization of y * silu(z), separately in each channel group."""

    def __init__(self, size: int, groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.groups, self.eps = groups, eps

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate and normalize y (B, L, E) in float32; the gate z has the same shape."""
        # The shape is (B, L, G, E / G).
        gated = (y.float() * nn.functional.silu(z.float())).unflatten(-1, (self.groups, -1))
        return self.weight * rms_norm(gated, eps=self.eps).flatten(-2)


class Mamba2Mixer(nn.Module):
    """The mixer of Mamba-2, with one scalar decay per head."""

    def __init__(self, config: Mamba2Config, scan_backend: str) -> None:
        super().__init__()
        heads, groups, states = config.num_heads, config.n_groups, config.state_size
        inner = heads * config.head_dim
        self.scan_backend = scan_backend
        self.conv_backend = match_conv_backend(scan_backend)
        # These are the smallest and the largest step size dt, after softplus.
        self.limit: tuple[float, float] = tuple(config.time_step_limit)
        self.head_dim, self.groups = config.head_dim, groups
        # These are the widths of x, B and C. One convolution processes all of them.
        self.parts = (inner, groups * states, groups * states)
        convolved = sum(self.parts)
        # One product computes the gate z, the input of the convolution, and dt.
        self.in_proj = nn.Linear(
            config.hidden_size, inner + convolved + heads, bias=config.use_bias
        )
        self.conv1d = nn.Conv1d(
            convolved, convolved, config.conv_kernel, groups=convolved, bias=config.use_conv_bias
        )
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.norm = GatedRMSNorm(inner, groups, config.layer_norm_epsilon)
        self.out_proj = nn.Linear(inner, config.hidden_size, bias=config.use_bias)
        self.reset_parameters(config)

    def forward(self, hidden: Tensor, lengths: Tensor | None) -> Tensor:
        """Mix hidden states (B, L, D) along the sequence; `lengths` (B,) counts the real tokens."""
        inner, convolved, heads = self.parts[0], sum(self.parts), len(self.A_log)
        # The gate z has the shape (B, L, E), xBC has (B, L, E + 2GN), and dt has (B, L, H).
        z, xBC, dt = self.in_proj(hidden).split((inner, convolved, heads), dim=-1)
        # nn.Conv1d has a weight (E + 2GN, 1, width), and the operator expects (E + 2GN, width).
        kernel = self.conv1d.weight.squeeze(1)
        xBC = causal_conv1d(xBC, kernel, self.conv1d.bias, lengths, self.conv_backend)
        # The scan reads x as (B, L, H, P), and B and C as (B, L, G, N).
        x, B, C = xBC.split(self.parts, dim=-1)
        y = ssd(
            x.unflatten(-1, (heads, self.head_dim)), dt, -torch.exp(self.A_log.float()),
            B.unflatten(-1, (self.groups, -1)), C.unflatten(-1, (self.groups, -1)),
            self.D.float(), self.dt_bias.float(), dt_softplus=True, dt_limit=self.limit,
            lengths=lengths, backend=self.scan_backend,
        )  # fmt: skip
        # The heads are joined: y (B, L, H, P) becomes (B, L, E).
        return self.out_proj(self.norm(y.flatten(-2), z))

    @torch.no_grad()
    def reset_parameters(self, config: Mamba2Config) -> None:
        """Initialize the weights in place, as `transformers` does."""
        count = len(self.A_log)
        # A = -(1, 2, …, H), one decay per head.
        numbers = torch.arange(1, count + 1, dtype=torch.float32, device=self.A_log.device)
        self.A_log.copy_(torch.log(numbers))
        initialize_mixer(self, self.dt_bias, config)


def initialize_mixer(mixer: Any, dt_bias: Tensor, config: Any) -> None:
    """Initialize in place the weights that the mixers of Mamba and Mamba-2 have in common.

    Args:
        dt_bias: the bias of the step size dt, which is a parameter of the mixer.
    """
    nn.init.ones_(mixer.D)
    # softplus(bias) is log-uniform between time_step_min and time_step_max.
    low, high = math.log(config.time_step_min), math.log(config.time_step_max)
    dt = torch.empty_like(dt_bias).uniform_(low, high).exp()
    # The inverse of softplus approaches minus infinity as dt approaches 0.
    dt = dt.clamp(min=config.time_step_floor)
    # This is the inverse of softplus.
    dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
    # With a = sqrt(5), this is the initialization of weights in nn.Conv1d and nn.Linear.
    nn.init.kaiming_uniform_(mixer.conv1d.weight, a=math.sqrt(5))
    nn.init.kaiming_uniform_(mixer.out_proj.weight, a=math.sqrt(5))
    # GPT-2's initialization: the variance of the residual stream does not grow with depth.
    if config.rescale_prenorm_residual:
        mixer.out_proj.weight /= math.sqrt(config.num_hidden_layers)
    nn.init.normal_(mixer.in_proj.weight, std=config.initializer_range)
    for bias in (mixer.in_proj.bias, mixer.out_proj.bias, mixer.conv1d.bias):
        if bias is not None:
            nn.init.zeros_(bias)
