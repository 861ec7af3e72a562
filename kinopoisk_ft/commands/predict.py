"""Implement `kinopoisk-ft predict`, which classifies reviews."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kinopoisk_ft.console import handle_errors
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import check_writable, prepare_caches
from kinopoisk_ft.text import to_one_line

if TYPE_CHECKING:
    from kinopoisk_ft.data.tables import Table

# Prefix of the columns that `--output` adds to the table.
COLUMN_PREFIX = "predicted_"


@handle_errors
def main(argv: list[str] | None = None) -> None:
    """Classify reviews."""
    parser = argparse.ArgumentParser(
        prog="kinopoisk-ft predict",
        description="Classify reviews with a trained model, with the same preprocessing as in its "
        "training.",
    )
    parser.add_argument("model", help="output_dir of a run, model folder, or run id")
    parser.add_argument("texts", nargs="*", metavar="text", help="reviews to classify")
    parser.add_argument(
        "--input", type=Path, metavar="FILE",
        help="table of reviews (.jsonl, .csv, .parquet …) or text file (.txt) with a review per "
        "line; - reads such lines from standard input",
    )  # fmt: skip
    parser.add_argument(
        "--text-column", default="text", help="column of --input with the reviews (default: text)"
    )
    quoting = "quoting of a .csv or .tsv --input, see data.quoting (default: auto)"
    parser.add_argument("--quoting", default="auto", choices=["auto", "csv", "none"], help=quoting)
    parser.add_argument("--output", type=Path, help="table to write: .jsonl, .csv or .parquet")
    parser.add_argument(
        "--uri", help="MLflow store (default: MLFLOW_TRACKING_URI, or else ./mlflow.db)"
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    args = parser.parse_args(argv)
    prepare_caches()
    _check_arguments(args)
    table, texts = _read_texts(args)
    # Problems with the output are reported before the model is loaded and predicts.
    taken = [name for name in table.frame.columns if str(name).startswith(COLUMN_PREFIX)]
    if taken:
        raise UserError(
            f"the table already has a column '{taken[0]}'",
            where=str(args.input),
            fix=f"rename or remove the columns whose names begin with {COLUMN_PREFIX}",
        )
    write = None
    if args.output:
        from kinopoisk_ft.data.prediction_files import prepare_output

        write = prepare_output(table, args.output)
    from kinopoisk_ft.serving.locate import find_model_folder
    from kinopoisk_ft.serving.predictor import Predictor, check_texts

    check_texts(texts, str(table.path))
    predicted = Predictor(find_model_folder(args.model, args.uri), args.device).predict(texts)
    if write:
        write(predicted.add_prefix(COLUMN_PREFIX))
        print(f"{len(predicted)} rows written to {args.output}")
    else:
        # The first 60 characters are enough to recognize a review in the printed table.
        shown = predicted.assign(text=[to_one_line(text)[:60] for text in texts])
        # The class names in a model folder of somebody else may contain control characters.
        shown["label"] = shown["label"].map(to_one_line)
        shown = shown.rename(columns=to_one_line)
        print(shown.to_string(index=False, float_format="{:.4f}".format))


def _check_arguments(args: argparse.Namespace) -> None:
    if bool(args.texts) == bool(args.input):
        raise UserError(
            "no reviews are given" if args.input is None else "reviews and --input are both given",
            where="the command line",
            fix="pass either reviews as arguments or a table with --input",
        )
    for text in args.texts:
        # `Path.is_file` would raise an error for reviews that are longer than a file name can be.
        if os.path.isfile(text):
            raise UserError(
                f"'{text}' is the name of a file, not a review; did you mean --input?",
                where="the command line",
                fix=shlex.join(["kinopoisk-ft", "predict", args.model, "--input", text]),
            )
    if args.output:
        if args.output.suffix not in (".jsonl", ".csv", ".parquet"):
            raise UserError(
                f"cannot write '{args.output.suffix}' files",
                where=str(args.output),
                fix="set --output to a file name that ends in .jsonl, .csv or .parquet",
            )
        check_writable(args.output, "--output")


def _read_texts(args: argparse.Namespace) -> tuple[Table, list[str]]:
    import pandas as pd

    from kinopoisk_ft.data.local import read_texts
    from kinopoisk_ft.data.tables import Table, read_lines, read_table

    if not args.input:
        # The path of this table appears only in error messages.
        table = Table(Path("the command line"), pd.DataFrame({"text": args.texts}), None)
        return table, args.texts
    if args.input == Path("-"):
        # `read_lines` decodes the bytes, because the encoding of `sys.stdin` depends on the locale.
        table = read_lines(Path("standard input"), sys.stdin.buffer)
    elif args.input.suffix.lower() == ".txt":
        table = read_lines(args.input)
    else:
        table = read_table(args.input, args.quoting)
        return table, read_texts(table, args.text_column, "set --text-column").tolist()
    return table, table.frame["text"].tolist()
