"""Mamba and Mamba-2 for classification, their weights named as in `transformers`.

Mamba: Gu & Dao, 2023, https://arxiv.org/abs/2312.00752; the mixer of Mamba-2 is in mamba2.py. Every
projection is called as a module, so that adapters put on it take part; padding is on the right and
takes no part. Shapes: B batch, L length, D d_model, E d_inner, N d_state, R dt_rank.
"""

from __future__ import annotations

import logging
import math
from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers import Mamba2Config, MambaConfig
from transformers.modeling_outputs import CausalLMOutput, SequenceClassifierOutput

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.mamba2 import Mamba2Mixer
from kinopoisk_ft.models.norms import RMSNorm
from kinopoisk_ft.models.pooling import check_pooling, pool
from kinopoisk_ft.ops.backends import disable_autocast, get_matmul_dtype, validate_backend
from kinopoisk_ft.ops.conv.op import causal_conv1d, match_conv_backend
from kinopoisk_ft.ops.scan.op import BACKENDS, selective_scan
from kinopoisk_ft.ops.ssd.op import BACKENDS as SSD_BACKENDS

AnyConfig: TypeAlias = MambaConfig | Mamba2Config

log = logging.getLogger(__name__)


class MambaMixer(nn.Module):
    """Projection, causal convolution, selective scan with gate, projection."""

    def __init__(self, config: MambaConfig, scan_backend: str) -> None:
        super().__init__()
        inner, states, rank = config.intermediate_size, config.state_size, config.time_step_rank
        self.sizes = (int(rank), states, states)
        self.scan_backend = scan_backend
        self.conv_backend = match_conv_backend(scan_backend)
        self.in_proj = nn.Linear(config.hidden_size, 2 * inner, bias=config.use_bias)
        self.conv1d = nn.Conv1d(
            inner, inner, config.conv_kernel, groups=inner, bias=config.use_conv_bias
        )
        self.x_proj = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(int(rank), inner)
        self.A_log = nn.Parameter(torch.empty(inner, states))
        self.D = nn.Parameter(torch.empty(inner))
        self.out_proj = nn.Linear(inner, config.hidden_size, bias=config.use_bias)
        self.reset_parameters(config)

    def forward(self, hidden: Tensor, lengths: Tensor | None) -> Tensor:
        """Mix hidden (B, L, D) along time; zeros (or the bias) from `lengths` (B,) on."""
        u, z = self.in_proj(hidden).chunk(2, dim=-1)  # (B, L, E) each
        kernel = self.conv1d.weight.squeeze(1)
        u = causal_conv1d(u, kernel, self.conv1d.bias, lengths, self.conv_backend)
        dt, B, C = self.x_proj(u).split(self.sizes, dim=-1)  # (B, L, R), (B, L, N), (B, L, N)
        with disable_autocast(dt.device):  # in bf16 a step would be wrong by a hundredth
            delta = self.dt_proj(dt.float())  # (B, L, E)
        A = -torch.exp(self.A_log.float())
        y = selective_scan(
            u, delta, A, B, C, self.D.float(), z,
            delta_softplus=True, lengths=lengths, backend=self.scan_backend,
        )  # fmt: skip
        return self.out_proj(y)

    @torch.no_grad()
    def reset_parameters(self, config: MambaConfig) -> None:
        """Initialise as `transformers` does."""
        rows = torch.arange(1, config.state_size + 1, dtype=torch.float32, device=self.A_log.device)
        self.A_log.copy_(torch.log(rows).expand_as(self.A_log))
        nn.init.ones_(self.D)
        bound = int(config.time_step_rank) ** -0.5 * config.time_step_scale
        if config.time_step_init_scheme == "constant":
            nn.init.constant_(self.dt_proj.weight, bound)
        else:
            nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        # so that softplus(bias) is log-uniform between time_step_min and time_step_max
        low, high = math.log(config.time_step_min), math.log(config.time_step_max)
        dt = torch.empty_like(self.dt_proj.bias).uniform_(low, high).exp()
        dt = dt.clamp(min=config.time_step_floor)
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        nn.init.kaiming_uniform_(self.conv1d.weight, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.out_proj.weight, a=math.sqrt(5))
        if config.rescale_prenorm_residual:
            self.out_proj.weight /= math.sqrt(config.num_hidden_layers)
        for layer in (self.in_proj, self.x_proj):
            nn.init.normal_(layer.weight, std=config.initializer_range)
        for bias in (self.in_proj.bias, self.out_proj.bias, self.conv1d.bias):
            if bias is not None:
                nn.init.zeros_(bias)


