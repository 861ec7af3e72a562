"""Choose the files of a model folder to publish, and remove paths of this machine from them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import ModelCard
from yaml import YAMLError

from kinopoisk_ft.errors import UserError, first_line
from kinopoisk_ft.models.card import ALL_FILES, BASE, VOCABULARIES, read_card
from kinopoisk_ft.models.untrusted import read_json_object

# All other files stay on this machine, such as predictions, which contain excerpts of reviews.
PUBLISHED = ["README.md", *ALL_FILES]
BINARY = (".safetensors", ".model", ".onnx", ".data")
# Absolute paths without spaces.
PATHS = re.compile(r"""(?<![\w.:/<])(?:[A-Za-z]:)?[/\\][^\s"'`<>|)]+""")
# Keys in JSON files whose values can be paths. "base" is a key of kinopoisk_ft.json.
PATH_KEYS = re.compile(r"base|.*_(path|file)")


def list_uploads(folder: Path, base: str | None = None) -> dict[str, Path | bytes]:
    """Return {name in the repository: local file, or its changed contents} for a model folder.

    Args:
        base: hub id of the base model. An adapter needs it if its base model is in a local folder.

    Raises:
        UserError: the folder is damaged, the base model is only on this machine, or a file contains
            a path of this machine.
    """
    card = read_card(folder)
    if card.is_peft and base is None and _is_absolute(card.base):
        raise UserError(
            f"the model is an adapter of the base model in '{card.base}', which other people "
            "do not have",
            where=str(folder),
            fix="pass --base owner/name, the hub repository of the same base model; if there is no "
            "such repository, upload the base model first (hf upload owner/name <folder>)",
        )
    found = {file for pattern in PUBLISHED for file in folder.glob(pattern) if file.is_file()}
    if not card.has_own_base:
        # Earlier versions could leave the base model of another run in this subfolder.
        found = {file for file in found if not file.is_relative_to(folder / BASE)}
    return {
        file.relative_to(folder).as_posix(): _prepare(file, folder, base) for file in sorted(found)
    }


def list_skipped(folder: Path, uploads: dict[str, Path | bytes]) -> list[str]:
    """Return the names of the files in a model folder that are not uploaded."""
    names = (f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())
    return sorted(set(names) - set(uploads))


def _prepare(file: Path, folder: Path, base: str | None) -> Path | bytes:
    if file.suffix in BINARY or file.name in VOCABULARIES:
        return file
    # Users may edit README.md.
    try:
        text = file.read_text("utf-8")
        if file.name == "README.md" and base:
            written = ModelCard(text)
            # The Hub reads the base model from the metadata at the start of README.md.
            written.data["base_model"] = base
            text = f"{written}\n"
    except (ValueError, YAMLError) as error:
        raise UserError(
            f"{file.name} cannot be read: {first_line(error)}",
            where=str(file),
            fix="save the file as UTF-8; the metadata of README.md is YAML between the lines ---",
        ) from error
    if file.suffix == ".json":
        values = read_json_object(file)
        changed = _replace_paths(values, base)
        # A file without such paths keeps its formatting.
        if changed != values:
            text = json.dumps(changed, ensure_ascii=False, indent=2) + "\n"
    # Paths under other keys are not replaced, so a file that contains one is refused.
    _check_private(text, file, folder)
    return text.encode()


def _replace_paths(values: Any, base: str | None) -> Any:
    """Replace absolute paths in the values of a JSON object by `base` (null if it is None)."""
    if isinstance(values, list):
        return [_replace_paths(value, base) for value in values]
    if not isinstance(values, dict):
        return values
    return {
        key: base
        if PATH_KEYS.fullmatch(key) and isinstance(value, str) and _is_absolute(value)
        else _replace_paths(value, base)
        for key, value in values.items()
    }


def _is_absolute(path: str | None) -> bool:
    return bool(path) and any(
        kind(str(path)).is_absolute() for kind in (PurePosixPath, PureWindowsPath)
    )


def _check_private(text: str, file: Path, folder: Path) -> None:
    """Raise UserError if a text contains the path of a file or folder on this machine."""
    places = {Path.home(), Path.cwd(), folder.resolve().parent}
    # In a container, the current folder can be the root of the file system.
    # With the lookahead, /home/anna does not match /home/annabel.
    found = [
        str(place)
        for place in places
        if place != Path(place.anchor) and re.search(re.escape(str(place)) + r"(?![\w-])", text)
    ]
    # `Path.exists` would raise an error for texts that are longer than a file name can be.
    paths = [path for path in PATHS.findall(text) if os.path.exists(path)]
    # Short paths such as "/dev" exist on every machine.
    found += [path for path in paths if len(Path(path).parts) > 2]
    if found:
        raise UserError(
            f"{file.name} contains the path '{found[0]}' of this machine",
            where=str(file),
            fix="remove the path from this file, and publish again",
        )
