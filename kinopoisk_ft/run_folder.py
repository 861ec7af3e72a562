"""Lock output folders, find unfinished runs, and check the length of folder names."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from kinopoisk_ft.config.command import KEYS_WITHOUT_EFFECT, TRAINER_KEYS_WITHOUT_EFFECT
from kinopoisk_ft.config.prepared import ADDED, flatten, get_overrides, list_differences
from kinopoisk_ft.config.trust import rename_moved_targets
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import lacks_locks, make_lock, write_atomically

log = logging.getLogger(__name__)

UNFINISHED = "unfinished.json"
LOCK_FILE = "run.lock"
# Seconds to wait for the lock, because its holder may be about to end after a stop signal.
LOCK_TIMEOUT = 10.0
CHECKPOINTS = "checkpoints"
START_OVER = "choose another output_dir, or start over in this one with resume=never"
# Prefixes of the options that may be changed when a run is resumed.
MAY_DIFFER = (
    *KEYS_WITHOUT_EFFECT, *TRAINER_KEYS_WITHOUT_EFFECT, "trainer.strategy", "task.save_to",
)  # fmt: skip


class RunFolder:
    """The output folder of a run.

    The file `unfinished.json` exists in the folder from the start of a run until the run is
    finished.

    Args:
        config: the resolved config as a dict.
    """

    def __init__(self, out_dir: Path, config: dict[str, Any]) -> None:
        self.file, self.folder = out_dir / UNFINISHED, out_dir / CHECKPOINTS
        self.config = config

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder, because two processes would delete each other's checkpoints.

        Raises:
            UserError: another process has locked the folder, or the lock file cannot be written.
        """
        lock = lock_folder(self.file.parent, self.file.with_name(LOCK_FILE))
        try:
            yield
        finally:
            lock.release()

    def find_run(self) -> str | None:
        """Return the id of the run to resume, or None if a new run must start.

        With resume=never, the result is always None. Before a new run, checkpoints of earlier runs
        are deleted.

        Raises:
            UserError: the unfinished run has checkpoints but another config, or its record cannot
                be read.
        """
        unfinished = None if self.config["resume"] == "never" else _read_unfinished(self.file)
        if unfinished is None:
            self._clear()
            return None
        differences = _list_differences(unfinished["config"], self.config)
        if not differences:
            log.info("resuming the unfinished run in %s", self.file.parent)
            return str(unfinished["run_id"])
        if any(self.folder.glob("checkpoint-*")):
            raise UserError(
                "this folder has checkpoints from a run with a different config:\n    "
                + "\n    ".join(differences),
                where=str(self.folder),
                fix=START_OVER,
            )
        # Without checkpoints, starting over loses nothing.
        self._clear()
        return None

    def mark_started(self, run_id: str) -> None:
        """Record that the run has started, so that the same command resumes the run."""
        text = json.dumps({"run_id": run_id, "config": self.config}, ensure_ascii=False, indent=2)
        write_atomically(self.file, text + "\n")

    def mark_finished(self) -> None:
        """Record that the run is finished, and delete its checkpoints and best weights."""
        self._clear()

    def _clear(self) -> None:
        # Delete the record first: a record without checkpoints would restart the training.
        self.file.unlink(missing_ok=True)
        for folder in self.folder.glob("checkpoint-*"):
            shutil.rmtree(folder, ignore_errors=True)
        # The best weights come last, because a checkpoint without them would be invalid. They are a
        # second copy of the trained weights in `model`.
        for file in self.folder.glob("best-*"):
            file.unlink(missing_ok=True)


def lock_folder(folder: Path, file: Path) -> FileLock:
    """Lock an output folder, and return the lock.

    Args:
        file: the file that is locked.

    Raises:
        UserError: another process has locked the folder, or the lock file cannot be written.
    """
    lock = make_lock(file)
    try:
        lock.acquire(timeout=LOCK_TIMEOUT)
    except Timeout as error:
        raise UserError(
            "another process is using this output folder",
            where=str(folder),
            fix="wait until that process ends, or choose another output_dir",
        ) from error
    except OSError as error:
        # The file may belong to another user, whose run must not be disturbed.
        if not lacks_locks(error):
            raise UserError(
                f"the output folder cannot be locked: {error.strerror or error}",
                where=str(file),
                fix="choose another output_dir in a writable folder",
            ) from error
        log.warning(
            "the output folder cannot be locked; make sure that no other process uses it: %s", error
        )
    return lock


@contextmanager
def discard_unfinished(sweep_dir: Path) -> Iterator[None]:
    """Delete the checkpoints of unfinished runs in the numbered job folders of a sweep.

    The folders are locked before the `with` block, and the checkpoints are deleted after it. If the
    block raises an error, nothing is deleted.

    Raises:
        UserError: another process is using the folder of a job.
    """
    folders = [file.parent for file in sweep_dir.glob(f"*/{UNFINISHED}")]
    # Another folder here, such as 300_labels, belongs to another run.
    runs = [RunFolder(folder, {}) for folder in folders if folder.name.isdigit()]
    with ExitStack() as locks:
        for run in runs:
            locks.enter_context(run.lock())
        yield
        for run in runs:
            run.mark_finished()