class MambaBlock(nn.Module):
    """Pre-norm residual block; the residual stream is float32 under autocast too."""

    def __init__(self, config: AnyConfig, scan_backend: str) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        mixer = Mamba2Mixer if isinstance(config, Mamba2Config) else MambaMixer
        self.mixer = mixer(config, scan_backend)

    def forward(self, hidden: Tensor, lengths: Tensor | None) -> Tensor:
        # Written at once in what the projection reads, which a cast of its own would have to make.
        normalised = self.norm(hidden, get_matmul_dtype(hidden))
        return hidden + self.mixer(normalised, lengths).to(hidden.dtype)


class MambaBackbone(nn.Module):
    """Embeddings, blocks and final norm; loads the weights of `transformers` by name.

    The config says which: MambaConfig or Mamba2Config.
    """

    def __init__(self, config: AnyConfig, scan_backend: str = "auto") -> None:
        super().__init__()
        if config.hidden_act not in ("silu", "swish"):
            raise UserError(f"Mamba with hidden_act '{config.hidden_act}': only silu is supported")
        if isinstance(config, Mamba2Config):
            validate_backend("ssd", scan_backend, SSD_BACKENDS)
        else:
            validate_backend("selective_scan", scan_backend, BACKENDS)
        # not `config`: PEFT reads that name and refuses to adapt some layers of a "mamba"
        self.mamba_config = config
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        blocks = (MambaBlock(config, scan_backend) for _ in range(config.num_hidden_layers))
        self.layers = nn.ModuleList(blocks)
        self.norm_f = RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        nn.init.normal_(self.embeddings.weight, std=config.initializer_range)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the hidden states (B, L, D) after the final norm.

        Args:
            input_ids: (B, L) integers. attention_mask: (B, L), ones before zeros in each row.

        Raises:
            ValueError: padding on the left or between tokens.
        """
        lengths = None if attention_mask is None else right_padded_lengths(attention_mask)
        hidden = self.embeddings(input_ids)
        for block in self.layers:
            hidden = block(hidden, lengths)
        return self.norm_f(hidden)


def right_padded_lengths(attention_mask: Tensor) -> Tensor:
    """Return the number of real tokens of each row, (B,).

    Raises:
        ValueError: padding on the left or between tokens (on a GPU: a device-side assertion, since
            reading the mask back would stall the queue).
    """
    real = attention_mask != 0
    message = "Mamba reads from left to right: pad on the right only (padding_side='right')"
    if not torch.compiler.is_compiling() and not real.is_meta:
        ordered = (real[:, :-1] | ~real[:, 1:]).all()
        if real.is_cuda:
            torch._assert_async(ordered, message)
        elif not ordered:
            raise ValueError(message)
    return real.sum(1)


class MambaClassifier(nn.Module):
    """A linear head over the pooled states of the backbone.

    With pooling "last_position" the pads are read as tokens: it takes the last column's state, as
    if there were no mask.
    """

    def __init__(
        self,
        config: AnyConfig,
        num_labels: int,
        pooling: str = "last",
        scan_backend: str = "auto",
    ) -> None:
        super().__init__()
        self.mamba_config, self.pooling = config, check_pooling(pooling)
        if pooling == "last_position":
            log.warning(
                "model.pooling=last_position reads pads as tokens: a review's logits depend on the "
                "longest of its batch; the study did so, last takes the last real token"
            )
        self.backbone = MambaBackbone(config, scan_backend)
        self.classifier = nn.Linear(config.hidden_size, num_labels)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Return logits (B, num_labels) in float32; labels are the caller's and ignored here."""
        mask = None if self.pooling == "last_position" else attention_mask
        pooled = pool(self.backbone(input_ids, mask), attention_mask, self.pooling)
        return SequenceClassifierOutput(logits=self.classifier(pooled).float())


class MambaLM(nn.Module):
    """Next-token prediction with the embeddings as head, for pretraining from scratch."""

    def __init__(self, config: AnyConfig, scan_backend: str = "auto") -> None:
        super().__init__()
        self.mamba_config = config
        self.backbone = MambaBackbone(config, scan_backend)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head.weight = self.backbone.embeddings.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> CausalLMOutput:
        """Return logits (B, L, vocab) in float32."""
        hidden = self.backbone(input_ids, attention_mask)
        return CausalLMOutput(logits=self.lm_head(hidden).float())
