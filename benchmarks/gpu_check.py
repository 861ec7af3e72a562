"""Check this project on a GPU: run tests, then compare the speed with a Hugging Face Trainer.

    python benchmarks/gpu_check.py

The check has several parts. Its results are written after each part, and the same command continues
where it stopped. On a CPU, this is a rehearsal whose results contain no GPU figures.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from common.equal_flags import NOTE, WORKS
from common.report import markdown_table

from kinopoisk_ft.files import write_atomically
from kinopoisk_ft.provenance import describe_environment, digest_content

ROOT = Path(__file__).resolve().parents[1]
# Names of parts, with files or folders that contain tests marked `gpu`.
TESTS = {
    "kernels against references": ["tests/ops"],
    "precision": ["tests/training/test_precision.py"],
    "unpadded attention": ["tests/training/acceleration/test_unpadded.py"],
    "out of memory": ["tests/training/test_memory.py"],
    "resume": ["tests/training/checkpoint/test_manager.py"],
    "FSDP on one device": ["tests/training/distributed/test_processes.py"],
    "compile and CUDA graphs": ["tests/training/acceleration/test_compile.py"],
}
PACKAGES = ("flash-attn", "mamba-ssm", "causal-conv1d", "triton")
# A part with one of these states is not run again. A part is "skipped" if all its tests are, for
# example because a package is not installed.
FINISHED = {"ok", "skipped"}
LEFT = "not run yet"


def main() -> int:
    """Run the command line; return 0 only if all parts are finished and no test failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cuda", "cpu"], default=found)
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "gpu-check")
    parser.add_argument("--minutes", type=float, default=10, help="limit of the whole check")
    parser.add_argument("--part-minutes", type=float, default=4, help="limit of each part")
    parser.add_argument("--parts", nargs="+", help="only these, such as 'precision'")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA GPU; --device cpu rehearses the check without one")
    names = [*TESTS, *WORKS]
    if unknown := set(args.parts or ()) - set(names):
        parser.error(f"unknown part '{unknown.pop()}'; the parts are {', '.join(names)}")
    check = Check(args.output, args.device)
    deadline = time.monotonic() + 60 * args.minutes
    for name in args.parts or names:
        check.run(name, min(60 * args.part_minutes, deadline - time.monotonic()))
    print(f"\n{check.markdown()}\nwritten to {check.folder}/gpu_check.md and gpu_check.json")
    wanted = [check.parts.get(name, {}).get("state") for name in args.parts or names]
    if None in wanted:
        print("not everything was run: the same command continues")
    return 0 if set(wanted) <= FINISHED else 1