def read_seed(out_dir: Path, resume: str) -> int | None:
    """Return the seed of the run to resume, or None if there is no such run."""
    unfinished = None if resume == "never" else _read_unfinished(out_dir / UNFINISHED)
    return None if unfinished is None else int(unfinished["config"]["seed"])


def _read_unfinished(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        unfinished: dict[str, Any] = json.loads(file.read_text("utf-8"))
        # A damaged file must raise an error here, and not in the middle of a run.
        flatten(unfinished["config"]), unfinished["run_id"], int(unfinished["config"]["seed"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"the record of the unfinished run cannot be read: {error}",
            where=str(file),
            fix=START_OVER,
        ) from error
    # An earlier version may have recorded `_target_`s of classes that have been moved since.
    return unfinished | {"config": rename_moved_targets(unfinished["config"])}


def _list_differences(kept: dict[str, Any], now: dict[str, Any]) -> list[str]:
    after = flatten(now)
    # By default, data.train_seed equals the seed.
    added = {**ADDED, "data.train_seed": now.get("seed")}
    before = {key: value for key, value in added.items() if key in after} | flatten(kept)
    relevant = (
        {key: value for key, value in one.items() if not key.startswith(MAY_DIFFER)}
        for one in (before, after)
    )
    return list_differences(*relevant)


# Longest file name in bytes on ext4, XFS and btrfs. NTFS and APFS allow 255 characters.
MAX_NAME = 255
# Number of characters that a message shows of a name that is too long.
SHOWN_CHARACTERS = 60


def check_sweep_folders(config: DictConfig) -> None:
    """Raise UserError if a folder name of a sweep or of its jobs is too long."""
    if error := _explain_long_name(str(config.hydra.sweep.dir)):
        raise error
    # `subdir` refers to values that Hydra sets only inside a job.
    plain: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    if "override_dirname" in str(plain["subdir"]):
        # A user's config may interpolate values that exist only inside a job, and the intervals of
        # a search have no longest value.
        with suppress(OmegaConfBaseException, HydraException):
            error = _explain_long_name(
                _compose_longest_folder(config.copy()),
                f"hydra.sweep.subdir={plain['subdir']}",
                "exclude long overrides from the names, for example with "
                "hydra.job.config.override_dirname.exclude_keys=[data.path], or number the jobs "
                "with 'hydra.sweep.subdir=${hydra.job.num}'",
            )
            if error:
                raise error


def explain_folder_error(error: OSError) -> UserError:
    """Explain why Hydra could not create or open a folder or file."""
    return _explain_long_name(str(error.filename)) or UserError(
        f"cannot create or open this path: {error.strerror}",
        where=str(error.filename),
        fix="choose another output_dir in a writable folder",
    )


def _compose_longest_folder(config: DictConfig) -> str:
    overrides = get_overrides(config.hydra)
    params = config.hydra.sweeper.get("params") or {}
    overrides += [f"{key}={value}" for key, value in params.items()]
    options = config.hydra.job.config.override_dirname
    # Hydra builds `hydra.job.override_dirname` in the same way.
    parts = []
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.key_or_group in options.exclude_keys:
            continue
        if override.is_sweep_override():
            # The longest folder name belongs to the job with the longest value of each key.
            value = max(override.sweep_string_iterator(), key=_count_bytes)
        else:
            value = override.get_value_element_as_str()
        parts.append(f"{override.get_key_element()}={value}".replace("=", options.kv_sep))
    with read_write(config), open_dict(config):
        config.hydra.job.override_dirname = options.item_sep.join(sorted(parts))
        # Hydra sets these values only when a job starts.
        config.hydra.job.num, config.hydra.job.id = 0, "0"
    return str(config.hydra.sweep.subdir)


def _explain_long_name(
    folder: str, where: str = "output_dir", fix: str = "choose a shorter output_dir"
) -> UserError | None:
    """Return an error if a part of a path is too long for a file system, else None."""
    name = max(Path(folder).parts, key=_count_bytes, default="")
    if _count_bytes(name) <= MAX_NAME:
        return None
    return UserError(
        f"the folder name '{name[:SHOWN_CHARACTERS]}…' is {_count_bytes(name)} bytes long; "
        f"file systems allow at most {MAX_NAME}",
        where=where,
        fix=fix,
    )


def _count_bytes(name: str) -> int:
    # File systems limit the number of bytes, and a Cyrillic letter has two bytes in UTF-8.
    return len(os.fsencode(name))
