"""Test the doctor on this machine, and on simulated ones with missing or broken parts."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import math
import shutil
import sqlite3
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import stand_ins
import torch
from mlflow import MlflowClient
from torch import Tensor

from kinopoisk_ft.checks import kernels
from kinopoisk_ft.checks.finding import Finding
from kinopoisk_ft.commands import doctor
from kinopoisk_ft.ops.conv import op as conv_op
from kinopoisk_ft.ops.scan import op as scan_op
from kinopoisk_ft.ops.simd import kernel_cache
from kinopoisk_ft.training import device


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "TIMING_SECONDS", 0.0)


def run(*args: str) -> tuple[int, str]:
    """Run the doctor; return its exit code and its output."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = doctor.main(list(args))
    return code, out.getvalue()


def look(section: str) -> dict[str, Finding]:
    """Return the findings of a section by name."""
    return {finding.name: finding for finding in doctor.run_section(section)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a working folder without a store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def only(monkeypatch: pytest.MonkeyPatch, *sections: str) -> None:
    monkeypatch.setattr(doctor, "SECTIONS", {name: doctor.SECTIONS[name] for name in sections})


def test_a_quota_explains_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(device, "cpu_count", lambda: 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert look("devices")["threads"].detail.endswith("cores (CPU quota)")
    finally:
        torch.set_num_threads(before)


def test_json_has_all_findings(here: Path) -> None:
    code, printed = run("--json")
    report: dict[str, Any] = json.loads(printed)
    assert (code, report["ok"]) == (0, True)
    assert list(report["sections"]) == list(doctor.SECTIONS)
    names = {}
    for section, findings in report["sections"].items():
        names[section] = {finding["name"]: finding for finding in findings}
        for finding in findings:
            assert set(finding) == {"name", "state", "detail", "needed", "fix", "speedup"}
            assert finding["state"] in ("ok", "missing", "broken")
    assert names["packages"]["torch"]["detail"] == importlib.metadata.version("torch")
    assert {"cpu", "trainer.device=auto", "threads"} <= set(names["devices"])
    pytorch = {"flash", "memory-efficient", "cudnn", "math"}
    assert set(names["attention"]) == {*pytorch, "numba", "flash-attn"}
    assert names["attention"]["numba"]["speedup"] > 0
    assert "freed memory is kept" in names["memory"]["allocator"]["detail"]
    assert set(names["selective_scan"]) == {"auto", "numba", "torch", "mamba-ssm"}
    assert set(names["causal_conv1d"]) == {"auto", "numba", "torch", "causal-conv1d"}
    for section in ("selective_scan", "causal_conv1d"):
        for backend in ("numba", "torch"):
            assert math.isfinite(names[section][backend]["speedup"])
    assert names["memory"]["kernel cache"]["detail"].startswith(str(kernel_cache.find_folder()))
    # Checking the store does not create it.
    assert list(here.iterdir()) == []


def test_text_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "precision", "causal_conv1d")
    code, printed = run()
    assert code == 0
    lines = printed.splitlines()
    assert lines[0] == "precision"
    assert "trainer.precision=auto" in lines[1]
    assert "trainer.precision=fp32, bf16 or fp16 overrides it" in lines[1]
    assert lines[-1] == "everything that a run needs works"
    missing = next(i for i, line in enumerate(lines) if "causal-conv1d  " in line)
    assert lines[missing].split()[0] == "missing"
    assert "to do: on a machine with an NVIDIA GPU: pip install" in lines[missing + 1]


@pytest.mark.slow
def test_without_numba() -> None:
    code = """
import sys
sys.modules["numba"] = None
from kinopoisk_ft.commands import doctor
del doctor.SECTIONS["tracking"]
sys.exit(doctor.main(["--json"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    sections = json.loads(done.stdout)["sections"]
    for section in ("selective_scan", "causal_conv1d"):
        found = {finding["name"]: finding for finding in sections[section]}
        assert found["numba"]["state"] == "missing"
        assert found["numba"]["fix"] == "pip install 'numba>=0.61'"
        assert found["auto"]["detail"] == "selects 'torch' on cpu"
        assert found["torch"]["state"] == "ok"
    assert "kernel cache" not in {finding["name"] for finding in sections["memory"]}


def test_mamba_ssm_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.mamba_ssm(monkeypatch)
    found = look("selective_scan")["mamba-ssm"]
    assert found.state == "ok"
    assert found.speedup
    assert found.fix is None


def test_mamba_ssm_that_is_wrong_or_not_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only(monkeypatch, "selective_scan")
    stand_ins.mamba_ssm(monkeypatch, skip_scale=1.1)
    found = look("selective_scan")["mamba-ssm"]
    assert found.state == "broken"
    assert "differs from the reference in values" in found.detail
    stand_ins.mamba_ssm_without_kernel(monkeypatch)
    code, printed = run()
    # The part is optional.
    assert code == 0
    line = next(line for line in printed.splitlines() if "mamba-ssm  " in line)
    assert line.endswith("is installed without its compiled module selective_scan_cuda")
    assert "MAMBA_KEEP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE pip install" in printed
    assert capsys.readouterr().err == ""


def test_causal_conv1d_that_works_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.causal_conv1d(monkeypatch)
    assert look("causal_conv1d")["causal-conv1d"].state == "ok"
    stand_ins.causal_conv1d(monkeypatch, bias_scale=0.5)
    assert look("causal_conv1d")["causal-conv1d"].state == "broken"


def test_flash_attn_that_works_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.flash_attn(monkeypatch)
    assert look("attention")["flash-attn"].state == "ok"
    stand_ins.flash_attn(monkeypatch, scale=1.1)
    found = look("attention")["flash-attn"]
    assert (found.state, found.needed) == ("broken", False)
    assert "differs from the reference in values" in found.detail
    monkeypatch.delattr(sys.modules["flash_attn"], "flash_attn_varlen_func")
    found = look("attention")["flash-attn"]
    assert found.detail == "is installed without its compiled module flash_attn_2_cuda"
    assert "pip install --no-build-isolation" in str(found.fix)


def test_needed_part_that_is_wrong_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(u: Tensor, *rest: object) -> Tensor:
        return 2 * u

    only(monkeypatch, "selective_scan")
    monkeypatch.setitem(scan_op._WITHOUT_LENGTHS, "torch", wrong)
    code, printed = run()
    assert code == 1
    assert printed.splitlines()[-1] == "needed but not working: selective_scan: torch"
    assert json.loads(run("--json")[1])["ok"] is False


def test_kernel_that_auto_takes_untested_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "causal_conv1d")
    monkeypatch.setattr(conv_op, "conv", lambda x, *rest: 2 * x)
    code, printed = run()
    assert code == 1
    assert printed.splitlines()[-1] == "needed but not working: causal_conv1d: numba"


def test_a_section_that_cannot_be_imported_does_not_break_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only(monkeypatch, "attention", "precision")
    monkeypatch.setitem(sys.modules, "kinopoisk_ft.checks.attention", None)
    code, printed = run()
    assert code == 1
    assert "ModuleNotFoundError" in printed
    assert "pip install --editable ." in printed
    assert "trainer.precision=auto" in printed


def test_a_kernel_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_cache, "CACHED", False)
    found = look("memory")["kernel cache"]
    assert found.state == "broken"
    assert "NUMBA_CACHE_DIR" in str(found.fix)


def test_gpu_that_torch_cannot_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for version, word in ((None, "without CUDA"), ("13.0", "finds no GPU")):
        monkeypatch.setattr(torch.version, "cuda", version)
        found = look("devices")["cuda"]
        assert (found.state, found.needed) == ("broken", False)
        assert word in found.detail
        assert found.fix


def test_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = types.SimpleNamespace(name="Some GPU", total_memory=2**34, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: gpu)
    assert "Some GPU, 16.0 GiB, compute capability 9.0" in look("devices")["cuda:0"].detail


def test_store_that_opens(here: Path) -> None:
    MlflowClient(f"sqlite:///{here / 'mlflow.db'}").create_experiment("one")
    found = look("tracking")["MLflow store"]
    assert found.state == "ok"
    assert "has the schema of MLflow" in found.detail


def test_store_of_another_version_or_kind(here: Path) -> None:
    with contextlib.closing(sqlite3.connect(here / "mlflow.db")) as database:
        database.execute("CREATE TABLE cats (name TEXT)")
    found = look("tracking")["MLflow store"]
    assert (found.state, found.needed) == ("broken", True)
    assert "not an MLflow store" in found.detail
    assert "tracking.uri=" in str(found.fix)
    with contextlib.closing(sqlite3.connect(here / "mlflow.db")) as database:
        for table in ("experiments", "runs"):
            database.execute(f"CREATE TABLE {table} (name TEXT)")
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES ('0a8213491aaa')")
        database.commit()
    found = look("tracking")["MLflow store"]
    assert "its schema is 0a8213491aaa" in found.detail
    assert "mlflow db upgrade" in str(found.fix)


def test_store_that_cannot_be_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "does not exist, and" in look("tracking")["MLflow store"].detail
    (here / "mlflow.db").touch()
    found = look("tracking")["MLflow store"]
    assert (found.state, found.needed) == ("broken", True)
    assert "cannot be written" in found.detail


def test_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    found = look("tracking")["MLflow store"]
    assert (found.state, found.needed) == ("broken", True)
    assert "http://me:***@127.0.0.1:9" in found.detail
    assert "secret" not in found.detail


def test_help_is_quick_and_says_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        doctor.main(["--help"])
    assert stop.value.code == 0
    assert "Exit code: 0" in capsys.readouterr().out
    check = "import kinopoisk_ft.doctor, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
