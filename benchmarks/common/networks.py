"""Build equal Mamba classifiers of this project, mambapy and transformers, and a training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MambaConfig, MambaModel

from common.scans import MAMBAPY, OURS, TRANSFORMERS
from kinopoisk_ft.models.mamba import MambaClassifier
from kinopoisk_ft.training.precision import Precision

LABELS, BATCH = 2, 8
CPU = torch.device("cpu")
FP32 = Precision("fp32", CPU)
SMALL = MambaConfig(vocab_size=4096, hidden_size=256, num_hidden_layers=4)


class Classifier(nn.Module):
    """A backbone with a linear head on the last position; parameter names are as in ours."""

    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(width, LABELS)

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.backbone(input_ids)[:, -1])
        return logits


class MambapyBackbone(nn.Module):
    """mambapy's blocks, with the embeddings and the final norm that it does not provide."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        from mambapy import mamba

        sizes = mamba.MambaConfig(
            config.hidden_size, config.num_hidden_layers, d_state=config.state_size
        )
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = mamba.Mamba(sizes).layers
        self.norm_f = nn.RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.embeddings(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm_f(hidden)


class TransformersBackbone(MambaModel):
    """The Mamba of transformers, which returns only the last hidden states."""

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = super().forward(input_ids, use_cache=False).last_hidden_state
        return hidden


def networks(config: MambaConfig) -> dict[str, nn.Module]:
    """Return the classifier of each installed implementation, all with the same weights.

    Raises:
        RuntimeError: if the parameters differ.
        AssertionError: if the logits differ.
    """
    torch.manual_seed(0)
    ours = MambaClassifier(config, LABELS)
    builders: dict[str, Callable[[MambaConfig], nn.Module]] = {
        MAMBAPY: MambapyBackbone, TRANSFORMERS: TransformersBackbone,
    }  # fmt: skip
    found: dict[str, nn.Module] = {OURS: ours}
    input_ids = draw_batch(config, 24)[0]
    for name, build in builders.items():
        try:
            other = Classifier(build(config), config.hidden_size)
        except ImportError:
            continue
        other.load_state_dict(ours.state_dict())
        torch.testing.assert_close(other(input_ids), ours(input_ids).logits, rtol=1e-3, atol=1e-3)
        found[name] = other
    return found


def draw_batch(config: MambaConfig, length: int) -> tuple[Tensor, Tensor]:
    """Return random token ids (BATCH, length) and labels (BATCH,)."""
    ids = torch.randint(config.vocab_size, (BATCH, length))
    return ids, torch.randint(LABELS, (BATCH,))


def training_step(
    model: nn.Module, batch: tuple[Tensor, Tensor], precision: Precision = FP32
) -> Callable[[], None]:
    """Return a step: forward, backward and fused AdamW, as in the project's training."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    input_ids, labels = batch

    def step() -> None:
        with precision.autocast():
            found: Any = model(input_ids)
        logits = getattr(found, "logits", found)
        nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def parameters(model: nn.Module) -> int:
    return sum(x.numel() for x in model.parameters())
