"""Run an exported network with onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from kinopoisk_ft.errors import UserError, install_extra
from kinopoisk_ft.models.network import Layout

ONNX = "model.onnx"
# The names of the graph's inputs, in this order, and of its output.
INPUTS = ("input_ids", "attention_mask")
OUTPUT = "logits"
INSTALL = install_extra("onnx")
# Log level of onnxruntime. Its warnings about exported files are harmless.
ERRORS_ONLY = 3


class OnnxModel(nn.Module):
    """A classifier that onnxruntime runs on the CPU, with as many threads as PyTorch.

    Args:
        file: an exported ONNX file with the inputs INPUTS and the output OUTPUT.

    Raises:
        UserError: onnxruntime is not installed.
        RuntimeError: onnxruntime cannot read the file.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                f"the package onnxruntime, which runs {ONNX}, is not installed", fix=INSTALL
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = ERRORS_ONLY
        try:
            self.session = onnxruntime.InferenceSession(
                file, options, providers=["CPUExecutionProvider"]
            )
        # The exceptions of onnxruntime have no other base class in common.
        except Exception as error:
            raise RuntimeError(error) from error

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        """Compute logits (batch, classes), fp32, from ids and mask on the CPU.

        Ids and mask are (batch, length), or (batch, windows, length) for a model with windows.
        """
        inputs = dict(zip(INPUTS, (input_ids.numpy(), attention_mask.numpy()), strict=True))
        return SequenceClassifierOutput(
            logits=torch.from_numpy(self.session.run([OUTPUT], inputs)[0])
        )


class OnnxLayout(Layout):
    """Loads models that `kinopoisk-ft export` wrote. They cannot be trained or saved again."""

    name = "onnx"

    def load(self, source: str, card: Any, tokenizer: Any, trained: bool) -> nn.Module:
        """Load the exported model."""
        return OnnxModel(Path(source) / ONNX)
