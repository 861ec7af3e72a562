"""Name, lock and resume output folders; refuse names that no file system takes."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from kinopoisk_ft.config.prepared import flatten
from kinopoisk_ft.config.trust import with_current_targets
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import write_atomically

log = logging.getLogger(__name__)

FILE = "unfinished.json"
LOCK = "run.lock"
LOCK_PATIENCE = 10.0  # seconds for a process that was told to stop and is at its end
CHECKPOINTS = "checkpoints"
START_OVER = "choose another output_dir, or start over in this one with resume=never"
# Where results go, and what may be changed when a run goes on.
FREE = (
    "output_dir", "result_json", "resume", "rerun", "tracking", "trainer.checkpoint_every",
    "trainer.strategy",
)  # fmt: skip

# Settings that runs of earlier versions do not have, with the value that they trained with.
ADDED = {
    "trainer.loss._target_": "kinopoisk_ft.training.losses.cross_entropy",
    "trainer.loss._partial_": True,
}


class Unfinished:
    """The file in an output folder that is there from a run's start to its end.

    Args:
        config: the composed config, resolved.
    """

    def __init__(self, out_dir: Path, config: dict[str, Any]) -> None:
        self.file, self.folder = out_dir / FILE, out_dir / CHECKPOINTS
        self.config = config

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training in the folder: each would delete the other's work.

        Raises:
            UserError: another process trains there.
        """
        lock = FileLock(self.file.with_name(LOCK))
        try:
            lock.acquire(timeout=LOCK_PATIENCE)
        except Timeout as error:
            raise UserError(
                "another process trains in this folder",
                where=str(self.file.parent),
                fix="wait for its end, or choose another output_dir",
            ) from error
        except (OSError, NotImplementedError) as error:
            log.warning("that no other process trains here could not be made sure: %s", error)
        try:
            yield
        finally:
            lock.release()

    def reopen(self) -> str | None:
        """Return the id of the run to go on with; None, and checkpoints deleted, to start one.

        Raises:
            UserError: there are checkpoints of another config.
        """
        found = None if self.config["resume"] == "never" else _read(self.file)
        if found is None:
            self._clear()
            return None
        differing = _differing(found["config"], self.config)
        if not differing:
            log.info("going on with the run that was not finished in %s", self.file.parent)
            return str(found["run_id"])
        if any(self.folder.glob("checkpoint-*")):
            raise UserError(
                "this folder has checkpoints of another config:\n    " + "\n    ".join(differing),
                where=str(self.folder),
                fix=START_OVER,
            )
        self._clear()
        return None

    def begin(self, run_id: str) -> None:
        """Write the file: from now on the run is to be finished."""
        text = json.dumps({"run_id": run_id, "config": self.config}, ensure_ascii=False, indent=2)
        write_atomically(self.file, text + "\n")

    def end(self) -> None:
        """Delete the file, then the checkpoints; the best weights stay."""
        self._clear()

    def _clear(self) -> None:
        self.file.unlink(missing_ok=True)
        for folder in self.folder.glob("checkpoint-*"):
            shutil.rmtree(folder, ignore_errors=True)


def kept_seed(out_dir: Path, resume: str) -> int | None:
    """Return the seed that an unfinished run in the folder drew; None where there is none."""
    found = None if resume == "never" else _read(out_dir / FILE)
    return None if found is None else int(found["config"]["seed"])


def _read(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
        flatten(found["config"]), found["run_id"], int(found["config"]["seed"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"what is known of the unfinished run cannot be read: {error}",
            where=str(file),
            fix=START_OVER,
        ) from error
    # A run that an earlier version started is resumed under the current names.
    return found | {"config": with_current_targets(found["config"])}


def _differing(kept: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a line for each key whose values differ, but for those that may."""
    after = flatten(now)
    before = {key: value for key, value in ADDED.items() if key in after} | flatten(kept)
    keys = [k for k in sorted({*before, *after}) if not k.startswith(FREE)]
    missing = object()
    return [
        f"{key}: {before.get(key, 'nothing')!r} there, {after.get(key, 'nothing')!r} now"
        for key in keys
        if before.get(key, missing) != after.get(key, missing)
    ]


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
