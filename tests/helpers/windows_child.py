"""Import the package, or run it, in a process that lacks what Windows lacks.

Libraries are imported first, because on this system they may need what is removed then.
"""

from __future__ import annotations

import importlib
import importlib.abc
import os
import pkgutil
import signal
import sys
from contextlib import suppress
from typing import Any

LIBRARIES = (
    "asyncio", "datasets", "filelock", "hydra", "joblib", "matplotlib.pyplot", "mlflow",
    "mlflow.pyfunc.model",
    "mlflow.store.tracking.sqlalchemy_store", "multiprocessing.pool", "numba",
    "numba.extending", "numba.experimental", "optuna", "peft", "psutil", "safetensors.torch",
    "scipy.stats", "sklearn.linear_model", "subprocess", "tempfile", "torch.distributed.fsdp",
    "transformers.pipelines",
)  # fmt: skip
# Modules, and names in `os` and `signal`, that CPython does not have on Windows.
MODULES = ("fcntl", "grp", "pwd", "resource", "syslog", "termios", "tty", "pty")
NAMES = {
    os: (
        "O_DIRECTORY", "O_NOCTTY", "O_NOFOLLOW", "O_SYNC", "chown", "fchmod",
        "fork", "forkpty", "getegid", "geteuid", "getgid", "getloadavg", "getpgid", "getpgrp",
        "getpriority", "getsid", "getuid", "killpg", "mkfifo", "nice", "pathconf", "posix_fadvise",
        "posix_fallocate", "pread", "pwrite", "register_at_fork", "sched_getaffinity",
        "sched_setaffinity", "setpgid", "setsid", "sync", "sysconf", "uname",
    ),
    signal: (
        "SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP",
        "SIGTSTP", "SIGUSR1", "SIGUSR2", "alarm", "pause", "pthread_kill", "pthread_sigmask",
        "setitimer", "sigwait",
    ),
}  # fmt: skip


class Blocker(importlib.abc.MetaPathFinder):
    """An import hook that refuses modules as if they did not exist."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Raise for a module that Windows lacks."""
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def become_windows() -> None:
    """Remove the modules and names that Windows lacks."""
    for name in LIBRARIES:
        importlib.import_module(name)
    # Ray is an extra.
    with suppress(ModuleNotFoundError):
        importlib.import_module("ray")
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Blocker())
    for module, names in NAMES.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)


def import_all() -> None:
    """Import every module of the package; print how many."""
    import kinopoisk_ft

    found = [
        one.name
        for one in pkgutil.walk_packages(kinopoisk_ft.__path__, "kinopoisk_ft.")
        if not one.name.endswith("__main__")
    ]
    for name in found:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            # The module needs an extra that is not installed.
            if str(error.name).partition(".")[0] != "ray":
                raise
    print(len(found))


if __name__ == "__main__":
    become_windows()
    if sys.argv[1:]:
        from kinopoisk_ft.cli import main

        sys.exit(main())
    import_all()
