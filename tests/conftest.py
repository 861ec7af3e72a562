"""Define fixtures, and keep tests off the network."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Imports create so many objects that garbage collection takes a fifth of their time.
gc.disable()
# Tests create many objects, too, and little garbage.
gc.set_threshold(10_000)

# Set these before huggingface_hub is imported, because it reads them once.
_HOME = tempfile.TemporaryDirectory(prefix="kinopoisk_ft_hub_", ignore_cleanup_errors=True)
os.environ["HF_HOME"] = _HOME.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# With this, `torch.cuda.is_available` does not start CUDA, so that forks can use CUDA later.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"

import hypothesis  # noqa: E402
from hub_server import HubServer  # noqa: E402
from parsed_configs import parse_once  # noqa: E402
from quick import quick  # noqa: E402

parse_once()


SHARED = Path(__file__).parents[1].parent / "shared"


def pytest_configure(config: pytest.Config) -> None:
    """Let `make test` try a third of the examples that Hypothesis makes in `make test-all`."""
    examples = 33 if "not slow" in config.option.markexpr else 100
    # A busy machine takes longer than the default of 200 ms for an example.
    hypothesis.settings.register_profile("kinopoisk_ft", deadline=None, max_examples=examples)
    hypothesis.settings.load_profile("kinopoisk_ft")


def pytest_collection_finish() -> None:
    """Exclude the objects of all libraries from garbage collection, which tests call often."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def _no_garbage_of_another_file() -> None:
    """Exclude the objects of earlier files from garbage collection, with which trainings start.

    Each collection would soon take half a second.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _no_store_of_another_file() -> None:
    """Remove the variables that MLflow and the command line leave for later test files.

    They name the last store, and how often and how long to try to reach it.
    """
    for name in ("TRACKING_URI", "HTTP_REQUEST_MAX_RETRIES", "HTTP_REQUEST_TIMEOUT"):
        os.environ.pop(f"MLFLOW_{name}", None)


@pytest.fixture(autouse=True, scope="module")
def _no_path_of_another_file() -> Iterator[None]:
    """Restore sys.path, to which MLflow adds the copy of this package in each model that it loads.

    Child processes of later files would import that copy.
    """
    path = [*sys.path]
    yield
    sys.path[:] = path


@pytest.fixture(autouse=True, scope="session")
def _stores_from_a_template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from store_template import copied_stores

    with copied_stores(tmp_path_factory.mktemp("store") / "mlflow.db"):
        yield


@pytest.fixture(autouse=True, scope="session")
def _few_pixels() -> Iterator[None]:
    """Leave the figures of runs empty, and halve the resolution of those of reports.

    The figures of a run take a third of a second. One run in tests/cli/test_cli_runs.py draws them.
    """
    from kinopoisk_ft.reporting.plots import run_plots

    def draw(*given: object) -> None:
        Path(str(given[-1])).touch()

    with pytest.MonkeyPatch.context() as patch:
        for name in ("plot_confusion", "plot_learning_curve"):
            patch.setattr(run_plots, name, draw)
        patch.setattr(run_plots, "DPI", 100)
        yield


@pytest.fixture(autouse=True, scope="session")
def _new_processes_are_forks(_stores_from_a_template: None, _few_pixels: None) -> None:
    from forks import start_server

    start_server()


@pytest.fixture
def unprobed() -> Iterator[None]:
    """Skip the memory probe before the first step, so that each pass is a step."""
    from kinopoisk_ft.training import loop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "fit_rows_to_memory", lambda state, _: state.micro_batch_size)
        yield


@pytest.fixture
def heeded() -> Iterator[None]:
    """Handle SIGINT, also in child processes, even if a shell ignores it for background jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(
    params=quick([errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], 1), ids=errno.errorcode.get
)
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all locks fail, as on NFS without a lock service or Lustre without `-o flock`."""

    def refuse(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr("fcntl.flock", refuse)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that foreign code would create if it were run."""
    return tmp_path / "code was run"


@pytest.fixture
def nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer yes to the question whether foreign code may run, which must never be asked."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")


@pytest.fixture
def shared() -> Path:
    """The optional folder next to the checkout with real reviews and models."""
    if not SHARED.is_dir():
        pytest.skip("there are no real reviews and models next to this checkout")
    return SHARED


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """An empty hub on 127.0.0.1; `hub.run(code)` sees the files in `hub.repo(name)`."""
    with HubServer(tmp_path / "hub") as server:
        yield server


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from checkpointed import Recorder, fit, steps

    folder = tmp_path_factory.mktemp("broken_off")

    def stop(step: int) -> None:
        if step == 9:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fit(folder, recorder=Recorder(stop))
    assert steps(folder) == [6, 8]
    return folder


@pytest.fixture
def checkpoints(broken_off: Path, tmp_path: Path) -> Path:
    """A folder with the last two checkpoints, after steps 6 and 8, of a run of ten steps."""
    return Path(shutil.copytree(broken_off, tmp_path / "checkpoints"))
