"""Run one target on inputs from Atheris or from a file, and record what fails."""

from __future__ import annotations

import errno
import hashlib
import importlib
import io
import json
import logging
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HELPERS = str(ROOT / "tests" / "helpers")
COUNT, ERRORS, COVERAGE = "executions", "errors", "coverage.json"
# Bytes of addresses that a worker may reserve; PyTorch alone reserves four billion.
ADDRESSES = 12 * 2**30
# Operations that no input may cause, as audit events of Python.
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn",
             "subprocess.Popen", "pickle.find_class", "webbrowser.open", "ctypes.dlopen",
             "socket.connect", "socket.getaddrinfo")  # fmt: skip


class Violation(BaseException):
    """Raised when an input makes the package do something that data must never cause."""


class Guard:
    """Watches this process while it reads an input.

    Code of the input, other programs and the network are violations, and so is reading a file next
    to the folder of the input. Writing outside `home` fails as on a read-only disk.
    """

    def __init__(self, home: Path) -> None:
        self.writable = (os.path.realpath(home), "/dev/", "/proc/")
        self.folder: Path | None = None
        self.found: list[str] = []
        sys.addaudithook(self._check)

    def _check(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        folder = str(self.folder)
        # Helpers of the tests copy configs with pickle.
        is_own = event == "pickle.find_class" and HELPERS in sys._getframe(1).f_code.co_filename
        if event in FORBIDDEN and not is_own:
            self._violate(f"{event} {args!r:.200}")
        elif event == "exec" and str(args[0].co_filename).startswith(folder):
            self._violate(f"code of {Path(args[0].co_filename).name} is run")
        elif event == "import" and str(args[1]).startswith(folder):
            self._violate(f"{Path(args[1]).name} is imported")
        elif event in ("open", "os.mkdir", "os.remove", "os.rename", "os.symlink"):
            self._check_file(event, args)

    def _check_file(self, event: str, args: tuple[Any, ...]) -> None:
        if isinstance(args[0], int):
            return
        path = os.path.realpath(os.fsdecode(args[0]))
        if event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            if path == os.path.realpath(self.folder.parent / "secret.txt"):
                self._violate("a file next to the input is read")
        elif not path.startswith(self.writable):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    def _violate(self, what: str) -> None:
        self.found.append(what)
        raise Violation(what)


class Runner:
    """Runs inputs of one target, and saves the first input of each distinct error.

    Args:
        out: the folder of this target: a count of executions, and a folder for each error.
    """

    def __init__(self, name: str, out: Path) -> None:
        self.home = tempfile.TemporaryDirectory(prefix="fuzz_", ignore_cleanup_errors=True)
        caches = ("HF_HOME", "KINOPOISK_FT_CACHE", "MPLCONFIGDIR", "XDG_CACHE_HOME")
        os.environ |= dict.fromkeys(caches, self.home.name)
        os.chdir(self.home.name)
        from hypothesis import HealthCheck, given, settings
        from hypothesis import strategies as st
        from targets import TARGETS

        self.target, self.out = TARGETS[name], out
        self.guard = Guard(Path(self.home.name))
        self.check: Callable[..., None] = self.target.prepare(Path(self.home.name))
        (out / ERRORS).mkdir(parents=True, exist_ok=True)
        self.count = int((out / COUNT).read_text()) if (out / COUNT).exists() else 0
        self.counter = os.open(out / COUNT, os.O_WRONLY | os.O_CREAT, 0o644)
        quiet = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
        self.test = quiet(given(st.data())(self._run_input))
        self.buffer = b""
        self.console = io.StringIO()

    def _run_input(self, data: Any) -> None:
        place = Path(tempfile.mkdtemp(dir=self.home.name))
        folder = place / "input"
        folder.mkdir()
        (place / "secret.txt").write_text("secret")
        started = time.process_time()
        self.console.seek(0)
        self.console.truncate()
        os.chdir(folder)
        try:
            with redirect_stdout(self.console), redirect_stderr(self.console):
                self.guard.folder, self.guard.found = folder, []
                self.check(data, folder)
            seconds = time.process_time() - started
            if self.guard.found:
                raise Violation(self.guard.found[0])
            if seconds > self.target.seconds:
                raise Violation(f"an input takes more than {self.target.seconds:g} s of CPU time")
        except BaseException as error:
            self.guard.folder = None
            if not type(error).__module__.startswith("hypothesis"):
                self._save(error, folder)
            raise
        finally:
            self.guard.folder = None
            os.chdir(self.home.name)
            shutil.rmtree(place, ignore_errors=True)
            self.count += 1
            os.pwrite(self.counter, str(self.count).encode(), 0)

    def _save(self, error: BaseException, folder: Path) -> None:
        name = describe(error)
        kept = self.out / ERRORS / hashlib.sha256(name.encode()).hexdigest()[:12]
        if kept.exists():
            return
        kept.mkdir()
        trace = "".join(traceback.format_exception(error))
        (kept / "error.txt").write_text(f"{name}\n\n{trace}", errors="replace")
        (kept / "buffer.bin").write_bytes(self.buffer)
        shutil.copytree(folder, kept / "input", symlinks=True, dirs_exist_ok=True)
        print(f"NEW {name}", file=sys.__stderr__, flush=True)

    def run(self, buffer: bytes) -> None:
        """Run the input that Hypothesis reads from a buffer; errors are only recorded."""
        self.buffer = bytes(buffer)
        try:
            self.test.hypothesis.fuzz_one_input(self.buffer)
        # An error of a Rust library is no Exception.
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise


def describe(error: BaseException) -> str:
    """Return the type of an error and the last functions of the package and of all code in it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/kinopoisk_ft/" in f.filename] or frames
    where = f"{Path(own[-1].filename).name}:{own[-1].name}"
    last = f"{Path(frames[-1].filename).name}:{frames[-1].name}"
    text = str(error).partition("\n")[0][:160] if isinstance(error, Violation) else ""
    kind = f"{type(error).__name__} {text}".strip()
    return f"{kind} in {where}" + (f", from {last}" if last != where else "")


def list_modules() -> set[str]:
    """Return the modules whose functions numba compiles, which must not be instrumented."""
    files = (ROOT / "kinopoisk_ft" / "ops").rglob("*.py")
    return {".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files}


def preload() -> None:
    """Import libraries once for all workers, which are forks of this process."""
    sys.path[:0] = [str(ROOT), HELPERS]
    for name in ("atheris", "coverage", "hydra", "mlflow", "peft", "sklearn.linear_model",
                 "transformers", "datasets"):  # fmt: skip
        importlib.import_module(name)
    logging.disable(logging.INFO)


def fuzz(name: str, out: Path, corpus: Path, seconds: float, options: list[str]) -> None:
    """Run inputs from libFuzzer for a time, and write the share of the lines that were run.

    Args:
        options: of libFuzzer.
    """
    import atheris
    import coverage

    # A file that asks for more memory must not take it from other programs.
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    measured = coverage.Coverage(include=[f"{ROOT}/kinopoisk_ft/*"], data_file=None)
    measured.start()
    with atheris.instrument_imports(include=["kinopoisk_ft"], exclude=sorted(list_modules())):
        runner = Runner(name, out)
    end = time.monotonic() + seconds

    def run(buffer: bytes) -> None:
        runner.run(buffer)
        if time.monotonic() > end:
            measured.stop()
            files = [f"{ROOT}/kinopoisk_ft/{name}" for name in runner.target.modules]
            share = measured.report(include=files, file=io.StringIO())
            (out / COVERAGE).write_text(json.dumps(share))
            os._exit(0)

    atheris.Setup([sys.argv[0], str(corpus), *options], run)
    atheris.Fuzz()
