"""Refuse folders of runs and jobs that no file system takes, before any work."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from kinopoisk_ft.errors import UserError

MAX_NAME = 255  # bytes, of ext4, XFS and btrfs; NTFS and APFS take as many characters
SHOWN = 60  # characters of a name that is too long


def check_sweep_folders(config: DictConfig) -> None:
    """Raise UserError if the folder of a sweep, or of any of its jobs, has too long a name."""
    _check_names(str(config.hydra.sweep.dir), "output_dir", "choose a shorter output_dir")
    plain: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    if "override_dirname" in str(plain["subdir"]):
        # A config of the user's may refer to what only a job has.
        with suppress(OmegaConfBaseException):
            _check_names(
                _longest_folder(config.copy()),
                f"hydra.sweep.subdir={plain['subdir']}",
                "leave long overrides out of the names, "
                "hydra.job.config.override_dirname.exclude_keys=[data.path], or number the jobs, "
                "'hydra.sweep.subdir=${hydra.job.num}'",
            )


def folder_refused(error: OSError) -> UserError:
    """Return what to do about a folder or file that the system does not let Hydra make or open."""
    folder = str(error.filename)
    if _has_long_name(folder):
        return _too_long(folder, "output_dir", "choose a shorter output_dir")
    return UserError(
        f"this folder or file cannot be made or opened: {error.strerror}",
        where=folder,
        fix="choose another output_dir, in a folder that you may write to",
    )


def _longest_folder(config: DictConfig) -> str:
    """Return the longest of the folders that the jobs would have, from the longest of each value.

    As Hydra puts `hydra.job.override_dirname` together.
    """
    asked = [*config.hydra.overrides.task]
    asked += [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    how = config.hydra.job.config.override_dirname
    lines = []
    for override in OverridesParser.create().parse_overrides(asked):
        if override.key_or_group in how.exclude_keys:
            continue
        if override.is_sweep_override():
            value = max(override.sweep_string_iterator(), key=_size)
        else:
            value = override.get_value_element_as_str()
        lines.append(f"{override.get_key_element()}={value}".replace("=", how.kv_sep))
    with read_write(config), open_dict(config):
        config.hydra.job.override_dirname = how.item_sep.join(sorted(lines))
        config.hydra.job.num, config.hydra.job.id = 0, "0"
    return str(config.hydra.sweep.subdir)


def _check_names(folder: str, where: str, fix: str) -> None:
    if _has_long_name(folder):
        raise _too_long(folder, where, fix)


def _has_long_name(folder: str) -> bool:
    return any(_size(name) > MAX_NAME for name in Path(folder).parts)


def _too_long(folder: str, where: str, fix: str) -> UserError:
    name = max(Path(folder).parts, key=_size)
    return UserError(
        f"the folder's name '{name[:SHOWN]}…' has {_size(name)} bytes; a file system takes at most "
        f"{MAX_NAME}",
        where=where,
        fix=fix,
    )


def _size(name: str) -> int:
    return len(os.fsencode(name))
