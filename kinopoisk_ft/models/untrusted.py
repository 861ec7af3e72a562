"""Refuse model folders that could do more than provide weights.

Weights are safetensors, or a pickle that `transformers` loads with `weights_only=True`. Code in a
folder is never run. This module checks two other risks:

- symlinks and file names that point outside the folder
- adapter settings that make PEFT import a module
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from kinopoisk_ft.errors import UserError, first_line, is_out_of_memory

INDEX = "model.safetensors.index.json"
INDEXES = (INDEX, "pytorch_model.bin.index.json")
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
UNTRUSTED = "download the model folder again from a source that you trust"


def check_contents(folder: Path) -> None:
    """Raise UserError if a symlink or the weight index points outside the folder.

    A file outside the folder could be read as a vocabulary, for example, and be published with the
    model. Symlinks named *.safetensors are allowed, because only numbers are read from such files.
    """
    home = folder.resolve()
    # In the Hub's cache, snapshots contain symlinks to the folder `blobs` of their repository.
    allowed = (home, home.parent.parent / "blobs")
    # Subfolders such as `encoder` are checked when the model in them is loaded.
    for file in folder.iterdir():
        # Unlike `Path.resolve`, this accepts a symlink to itself. Reading it fails later.
        target = Path(os.path.realpath(file))
        outside = not any(target.is_relative_to(place) for place in allowed)
        if outside and file.suffix != ".safetensors":
            raise UserError(
                f"'{file.name}' is a symlink to a path outside the model folder, {target}",
                where=str(folder),
                fix="if you trust this file, replace the symlink with a copy of the file",
            )
    for name in INDEXES:
        if (folder / name).is_file():
            read_shard_names(folder / name)


def read_shard_names(index: Path) -> list[str]:
    """Return the names of the weight files in a weight index.

    Raises:
        UserError: the index is invalid, or lists a file outside its folder.
    """
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError("the weight index lists no files", where=str(index), fix=UNTRUSTED)
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if not stays_in_folder(name):
            raise UserError(
                f"the weight index lists a file outside the model folder: {name}",
                where=str(index),
                fix=UNTRUSTED,
            )
    return names


def stays_in_folder(name: str) -> bool:
    """Return whether a name is a relative path without "..", by the rules of POSIX and Windows."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    # Functions of `os` raise ValueError for a name that contains a null character.
    leaves = ".." in posix.parts or ".." in windows.parts or "\0" in name
    return bool(name) and not (leaves or posix.root or windows.root or windows.drive)


def refuse_adapter(file: str | Path, name: str) -> None:
    """Raise UserError, because `name` is an adapter and not a complete model."""
    base = read_json_object(Path(file)).get("base_model_name_or_path")
    raise UserError(
        f"'{name}' is a PEFT adapter for the base model '{base}', not a complete model",
        where="model.name",
        fix=f"use model.name={base}; or, to train the adapted model, merge the adapter into its "
        "base model (PeftModel.merge_and_unload), save the result with the tokenizer, and set "
        "model.name to that folder",
    )


def check_adapter(folder: Path) -> None:
    """Raise UserError if a PEFT adapter is unsafe or has no safetensors weights."""
    config = read_json_object(folder / ADAPTER)
    # Without this file, PEFT would load adapter_model.bin, which is a pickle.
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"the adapter has no {ADAPTER_WEIGHTS}", where=str(folder), fix=UNTRUSTED)
    check_imports(config, str(folder / ADAPTER))


def check_imports(config: dict[str, Any], where: str) -> None:
    """Raise UserError if the settings of an adapter would make PEFT import a module."""
    if config.get("megatron_config"):
        raise UserError(
            f"megatron_config would make PEFT import the module {config.get('megatron_core')!r}",
            where=where,
            fix="remove megatron_config, because kinopoisk_ft does not support Megatron models",
        )


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file; raise UserError if the file is missing or invalid."""
    try:
        value = json.loads(file.read_text("utf-8"))
    # The parser of JSON raises RecursionError for values that are nested too deeply.
    except (OSError, ValueError, RecursionError) as error:
        what = f"{file.name} cannot be read: {error}"
        raise UserError(what, where=str(file), fix=UNTRUSTED) from error
    if not isinstance(value, dict):
        raise UserError(f"{file.name} is not a JSON object", where=str(file), fix=UNTRUSTED)
    return value


@contextmanager
def explain_load_errors(place: Path) -> Iterator[None]:
    """Convert errors caused by damaged or mismatched files, or a lack of memory, to UserError.

    Libraries raise all kinds of exceptions if a config or the weights are not what they expect.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(
                f"memory ran out while the model was loaded: {first_line(error)}",
                where=str(place),
                fix="end other programs, use a smaller model or, if a GPU is full, the CPU",
            ) from error
        # The message of `load_state_dict` lists every missing weight, so keep only its start.
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the model is damaged or incomplete ({type(error).__name__}: {reason})",
            where=str(place),
            fix="copy or download the whole model folder again",
        ) from error
