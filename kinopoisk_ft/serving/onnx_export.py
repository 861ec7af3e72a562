"""Export a network to ONNX, and check that onnxruntime computes the same logits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from kinopoisk_ft.console import silence_logs
from kinopoisk_ft.data.demo import read_example_texts
from kinopoisk_ft.errors import UserError, import_extra
from kinopoisk_ft.files import check_writable, write_folder_atomically
from kinopoisk_ft.models.card import CARD, FORMAT, MODEL_FILES, Card, read_card
from kinopoisk_ft.models.mamba_recipe import MambaLayout
from kinopoisk_ft.models.onnx_model import INPUTS, ONNX, OUTPUT, OnnxLayout
from kinopoisk_ft.models.saving import load_network
from kinopoisk_ft.models.tfidf import load_estimator
from kinopoisk_ft.serving.predictor import Predictor

# Largest allowed difference of the logits, relative to the largest logit, or to 0.1 if all logits
# are smaller. Rounding in fp32 causes differences of about 1e-6.
TOLERANCE = 1e-4
# The same for an int8 model. Logits of a trained encoder differed by up to 0.37 times the largest
# logit, and those of a trained Mamba by up to 0.08 times (benchmarks/results/onnx.md).
INT8_TOLERANCE = 0.5
# Matrix products and embeddings hold almost all weights. Other operators need fp32: a convolution
# of Mamba has only four weights per channel.
QUANTIZED = ["MatMul", "Gemm", "Gather"]
# Number of tokens in the traced example. The graph of an example with a single chunk of Mamba-2 (64
# tokens) would work only for a single chunk.
EXAMPLE_LENGTH = 130
# Number of bundled reviews on which both models are compared.
CHECKED_REVIEWS = 24


@dataclass(frozen=True)
class Check:
    """The differences between an exported model and the original model.

    Args:
        texts: number of texts.
        difference: largest absolute difference between corresponding logits of both models.
        largest: largest absolute logit of the original.
        same_labels: number of texts for which both models predict the same class.
    """

    texts: int
    difference: float
    largest: float
    same_labels: int


class _OnlyLogits(nn.Module):
    # A graph returns tensors, not the output object of the model.
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.module(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def export_onnx(
    folder: Path, output: Path, int8: bool = False, keep_adapter: bool = False
) -> Check:
    """Export the network of a model folder.

    The output folder contains the model, the tokenizer, and the card with preprocessing and class
    names. The model accepts any batch size and length. `Predictor` can load the folder. Nothing is
    written if the logits of the exported model are wrong.

    Args:
        int8: whether to quantize the weights to 8 bits. Activations are quantized at run time.
        keep_adapter: whether the adapter stays a separate part of the graph; False merges it.

    Raises:
        UserError: a package is missing, the model cannot be exported, or the logits differ.
    """
    check_packages()
    # A path such as "." has no name, from which the name of a temporary file could be made.
    output = output.resolve()
    card = read_card(folder)
    _check_request(folder, card, output, keep_adapter)
    # Test a file next to the output folder, which is created only after a successful export.
    check_writable(output.with_name(f"{output.name}.new"), "--output")
    original = Predictor(folder, "cpu")
    # The export changes this second copy of the network; `original` is needed for the comparison.
    module, tokenizer, _ = load_network(folder)
    # Base weights may be stored in bf16, and merging would round the adapter to bf16.
    module.float()
    if card.is_peft and not keep_adapter:
        module = _merge_adapter(module, folder)
    with write_folder_atomically(output, CARD, MODEL_FILES) as part:
        _write_graph(module, card, part / ONNX, folder)
        tokenizer.save_pretrained(part)
        # The graph contains all weights in fp32, so the options that load other weights are reset.
        exported = replace(
            card, kind="onnx", is_peft=False, dtype="fp32", recipe=None, format=FORMAT
        )
        exported.write(part)
        # Always check the fp32 graph, because the tolerance for int8 is too wide to show errors.
        check = _compare(original, part, TOLERANCE)
        if int8:
            _quantize(part / ONNX)
            check = _compare(original, part, INT8_TOLERANCE)
    return check


def check_packages() -> None:
    """Raise UserError if a package that the export needs is not installed."""
    for package in ("onnx", "onnxruntime", "onnxscript"):
        import_extra(package, "onnx")


def _check_request(folder: Path, card: Card, output: Path, keep_adapter: bool) -> None:
    if card.kind == OnnxLayout.name:
        raise UserError(
            "this folder contains an exported model, which cannot be exported again",
            where=str(folder),
            fix="export the run or the model folder from which it was exported",
        )
    if load_estimator(folder, card) is not None:
        raise UserError(
            f"a '{card.kind}' model cannot be exported: standard ONNX has no operator that finds "
            "the words of a Unicode text",
            where=str(folder),
            fix="use it with kinopoisk-ft predict, or export a network",
        )
    if keep_adapter and not card.is_peft:
        raise UserError(
            "the model has no adapter that could be kept",
            where=str(folder),
            fix="leave out --keep-adapter",
        )
    # An earlier export may be replaced, but other files may not.
    taken = output.is_file() or (output.is_dir() and any(output.iterdir()))
    if taken and not ((output / CARD).is_file() and read_card(output).kind == OnnxLayout.name):
        raise UserError(
            "the output is or contains a file that does not belong to an exported model",
            where=str(output),
            fix="set --output to a new folder",
        )


def _merge_adapter(module: Any, folder: Path) -> nn.Module:
    try:
        # With `safe_merge`, PEFT raises ValueError if merged weights are not finite.
        merged: nn.Module = module.merge_and_unload(safe_merge=True)
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise UserError(
            f"PEFT cannot merge this adapter into its base model: {error}",
            where=str(folder),
            fix="export it with --keep-adapter",
        ) from error
    return merged


def _write_graph(module: nn.Module, card: Card, file: Path, folder: Path) -> None:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    reads_windows = card.window_pooling is not None
    names = ("batch", "windows", "length") if reads_windows else ("batch", "length")
    # Encoders may have no more positions than max_length; Mamba has no limit.
    is_mamba = card.kind == MambaLayout.name
    length = EXAMPLE_LENGTH if is_mamba else min(card.max_length, EXAMPLE_LENGTH)
    # torch.export treats a size of 1 as a constant, so batch and windows are larger.
    ids = torch.ones((2, 3, length) if reads_windows else (2, length), dtype=torch.int64)
    sizes = [dict(enumerate(names)), dict.fromkeys(range(len(names)), Dim.DYNAMIC)]
    # With gradients, torch.export traces the backward pass of loops, too.
    whole = _OnlyLogits(module).eval().requires_grad_(False)
    try:
        with _silence_exporter():
            program: Any = torch.onnx.export(
                whole, (ids, torch.ones_like(ids)), dynamo=True, verbose=False,
                input_names=list(INPUTS), output_names=[OUTPUT],
                dynamic_shapes=dict(zip(INPUTS, sizes, strict=True)),
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        # The cause says what failed. The message of the exporter itself lists its steps.
        reason = " ".join(str(error.__cause__ or error).split())[:500]
        raise UserError(
            f"torch.onnx cannot export this model: {reason}",
            where=str(folder),
            fix="use it with kinopoisk-ft predict, or export another architecture",
        ) from error
    # The exporter records the call stack of each node, which contains paths of this machine.
    ClearMetadataAndDocStringPass()(program.model)
    # Weights of more than 1.5 GiB are in a file next to the model.
    with _silence_exporter():
        program.save(file)


@contextmanager
def _silence_exporter() -> Iterator[None]:
    # The exporter logs packages that text models do not need, and its own code causes warnings.
    with silence_logs(), warnings.catch_warnings(action="ignore"):
        yield


def _quantize(file: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _silence_exporter():
        # 7 bits, because products of 8-bit numbers overflow on CPUs without VNNI instructions.
        quantize_dynamic(
            file, file, op_types_to_quantize=QUANTIZED, per_channel=True, reduce_range=True,
            weight_type=QuantType.QInt8,
        )  # fmt: skip
    # The fp32 weights of a large model are in this file.
    file.with_name(f"{ONNX}.data").unlink(missing_ok=True)


def _compare(original: Predictor, folder: Path, tolerance: float) -> Check:
    """Compare the logits of the original model and of the exported model in `folder`.

    Raises:
        UserError: a difference exceeds `tolerance` times the largest absolute logit. A largest
            logit below 0.1 counts as 0.1.
    """
    exported = Predictor(folder, "cpu")
    reviews = read_example_texts(CHECKED_REVIEWS)
    # Three batches: the shortest text, a text that is truncated or has several windows, and reviews
    # of different lengths.
    batches = (["Да"], [" ".join(reviews)], reviews)
    pairs = [[model.logits(texts).numpy() for model in (original, exported)] for texts in batches]
    ours, theirs = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    check = Check(
        texts=len(ours),
        difference=float(np.abs(ours - theirs).max()),
        largest=float(np.abs(ours).max()),
        same_labels=int((ours.argmax(1) == theirs.argmax(1)).sum()),
    )
    # The comparison is also False for NaN.
    if not check.difference <= tolerance * max(0.1, check.largest):
        raise UserError(
            f"the exported model is wrong: its logits differ by up to {check.difference:.2g} from "
            f"those of the original model (the largest logit is {check.largest:.2g})",
            fix="use the original model with kinopoisk-ft predict",
        )
    return check
