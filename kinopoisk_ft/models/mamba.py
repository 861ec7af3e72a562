"""Define Mamba and Mamba-2 for classification, with the weight names of `transformers`.

Mamba: Gu & Dao, 2023, https://arxiv.org/abs/2312.00752. Falcon Mamba adds norms without weights
after x_proj: Zuo et al., 2024, https://arxiv.org/abs/2410.05355. The mixer of Mamba-2 is in
mamba2.py. Every projection is a module that adapters can wrap. Padding must be on the right.
Shapes: B batch, L length, D d_model, E d_inner, N d_state, R dt_rank.
"""

from __future__ import annotations

import logging
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import FalconMambaConfig, Mamba2Config, MambaConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutput, SequenceClassifierOutput

from kinopoisk_ft.errors import UserError, check_name
from kinopoisk_ft.models.mamba2 import Mamba2Mixer, RMSNorm, initialize_mixer
from kinopoisk_ft.models.pooling import POOLINGS, WindowPooling, flatten_windows, pool
from kinopoisk_ft.ops.backends import disable_autocast, get_matmul_dtype
from kinopoisk_ft.ops.conv.op import causal_conv1d, match_conv_backend
from kinopoisk_ft.ops.rms_norm.op import rms_norm
from kinopoisk_ft.ops.scan.op import BACKENDS, selective_scan
from kinopoisk_ft.ops.ssd.op import BACKENDS as SSD_BACKENDS

AnyConfig: TypeAlias = MambaConfig | FalconMambaConfig | Mamba2Config

log = logging.getLogger(__name__)


class MambaMixer(nn.Module):
    """The mixer of Mamba, with a causal convolution and a gated selective scan."""

    def __init__(self, config: MambaConfig | FalconMambaConfig, scan_backend: str) -> None:
        super().__init__()
        inner, states, rank = config.intermediate_size, config.state_size, config.time_step_rank
        # These are the widths of dt, B and C in the output of `x_proj`.
        self.sizes = (int(rank), states, states)
        self.scan_backend = scan_backend
        self.conv_backend = match_conv_backend(scan_backend)
        # Only the configs of Falcon Mamba have this attribute.
        self.norm_eps = getattr(config, "mixer_rms_eps", None)
        # One product computes both u and the gate z.
        self.in_proj = nn.Linear(config.hidden_size, 2 * inner, bias=config.use_bias)
        self.conv1d = nn.Conv1d(
            inner, inner, config.conv_kernel, groups=inner, bias=config.use_conv_bias
        )
        self.x_proj = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(int(rank), inner)
        # A is stored as log(-A), so that it stays negative in training.
        self.A_log = nn.Parameter(torch.empty(inner, states))
        self.D = nn.Parameter(torch.empty(inner))
        self.out_proj = nn.Linear(inner, config.hidden_size, bias=config.use_bias)
        self.reset_parameters(config)

    def forward(self, hidden: Tensor, lengths: Tensor | None) -> Tensor:
        """Mix hidden states (B, L, D) along the sequence.

        Args:
            lengths: number of real tokens in each row, (B,); None if there is no padding.

        Returns:
            Hidden states (B, L, D). At padding positions, they equal the bias of `out_proj`, or 0
            if there is no bias.
        """
        # u and the gate z have the shape (B, L, E).
        u, z = self.in_proj(hidden).chunk(2, dim=-1)
        # nn.Conv1d has a weight (E, 1, width), and the operator expects (E, width).
        kernel = self.conv1d.weight.squeeze(1)
        u = causal_conv1d(u, kernel, self.conv1d.bias, lengths, self.conv_backend)
        # dt has the shape (B, L, R), B and C have (B, L, N), and delta has (B, L, E).
        dt, B, C = self.x_proj(u).split(self.sizes, dim=-1)
        if self.norm_eps is not None:
            dt, B, C = (rms_norm(x.float(), None, self.norm_eps, dtype=x.dtype) for x in (dt, B, C))
        # delta is near -5, where bf16 rounds to multiples of 0.03. This would change the step size,
        # softplus(delta), by 1 to 2 %.
        with disable_autocast(dt.device):
            delta = self.dt_proj(dt.float())
        # A has the shape (E, N). It is negative, so the state decays: exp(dt A) is less than 1.
        A = -torch.exp(self.A_log.float())
        y = selective_scan(
            u, delta, A, B, C, self.D.float(), z, lengths=lengths, backend=self.scan_backend
        )
        return self.out_proj(y)

    @torch.no_grad()
    def reset_parameters(self, config: MambaConfig | FalconMambaConfig) -> None:
        """Initialize the weights in place, as `transformers` does."""
        # A = -(1, 2, …, N) in each channel: the S4D-Real initialization (section 3.6 of the paper).
        rows = torch.arange(1, config.state_size + 1, dtype=torch.float32, device=self.A_log.device)
        self.A_log.copy_(torch.log(rows).expand_as(self.A_log))
        # The bound and both schemes come from mamba_simple.py, the code of the authors.
        bound = int(config.time_step_rank) ** -0.5 * config.time_step_scale
        if config.time_step_init_scheme == "constant":
            nn.init.constant_(self.dt_proj.weight, bound)
        else:
            nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        initialize_mixer(self, self.dt_proj.bias, config)
        nn.init.normal_(self.x_proj.weight, std=config.initializer_range)


class MambaBlock(GradientCheckpointingLayer):
    """A mixer with a pre-norm and a residual connection in float32."""

    def __init__(self, config: AnyConfig, scan_backend: str) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        mixer = Mamba2Mixer if isinstance(config, Mamba2Config) else MambaMixer
        self.mixer = mixer(config, scan_backend)

    def forward(self, hidden: Tensor, lengths: Tensor | None) -> Tensor:
        # The norm returns the dtype of the next matrix product, which saves a separate cast.
        normalised = self.norm(hidden, get_matmul_dtype(hidden))
        # Under autocast, the mixer returns half precision, but the residual stream stays float32.
        return hidden + self.mixer(normalised, lengths).to(hidden.dtype)


