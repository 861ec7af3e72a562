"""Test the GPU check on a CPU: its parts, counts and time limits, and that it continues."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch
from places import ROOT
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_check

    return gpu_check


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, *more: str) -> int:
    """Run the command line on a CPU, with time limits that no machine reaches."""
    args = ["gpu_check.py", "--device", "cpu", "--output", str(folder),
            "--minutes", "120", "--part-minutes", "60", *more]  # fmt: skip
    monkeypatch.setattr("sys.argv", args)
    code: int = script.main()
    return code


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "gpu_check.json").read_text(encoding="utf-8"))
    return found


def test_every_test_for_a_gpu_is_in_a_part(script: ModuleType) -> None:
    places = [ROOT / place for part in script.TESTS.values() for place in part]
    marked = [
        file
        for file in (ROOT / "tests").rglob("test_*.py")
        if re.search(r"\b(ON_GPU|on_gpu)\b", file.read_text(encoding="utf-8"))
        and file != Path(__file__)
    ]
    assert marked
    for file in marked:
        assert any(file.is_relative_to(place) for place in places), file
    for place in places:
        assert any(file.is_relative_to(place) for file in marked), place


TESTS = """
import pytest
pytestmark = pytest.mark.gpu

def test_good(): pass
def test_absent(): pytest.skip("mamba-ssm is not installed")
def test_other(): assert {good}
"""


@pytest.mark.slow
def test_tests_are_counted_and_the_same_command_continues(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tests, out = tmp_path / "test_it.py", tmp_path / "out"
    tests.write_text(TESTS.format(good=False))
    monkeypatch.setattr(script, "TESTS", {"kernels": [str(tests)]})
    # `test_a_rehearsal` runs the real measurement.
    monkeypatch.setattr(
        script.Check, "_measure", lambda *_: {"state": "ok", "detail": "", "row": {"ratio": 1.5}}
    )
    assert run(script, monkeypatch, out) == 1
    part = read(out)["parts"]["kernels"]
    assert [part[key] for key in ("state", "passed", "skipped", "failed")] == ["failed", 1, 1, 1]
    page = (out / "gpu_check.md").read_text(encoding="utf-8")
    assert page.startswith("# GPU check, rehearsed on a CPU: contains no GPU figures\n")
    assert "failed: test_other; mamba-ssm is not installed; see kernels.log" in page
    assert "| 1.50 |" in page
    assert read(out)["contains_gpu_figures"] is False

    tests.write_text(TESTS.format(good=True))
    capsys.readouterr()
    assert run(script, monkeypatch, out) == 0
    printed = capsys.readouterr().out
    assert "full: ok before" in printed
    assert "kernels: ok before" not in printed
    assert read(out)["parts"]["kernels"]["passed"] == 2

    monkeypatch.setattr(script, "installed_version", lambda name: "9.0")
    assert run(script, monkeypatch, out, "--minutes", "0") == 1
    assert read(out)["parts"] == {}
    assert "starting over" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "code", "state"),
    [
        ("def test_it(): pass\n", 1, "failed"),
        ("import pytest\n@pytest.mark.gpu\ndef test_it(): pytest.skip('no')\n", 0, "skipped"),
    ],
    ids=["no test", "skipped"],
)
def test_a_part_without_tests(
    text: str,
    code: int,
    state: str,
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "test_it.py").write_text(text)
    monkeypatch.setattr(script, "TESTS", {"kernels": [str(tmp_path / "test_it.py")]})
    assert run(script, monkeypatch, tmp_path, "--parts", "kernels") == code
    assert read(tmp_path)["parts"]["kernels"]["state"] == state


CHILD = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
time.sleep(60)
"""


def test_at_the_time_limit_all_processes_end(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, file = script.Check(tmp_path, "cpu"), tmp_path / "pid"
    (tmp_path / "compiled").mkdir()
    wait = subprocess.Popen.wait

    def reach_the_limit(process: Any, seconds: float | None = None) -> int:
        while seconds and not (file.exists() and file.read_text()):
            time.sleep(0.05)
        if seconds:
            raise subprocess.TimeoutExpired("a part", seconds)
        return wait(process)

    monkeypatch.setattr(subprocess.Popen, "wait", reach_the_limit)
    found = check._call("a part", ["-c", CHILD, str(file)], 60)
    assert found["state"] == "time limit"
    assert not (tmp_path / "compiled").exists()
    number = int(file.read_text())
    for _ in range(100):
        if not psutil.pid_exists(number) or psutil.Process(number).status() == "zombie":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child of the part is still there")


def test_a_gpu_that_is_absent_is_refused(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        run(script, monkeypatch, tmp_path / "out", "--device", "cuda")
    assert not (tmp_path / "out").exists()


def test_operations_are_those_that_pytorch_counts(script: ModuleType) -> None:
    from common.rate import model_flop

    shape = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
             "intermediate_size": 96, "vocab_size": 50}  # fmt: skip
    config = BertConfig(**shape, attn_implementation="eager")
    model, lengths = BertForSequenceClassification(config), (40, 90)
    with FlopCounterMode(display=False) as counter:
        for length in lengths:
            model(input_ids=torch.ones(1, length, dtype=torch.long)).logits.sum().backward()
    squares = sum(length**2 for length in lengths)
    # The pooler and the classifier are not counted.
    assert model_flop(config, 3, sum(lengths), squares) == pytest.approx(
        counter.get_total_flops(), rel=5e-3
    )


def test_peak_rates_are_found_by_the_names_of_gpus(script: ModuleType) -> None:
    from common.rate import peak_rate

    names = {"NVIDIA A100-SXM4-80GB": 312, "NVIDIA L4": 121, "NVIDIA L40S": 362, "Tesla T4": 65,
             "NVIDIA H100 80GB HBM3": 989, "Tesla V100-SXM2-16GB": 125, "NVIDIA H200": 989,
             "NVIDIA A100 80GB PCIe": 312, "NVIDIA GeForce RTX 4090": 165}  # fmt: skip
    for name, tflops in names.items():
        assert peak_rate(name) == tflops * 1e12, name
    others = ("H100 NVL", "H200 NVL", "GeForce RTX 3090 Ti", "GeForce RTX 4090 Laptop GPU",
              "A100-SXM4-40GB MIG 1g.5gb")  # fmt: skip
    for name in others:
        assert peak_rate(f"NVIDIA {name}") is None, name


@pytest.mark.slow
def test_a_rehearsal(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(script, monkeypatch, tmp_path, "--parts", "resume", "full", "lora") == 0
    parts = read(tmp_path)["parts"]
    assert parts["resume"]["passed"] > 0
    for name in ("full", "lora"):
        row = parts[name]["row"]
        assert row["peer tokens/s"] > 0 < row["project tokens/s"]
        assert row["ratio"] == pytest.approx(row["project tokens/s"] / row["peer tokens/s"])
        assert min(row["peer MiB"], row["project MiB"]) > 100
