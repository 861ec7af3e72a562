"""Feed damaged and hostile input to the readers of this package, guided by code coverage.

    python tools/fuzz [TARGET ...] --minutes 3 --seed 1 [--json FILE] [--markdown FILE]

Atheris chooses bytes from which Hypothesis builds an input: a table, a config, a model folder, a
checkpoint, an event log, predictions, a tokenizer or a text. Each input must work or end with a
UserError. Any other exception, code of the input that runs, a connection, a file read next to the
input or written elsewhere, a valid file that is lost, a hang and a crash of the process are errors.
The first input of each distinct error is saved in outputs/fuzz/TARGET/errors, and all inputs that
reach new code in outputs/fuzz/TARGET/corpus, with which the next run starts.

    python tools/fuzz TARGET --replay outputs/fuzz/TARGET/errors/ID/buffer.bin
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import worker
from worker import COUNT, COVERAGE, ERRORS, ROOT, Runner

TARGETS = ("tables", "configs", "model_folders", "checkpoints", "event_logs", "predictions",
           "base_models", "texts")  # fmt: skip
OUT = ROOT / "outputs" / "fuzz"
# Random buffers with which an empty corpus starts, and their largest size in bytes.
FIRST, LARGEST = 64, 2048
# Seconds until an input counts as a hang, and MiB of memory that it may take.
HANG, MEMORY = 300, 6000
# The table in the documentation is between these two lines.
START, END = "<!-- fuzz -->", "<!-- /fuzz -->"


def main() -> int:
    """Fuzz each target in turn; return 1 if an error was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--minutes", type=float, default=3.0, help="for each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one saved input")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the results to this file")
    parser.add_argument("--markdown", type=Path, metavar="FILE",
                        help="write the table of the JSON file into this page")  # fmt: skip
    args = parser.parse_args()
    names, args.out = args.targets or list(TARGETS), args.out.absolute()
    if unknown := {*names} - {*TARGETS}:
        parser.error(f"unknown target {', '.join(sorted(unknown))}")
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
                   "MLFLOW_DISABLE_TELEMETRY": "true"}  # fmt: skip
    worker.preload()
    if args.replay:
        folder = args.out / names[0]
        shutil.rmtree(folder / "replay", ignore_errors=True)
        run_worker(lambda: Runner(names[0], folder / "replay").run(args.replay.read_bytes()))
        return show_errors(folder / "replay")
    new = []
    for name in names if args.minutes else ():
        new.append(fuzz(name, args.out / name, args.minutes, args.seed))
        print(json.dumps(new[-1], ensure_ascii=False), flush=True)
    known = json.loads(args.json.read_text()) if args.json and args.json.exists() else []
    if args.json:
        args.json.write_text(json.dumps(known + new, indent=1, ensure_ascii=False) + "\n")
    table = make_table(known + new)
    print(table)
    if args.markdown:
        before, _, rest = args.markdown.read_text("utf-8").partition(START)
        after = rest.partition(END)[2]
        args.markdown.write_text(f"{before}{START}\n\n{table}\n\n{END}{after}", "utf-8")
    return int(any(result["errors"] for result in new))


def fuzz(name: str, out: Path, minutes: float, seed: int) -> dict[str, Any]:
    """Fuzz one target, and start its process again after each crash and hang."""
    for old in (ERRORS, COUNT, COVERAGE):
        shutil.rmtree(out / old, ignore_errors=True) if (out / old).is_dir() else (
            out / old
        ).unlink(missing_ok=True)
    corpus = out / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    if not any(corpus.iterdir()):
        rng = random.Random(seed)
        for number in range(FIRST):
            (corpus / f"{number}").write_bytes(rng.randbytes(rng.randint(1, LARGEST)))
    end, log = time.monotonic() + 60 * minutes, out / "worker.log"
    log.unlink(missing_ok=True)
    while not (out / COVERAGE).exists() and (left := end - time.monotonic()) > 0:
        options = [f"-seed={seed}", f"-timeout={HANG}", "-len_control=0", "-report_slow_units=9999",
                   f"-max_len={2 * LARGEST}",
                   f"-rss_limit_mb={MEMORY}", f"-artifact_prefix={out}/died-"]  # fmt: skip
        code = run_worker(partial(worker.fuzz, name, out, corpus, left, options), log)
        keep_crash(out, code, log)
        if code and not (out / COUNT).exists():
            raise SystemExit(f"{name} cannot start: see {log}")
        seed += 1
    show_errors(out)
    share = json.loads((out / COVERAGE).read_text()) if (out / COVERAGE).exists() else 0.0
    return {
        "target": name,
        "executions": int((out / COUNT).read_text()),
        "coverage": round(share, 1),
        "errors": sorted(read_errors(out)),
        "minutes": minutes,
        "commit": git("rev-parse", "--short", "HEAD"),
    }


def run_worker(work: Callable[[], None], log: Path | None = None) -> int:
    """Do the work in a fork of this process, and return its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        if log:
            console = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            for number in (1, 2):
                os.dup2(console, number)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def keep_crash(out: Path, code: int, log: Path) -> None:
    """Record an input that ended the process: a hang, too much memory or a crash."""
    for number, file in enumerate(sorted(out.glob("died-*"))):
        kind = file.name.removeprefix("died-").partition("-")[0]
        trace = log.read_text(errors="replace")[-6000:]
        frames = re.findall(r'File "[^"]*/kinopoisk_ft/([^"]+)", line \d+,? in (\w+)', trace)
        where = f" in {Path(frames[0][0]).name}:{frames[0][1]}" if frames else ""
        kept = out / ERRORS / f"{file.name}-{number}"
        kept.mkdir(parents=True)
        file.rename(kept / "buffer.bin")
        (kept / "error.txt").write_text(f"{kind}{where}, exit code {code}\n\n{trace}")


def read_errors(out: Path) -> dict[str, Path]:
    """Return the distinct errors of a target, each with its folder."""
    found = sorted((out / ERRORS).glob("*/error.txt"))
    return {file.read_text(errors="replace").partition("\n")[0]: file.parent for file in found}


def show_errors(out: Path) -> int:
    """Print the distinct errors; return 1 if there are any."""
    errors = read_errors(out)
    for name, folder in errors.items():
        print(f"ERROR {name}\n  {folder}")
    return int(bool(errors))


def git(*command: str) -> str:
    """Return the output of a Git command."""
    done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def make_table(results: list[dict[str, Any]]) -> str:
    """Return the table of all runs: errors that the last run of a target lacks are fixed."""
    heads = ("target", "executions", "minutes", "line coverage", "errors found", "fixed", "commit")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in dict.fromkeys(result["target"] for result in results):
        runs = [result for result in results if result["target"] == name]
        found = {error for run in runs for error in run["errors"]}
        last = runs[-1]
        cells = [name.replace("_", " "), f"{sum(run['executions'] for run in runs):,}",
                 f"{sum(run['minutes'] for run in runs):g}", f"{last['coverage']:.0f}%",
                 str(len(found)), str(len(found - {*last["errors"]})), last["commit"]]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