class MambaBackbone(nn.Module):
    """A network of token embeddings, Mamba blocks and a final norm.

    Args:
        config: a Mamba, Falcon Mamba or Mamba-2 config; its class determines the mixer.
        scan_backend: implementation of the scan; "auto" selects one for the device.

    Raises:
        UserError: config.hidden_act or scan_backend is not supported.
    """

    def __init__(self, config: AnyConfig, scan_backend: str = "auto") -> None:
        super().__init__()
        if config.hidden_act not in ("silu", "swish"):
            raise UserError(
                f"hidden_act '{config.hidden_act}' is not supported for Mamba",
                where="model.name",
                fix="choose a checkpoint with hidden_act 'silu'",
            )
        backends = SSD_BACKENDS if isinstance(config, Mamba2Config) else BACKENDS
        check_name(scan_backend, backends, "model.scan_backend")
        # The attribute is not named `config`, because PEFT would read its model_type "mamba" and
        # then refuse to adapt some layers.
        self.mamba_config = config
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        blocks = (MambaBlock(config, scan_backend) for _ in range(config.num_hidden_layers))
        self.layers = nn.ModuleList(blocks)
        self.norm_f = RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        nn.init.normal_(self.embeddings.weight, std=config.initializer_range)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Compute the hidden states (B, L, D) after the final norm.

        Args:
            input_ids: token ids (B, L).
            attention_mask: (B, L), with ones before zeros in each row; None if there is no padding.
        """
        lengths = None if attention_mask is None else right_padded_lengths(attention_mask)
        # The hidden states (B, L, D) stay float32, because autocast does not affect embeddings.
        hidden = self.embeddings(input_ids)
        for block in self.layers:
            hidden = block(hidden, lengths)
        return self.norm_f(hidden)


def right_padded_lengths(attention_mask: Tensor) -> Tensor:
    """Return the number of real tokens in each row, (B,).

    Raises:
        ValueError: there is padding on the left or between tokens. On a GPU, a device-side
            assertion fails instead, because an exception would require waiting for the GPU.
    """
    real = attention_mask != 0
    message = "Mamba needs padding on the right: set padding_side='right' in the tokenizer"
    # Branching on a value would break the graph of torch.compile, and meta tensors have no values.
    if not torch.compiler.is_compiling() and not real.is_meta:
        # No real token may follow padding.
        ordered = (real[:, :-1] | ~real[:, 1:]).all()
        if real.is_cuda:
            torch._assert_async(ordered, message)
        elif not ordered:
            raise ValueError(message)
    return real.sum(1)


class MambaClassifier(nn.Module):
    """A text classifier with a Mamba backbone, pooling and a linear head.

    Args:
        pooling: see `pool`. With "last_position", the backbone reads padding as ordinary tokens.
        window_pooling: see `WindowPooling`; None if reviews have no windows.

    Raises:
        UserError: an option is not valid, or windows are combined with pooling="last_position".
    """

    def __init__(
        self,
        config: AnyConfig,
        num_labels: int,
        pooling: str = "last",
        scan_backend: str = "auto",
        window_pooling: str | None = None,
    ) -> None:
        # The subclass is also a PreTrainedModel, whose initializer is called with a config.
        nn.Module.__init__(self)
        check_name(pooling, POOLINGS, "model.pooling")
        self.mamba_config, self.pooling = config, pooling
        if pooling == "last_position" and window_pooling is not None:
            raise UserError(
                "model.pooling=last_position does not work with windows: it would pool the last "
                "position of each window, which is padding in the last window of a review",
                where="model.pooling",
                fix="set model.pooling to last or mean, or set data.truncation to head, tail or "
                "head_tail",
            )
        if pooling == "last_position":
            log.warning(
                "model.pooling=last_position reproduces the original study, but reads padding as "
                "tokens, so the logits of a review depend on the longest review in its batch; "
                "use model.pooling=last to pool the last real token"
            )
        self.backbone = MambaBackbone(config, scan_backend)
        self.window_pooling = (
            None if window_pooling is None else WindowPooling(window_pooling, config.hidden_size)
        )
        self.classifier = nn.Linear(config.hidden_size, num_labels)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        """Compute logits (B, num_labels) in float32.

        Ids and mask have the shape (B, L). With window pooling, they may also have the shape
        (B, windows, L). Other arguments, such as a tokenizer's token_type_ids, are ignored.
        """
        ids, mask = flatten_windows(input_ids, attention_mask)
        # Without a mask, the backbone reads padding as tokens, as in the original study.
        hidden = self.backbone(ids, None if self.pooling == "last_position" else mask)
        vectors = pool(hidden, mask, self.pooling)
        if self.window_pooling is not None:
            vectors = self.window_pooling(vectors, attention_mask)
        return SequenceClassifierOutput(logits=self.classifier(vectors).float())


class MambaLM(nn.Module):
    """A language model for pretraining; the head shares the weight of the embeddings."""

    def __init__(self, config: AnyConfig, scan_backend: str = "auto") -> None:
        super().__init__()
        self.mamba_config = config
        self.backbone = MambaBackbone(config, scan_backend)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head.weight = self.backbone.embeddings.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> CausalLMOutput:
        """Compute logits (B, L, vocabulary) in float32."""
        hidden = self.backbone(input_ids, attention_mask)
        return CausalLMOutput(logits=self.lm_head(hidden).float())
