"""Implement `kinopoisk-ft export`, which writes a model that runs without PyTorch."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from kinopoisk_ft.console import handle_errors
from kinopoisk_ft.files import prepare_caches

DESCRIPTION = """\
Export a trained network to ONNX, with its tokenizer, preprocessing and class names.

The graph accepts any batch size and length. The command compares the logits of onnxruntime and
PyTorch on bundled reviews and prints the largest difference. A model with wrong logits is not
written. `kinopoisk-ft predict` reads the exported folder. The command needs the extra 'onnx'.
"""


@handle_errors
def main(argv: list[str] | None = None) -> None:
    """Export a model."""
    parser = argparse.ArgumentParser(
        prog="kinopoisk-ft export", description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", help="output_dir of a run, model folder, or run id")
    parser.add_argument("--to", default="onnx", choices=["onnx"], help="format (default: onnx)")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER",
        help="folder to write (default: `onnx` next to the model folder; for a run id, ./onnx)",
    )  # fmt: skip
    parser.add_argument(
        "--int8", action="store_true",
        help="quantize the weights to 8 bits: a smaller and often faster model, with other logits",
    )  # fmt: skip
    parser.add_argument(
        "--keep-adapter", action="store_true",
        help="keep LoRA or another adapter as a separate part, instead of merging it",
    )  # fmt: skip
    parser.add_argument(
        "--uri", help="MLflow store (default: MLFLOW_TRACKING_URI, or else ./mlflow.db)"
    )
    args = parser.parse_args(argv)
    prepare_caches()
    from kinopoisk_ft.serving.locate import find_model_folder
    from kinopoisk_ft.serving.onnx_export import check_packages, export_onnx

    # A missing package is reported before the model is downloaded.
    check_packages()
    folder = find_model_folder(args.model, args.uri)
    # For a run id, the model folder is temporary.
    beside = folder.parent if os.path.isdir(os.path.expanduser(args.model)) else Path()
    output: Path = args.output or beside / "onnx"
    check = export_onnx(folder, output, args.int8, args.keep_adapter)
    size = sum(file.stat().st_size for file in output.iterdir())
    print(
        f"{'int8' if args.int8 else 'fp32'} model written to {output} ({size / 1e6:.1f} MB)\n"
        f"largest difference from the logits of PyTorch on {check.texts} texts: "
        f"{check.difference:.2g} (the largest logit is {check.largest:.2g}); the same class for "
        f"{check.same_labels} of {check.texts}"
    )
