"""Model folders from elsewhere: what in them could reach beyond weights and numbers is refused.

Weights are safetensors, or a pickle that `transformers` reads with `weights_only`; code that a
folder brings is never run. What is left is looked at here: links and names that lead out of the
folder, and settings of an adapter that make PEFT import a module.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from safetensors import SafetensorError

from kinopoisk_ft.errors import UserError

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
UNTRUSTED = "get the folder again from whom you trust"


def check_contents(folder: Path) -> None:
    """Raise UserError for a folder whose links or whose list of weights lead out of it.

    Weights may lie elsewhere: of safetensors nothing but numbers is read. A link to any other file
    would be read as a vocabulary, say, and published with the model. Snapshots in the hub's cache
    link to the `blobs` of their repository.
    """
    home = folder.resolve()
    homes = (home, home.parent.parent / "blobs")
    for file in folder.iterdir():
        outside = not any(file.resolve().is_relative_to(place) for place in homes)
        if outside and file.suffix != ".safetensors":
            raise UserError(
                f"'{file.name}' is a link that leads out of the model folder, to {file.resolve()}",
                where=str(folder),
                fix="put a copy in its place, if you know why it is there",
            )
    for name in INDEXES:
        if (folder / name).is_file():
            shards(folder / name)


def shards(index: Path) -> list[str]:
    """Return the names of the weight files that an index lists, all within its folder."""
    found = read_object(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise UserError("the index of weights lists none", where=str(index), fix=UNTRUSTED)
    names = sorted({str(name) for name in found.values()})
    for name in names:
        if not is_inside(name):
            raise UserError(
                f"the index of weights names a file outside the folder: {name}",
                where=str(index),
                fix=UNTRUSTED,
            )
    return names


def is_inside(name: str) -> bool:
    """Whether a relative name stays in the folder that it is taken from, on any system."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    leaves = ".." in posix.parts or ".." in windows.parts or "\0" in name
    return bool(name) and not (leaves or posix.root or windows.root or windows.drive)


def refuse_adapter(file: str | Path, name: str) -> None:
    """Raise UserError that says which base model the adapter with this config file is for."""
    base = read_object(Path(file)).get("base_model_name_or_path")
    raise UserError(
        f"'{name}' is a PEFT adapter of the base model '{base}', not a whole model",
        where="model.name",
        fix=f"use model.name={base}; to train the adapted model, merge the adapter into its base "
        "(PeftModel.merge_and_unload), save both with the tokenizer, and give that folder",
    )


def check_adapter(folder: Path) -> None:
    """Raise UserError unless a PEFT adapter is in safetensors and imports nothing."""
    config = read_object(folder / ADAPTER)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"there is no {ADAPTER_WEIGHTS}", where=str(folder), fix=UNTRUSTED)
    check_imports(config, str(folder / ADAPTER))


def check_imports(config: dict[str, Any], where: str) -> None:
    """Raise UserError for settings with which PEFT imports the module that they name."""
    if config.get("megatron_config"):
        raise UserError(
            f"the adapter wants to import the module {config.get('megatron_core')!r}",
            where=where,
            fix="leave out megatron_config: no model of this project is one of Megatron's",
        )


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object; raises UserError where there is none."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        what = f"{file.name} cannot be read: {error}"
        raise UserError(what, where=str(file), fix=UNTRUSTED) from error
    if not isinstance(found, dict):
        raise UserError(f"{file.name} is no JSON object", where=str(file), fix=UNTRUSTED)
    return found


@contextmanager
def fits_together(place: Path) -> Iterator[None]:
    """Turn the failure to load a file that is damaged, or one of another model, into UserError."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the model is damaged or incomplete: {type(error).__name__}: {reason}",
            where=str(place),
            fix="copy or download the whole folder again",
        ) from error