class Check:
    """A check, of which an earlier call may have finished some parts.

    Attributes:
        parts: results by name. `state` is "ok", "skipped", "failed" or "time limit"; `row` is a row
            of the table of speeds.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device
        self.environment = describe(device)
        self.parts: dict[str, dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "gpu_check.json"
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if before.get("environment") == self.environment:
            self.parts = {n: p for n, p in before["parts"].items() if p["state"] in FINISHED}
        elif before:
            print("code, packages or device have changed: starting over")
        self.save()

    def run(self, name: str, seconds: float) -> None:
        """Run a part that is not finished, for at most `seconds`, and write the files."""
        if name in self.parts:
            print(f"{name}: {self.parts[name]['state']} before")
            return
        if seconds <= 0:
            return
        began = time.monotonic()
        print(f"{name} ...", flush=True)
        found = self._measure(name, seconds) if name in WORKS else self._test(name, seconds)
        self.parts[name] = {**found, "seconds": round(time.monotonic() - began)}
        print(f"{name}: {found['state']} {found['detail']}", flush=True)
        self.save()

    def _test(self, name: str, seconds: float) -> dict[str, Any]:
        report = self.folder / "tests.xml"
        report.unlink(missing_ok=True)
        command = ["-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
        done = self._call(name, [*command, *TESTS[name]], seconds)
        return done if done["state"] == "time limit" else read_tests(report, done)

    def _measure(self, name: str, seconds: float) -> dict[str, Any]:
        figures = self.folder / "peer.json"
        figures.unlink(missing_ok=True)
        script = str(ROOT / "benchmarks" / "peer.py")
        options = ["--device", self.device, "--works", name, "--json", str(figures)]
        done = self._call(name, [script, *options], seconds)
        if done["state"] == "ok":
            (done["row"],) = json.loads(figures.read_text(encoding="utf-8"))["sections"][0]["rows"]
        return done

    def _call(self, name: str, arguments: list[str], seconds: float) -> dict[str, Any]:
        """Run Python with a log file; at the time limit, kill it and the processes it started."""
        log = self.folder / f"{name.replace(' ', '_').replace(',', '')}.log"
        # A killed compiler leaves an incomplete file, which torch.compile would load later.
        compiled = self.folder / "compiled"
        environment = {**os.environ, "GPU_CHECK_DEVICE": self.device,
                       "TORCHINDUCTOR_CACHE_DIR": str(compiled / "inductor"),
                       "TRITON_CACHE_DIR": str(compiled / "triton")}  # fmt: skip
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *arguments], stdout=output, stderr=subprocess.STDOUT, cwd=ROOT,
                env=environment, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                detail = f"stopped after {seconds:.0f} s (--minutes, --part-minutes)"
                return {"state": "time limit", "detail": detail}
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    shutil.rmtree(compiled, ignore_errors=True)
        return {"state": "failed", "detail": f"see {log.name}"} if code else OK.copy()

    def save(self) -> None:
        """Write JSON and Markdown."""
        found = {"title": self.title, "contains_gpu_figures": self.device == "cuda",
                 "environment": self.environment, "parts": self.parts}  # fmt: skip
        text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.folder / "gpu_check.json", text)
        write_atomically(self.folder / "gpu_check.md", self.markdown())

    @property
    def title(self) -> str:
        """The title of the page."""
        if self.device == "cpu":
            return "GPU check, rehearsed on a CPU: contains no GPU figures"
        return f"GPU check: {self.environment['device']}"

    def markdown(self) -> str:
        """Return the page with environment, tests and speed."""
        versions = {**self.environment["packages"], **self.environment["gpu_packages"]}
        known = ", ".join(f"{name} {x}" if x else f"no {name}" for name, x in versions.items())
        gpu = self.environment["gpu"]
        machine = f"{gpu or 'no GPU'}; {self.environment['processor']}, "
        machine += f"{self.environment['cores']} cores; "
        machine += f"commit {self.environment['commit']}; {known}."
        tests, speed, problems = [], [], []
        for name in [*TESTS, *WORKS]:
            part = self.parts.get(name, {"state": LEFT, "detail": "", "seconds": None})
            if name in TESTS:
                row = {"tests": name, "state": part["state"], "passed": part.get("passed"),
                       "skipped": part.get("skipped"), "failed": part.get("failed"),
                       "s": part["seconds"], "remarks": part["detail"]}  # fmt: skip
                tests.append(row)
            elif "row" in part:
                speed.append(part["row"])
            else:
                problems.append(f"- {name}: {part['state']} {part['detail']}".rstrip())
        lines = [f"# {self.title}", machine, "## Tests", markdown_table(tests), "## Speed"]
        lines += [NOTE, markdown_table(speed)] if speed else []
        return "\n\n".join([*lines, *(["\n".join(problems)] if problems else [])]) + "\n"


OK: dict[str, Any] = {"state": "ok", "detail": ""}


def describe(device: str) -> dict[str, Any]:
    """Return the machine, the versions and digests of the code as JSON values."""
    found = describe_environment(torch.device(device))
    folders = ("kinopoisk_ft", "tests", "benchmarks")
    found["code"] = [digest_content(ROOT / folder, "*.py") for folder in folders]
    found["gpu_packages"] = {name: installed_version(name) for name in PACKAGES}
    found["gpu"] = None
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        found["gpu"] = (
            f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute capability "
            f"{gpu.major}.{gpu.minor}, CUDA {torch.version.cuda}"
        )
    return found


def installed_version(name: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def read_tests(report: Path, done: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a part, with the numbers of tests in pytest's JUnit file.

    Args:
        done: how pytest ended.
    """
    if not report.exists():
        return {"state": "failed", "detail": f"pytest ended early; {done['detail']}"}
    cases = ET.parse(report).findall(".//testcase")
    bad = [case.get("name", "") for case in cases if {"failure", "error"} & {x.tag for x in case}]
    skips = [x.get("message", "") for case in cases for x in case if x.tag == "skipped"]
    remarks = [f"failed: {name}" for name in bad] + sorted(set(skips))
    passed = len(cases) - len(bad) - len(skips)
    # pytest also fails if it finds no test.
    state = "failed" if bad or done["state"] != "ok" else "ok" if passed else "skipped"
    return {"state": state, "passed": passed, "skipped": len(skips), "failed": len(bad),
            "detail": "; ".join([*remarks, done["detail"]]).strip("; ")}  # fmt: skip


if __name__ == "__main__":
    # A batch system may send SIGTERM. The exit then also kills the running part.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
