"""Implement `kinopoisk-ft publish`, which uploads a model to the Hugging Face hub."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path

from kinopoisk_ft.console import handle_errors
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import prepare_caches
from kinopoisk_ft.run_folder import UNFINISHED
from kinopoisk_ft.text import to_one_line

DESCRIPTION = """\
Upload the model of a run to a repository on the Hugging Face hub, private by default.

Only the model, its tokenizer and its model card (README.md) are uploaded: no reviews, no
predictions and no paths of this machine. To change the card, edit README.md in the model folder.
"""
# A part of the empty model card that PEFT wrote in earlier versions.
TEMPLATE_MARK = b"[More Information Needed]"


@handle_errors
def main(argv: list[str] | None = None) -> None:
    """Publish a model."""
    parser = argparse.ArgumentParser(
        prog="kinopoisk-ft publish", description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", help="output_dir of a run, model folder, or run id")
    parser.add_argument("repository", help="owner/name on the hub")
    parser.add_argument("--public", action="store_true", help="everyone may see a new repository")
    parser.add_argument(
        "--update", action="store_true",
        help="the repository exists; replace its model, but not its other files and its visibility",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="show files and card, and stop")
    parser.add_argument(
        "--base", metavar="OWNER/NAME", help="base model of an adapter, if it is a local folder"
    )
    parser.add_argument(
        "--uri", help="MLflow store (default: MLFLOW_TRACKING_URI, or else ./mlflow.db)"
    )
    args = parser.parse_args(argv)
    prepare_caches()
    from kinopoisk_ft.hub_access import check_repository, upload
    from kinopoisk_ft.reporting.model_card import README
    from kinopoisk_ft.serving.locate import find_model_folder
    from kinopoisk_ft.serving.publishing import PUBLISHED, list_skipped, list_uploads

    for name in filter(None, (args.repository, args.base)):
        check_repository(name)
    folder = find_model_folder(args.model, args.uri)
    _check_finished(args, folder)
    # This call may write README.md, so it comes before the files are listed.
    _complete_card(folder)
    uploads = list_uploads(folder, args.base)
    # Checked text files are bytes. All other files are paths.
    sizes = {
        name: len(part) if isinstance(part, bytes) else part.stat().st_size
        for name, part in uploads.items()
    }
    for name, size in sizes.items():
        print(f"{size:>13,}  {to_one_line(name)}")
    print(f"{sum(sizes.values()):>13,}  bytes in {len(sizes)} files")
    if skipped := list_skipped(folder, uploads):
        print(f"not uploaded: {to_one_line(', '.join(skipped))}")
    if args.dry_run:
        card = uploads[README]
        print(f"\n{card.decode() if isinstance(card, bytes) else ''}\nnothing was uploaded")
        return
    url = upload(
        args.repository, uploads, public=args.public, update=args.update, replaced=PUBLISHED
    )
    print(f"published: {url}")


def _check_finished(args: argparse.Namespace, folder: Path) -> None:
    from kinopoisk_ft.tracking.store import default_uri, open_store

    if os.path.exists(os.path.expanduser(args.model)):
        # A run deletes this file when it has finished.
        finished = not (folder.parent / UNFINISHED).exists()
    else:
        # For a run id, the store knows whether the run has finished.
        run = open_store(args.uri or default_uri()).get_run(args.model)
        finished = run.info.status == "FINISHED"
    if not finished:
        raise UserError(
            "the run is not finished",
            where=args.model,
            fix="resume the run with the same command, and publish the model when it has finished",
        )


def _complete_card(folder: Path) -> None:
    """Write the model card, unless the model folder already has a complete one.

    Earlier versions of this package wrote no card, or only an empty template of PEFT.
    """
    from kinopoisk_ft.models.card import read_card
    from kinopoisk_ft.reporting.model_card import README, write_model_card

    file = folder / README
    if file.is_file() and TEMPLATE_MARK not in file.read_bytes():
        return
    # `write_model_card` reads the files of the run, and writes to its subfolder `model`.
    if folder.name != "model" or not (folder.parent / "predictions.parquet").is_file():
        raise UserError(
            "the model folder has no README.md, and it cannot be written, because the files of "
            "the run are not next to the model folder",
            where=str(folder),
            fix="publish the output_dir of the run, or write README.md in the model folder",
        )
    write_model_card(folder.parent, asdict(read_card(folder)))
