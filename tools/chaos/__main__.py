"""Disturb small runs in many ways, and check that nothing is lost.

    python tools/chaos --minutes 20 --seed 1 [--workers 2] [--json FILE] [--markdown FILE]

Each experiment starts a run, injects a fault in a phase, and continues with the same command until
the run has ended. Then the weights, the metrics of each step, the predictions and the MLflow store
must be those of an undisturbed run, with nothing missing and nothing twice. A fault that is refused
with an error message is allowed, and so are a warning that names the damaged line of an event log,
and other weights because less memory was free; a traceback, a hanging process and any other
difference are not.

The schedule injects each fault once in each phase, in an order and in runs that the seed draws, and
then starts over. The same seed gives the same schedule, for any number of workers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import runs
from faults import FAULTS
from inject import COUNTS, FIRED, WITH_CHECKPOINT, Injector
from results import FAILURES, Outcome, add, get_commit, make_table, read, write_table
from schedule import Plan, schedule

ATTEMPTS = 4  # a run that has not ended after so many starts counts as refused or lost
DISK_MB = 96
ROOT = Path(__file__).resolve().parents[2]
# Warnings that name what a damaged event log lacks.
REPORTED = ("skipping a damaged line", "has lost its last")
# A line of run.log: less memory was free, which changes rounding and dropout masks.
SMALLER_BATCHES = re.compile(r"training uses \d+ rows at once")
DESCRIBED = "described.json"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20, help="of experiments (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the schedule (%(default)s)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)),
                        help="experiments at once (%(default)s)")  # fmt: skip
    parser.add_argument("--faults", nargs="+", choices=[f.name for f in FAULTS], help="only these")
    parser.add_argument("--kinds", nargs="+", choices=runs.KINDS, default=list(runs.KINDS))
    parser.add_argument("--numbers", nargs="+", type=int, help="only these of the schedule")
    parser.add_argument("--break-checkpoints", action="store_true",
                        help="write them in place and without digests, to see losses")  # fmt: skip
    parser.add_argument("--json", type=Path, help="add a line for each experiment to this file")
    parser.add_argument("--markdown", type=Path, metavar="FILE",
                        help="write the table of the JSON file into this page")  # fmt: skip
    args = parser.parse_args()
    if args.break_checkpoints:
        break_checkpoints()
    # A TemporaryDirectory would be deleted at the exit of each fork.
    root = Path(tempfile.mkdtemp(prefix="chaos_"))
    file = (args.json or root / "results.jsonl").absolute()
    known = len(read(file))
    try:
        if args.minutes:
            disturb(root, args, file)
        outcomes = read(file)
    finally:
        shutil.rmtree(root)
    print(make_table(outcomes))
    if args.markdown:
        write_table(outcomes, args.markdown)
    if any(one.outcome in FAILURES for one in outcomes[known:]):
        sys.exit(1)


def disturb(root: Path, args: argparse.Namespace, file: Path) -> None:
    """Run experiments until the time is over, and add their outcomes to the file."""
    commit = get_commit()
    runs.preload(root)
    places = {kind: root / f"reference{number}" for number, kind in enumerate(args.kinds)}

    def train(worker: int) -> None:
        for kind in args.kinds[worker :: args.workers]:
            train_reference(places[kind], kind)

    in_parallel(args.workers, train)
    counts = {kind: json.loads((place / COUNTS).read_text()) for kind, place in places.items()}
    expected = {kind: json.loads((place / DESCRIBED).read_text()) for kind, place in places.items()}
    end = time.monotonic() + 60 * args.minutes
    chosen = [f for f in FAULTS if f.possible and (args.faults is None or f.name in args.faults)]

    def work(worker: int) -> None:
        plans: Iterator[Plan] = schedule(counts, chosen, random.Random(args.seed))
        if args.numbers:
            last = itertools.islice(plans, max(args.numbers) + 1)
            plans = (plan for plan in last if plan.number in args.numbers)
        for plan in itertools.islice(plans, worker, None, args.workers):
            if time.monotonic() > end:
                return
            with place(root / str(plan.number), plan) as folder:
                started = time.monotonic()
                moment = int(plan.moment * counts[plan.kind][plan.phase])
                hit, outcome, what = experiment(folder, plan, moment, expected[plan.kind])
            phase = plan.phase.removesuffix(WITH_CHECKPOINT)
            what = what.replace(f"{root}/", "").replace(f"{ROOT}/", "")
            found = Outcome(args.seed, plan.number, commit, plan.kind, plan.fault.name, phase,
                            hit, outcome, what, round(time.monotonic() - started, 1))  # fmt: skip
            add(found, file)

    in_parallel(args.workers, work)


def in_parallel(workers: int, work: Callable[[int], None]) -> None:
    """Call a function with the number of each worker, in forks of this process."""
    children = [runs.fork(partial(work, number)) for number in range(workers)]
    failed = [os.waitpid(child, 0)[1] for child in children]
    if any(failed):
        sys.exit("a worker failed; its message is above")


@contextmanager
def place(folder: Path, plan: Plan) -> Iterator[Path]:
    """Create the folder of an experiment and delete it afterwards."""
    folder.mkdir()
    if plan.fault.needs_disk:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
        subprocess.run(mount, check=True)
    try:
        runs.create_folder(folder, plan.kind)
        yield folder
    finally:
        if plan.fault.needs_disk:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def train_reference(folder: Path, kind: str) -> None:
    """Train without a fault, count the events of each phase, and describe what was left."""
    runs.create_folder(folder, kind)
    counter = Injector(folder, "", 0, lambda: None)
    code = runs.wait(runs.start(folder, runs.command(kind, folder, counter)))
    if code != 0:
        raise RuntimeError(f"{kind}: exit code {code}\n{(folder / runs.CONSOLE).read_text()}")
    describe(folder)


def describe(folder: Path) -> Any:
    """Return what a run left, read in another process, whose threads do not matter."""
    file = folder / DESCRIBED

    def work() -> int:
        file.write_text(json.dumps(runs.describe(folder)))
        return 0

    if runs.wait(runs.start(folder, work)) != 0:
        return (folder / runs.CONSOLE).read_text()[-1000:]
    return json.loads(file.read_text())


def experiment(folder: Path, plan: Plan, moment: int, expected: Any) -> tuple[bool, str, str]:
    """Disturb a run and continue it; return whether there was a fault, outcome and details."""
    fault, rng = plan.fault, random.Random(plan.seed)
    injector = Injector(folder, plan.phase, moment, partial(fault.act, folder, rng))
    train = runs.command(plan.kind, folder)
    children = [runs.start(folder, runs.command(plan.kind, folder, injector))]
    if fault.twice and wait_for_fault(folder, children[0]):
        children.append(runs.start(folder, train))
    codes = [runs.wait(child) for child in children]
    hit = (folder / FIRED).exists()
    (folder / "filler").unlink(missing_ok=True)
    damaged = fault.after(folder, rng) if fault.after and hit else ""
    hit = hit and bool(damaged or not fault.after)
    while not runs.is_finished(folder) and None not in codes and len(codes) < ATTEMPTS:
        codes.append(runs.wait(runs.start(folder, train)))
    console = (folder / runs.CONSOLE).read_text(errors="replace")
    if None in codes:
        return hit, "hang", tail(folder)
    if "Traceback (most recent call last)" in console:
        return hit, "traceback", tail(folder)
    if not runs.is_finished(folder):
        refused = "error:" in console and "to do:" in console
        return hit, "refused" if refused else "lost", f"{damaged} {tail(folder)}"
    runs.wait(runs.start(folder, runs.sync(folder)))
    # Two processes may run one after the other; then each of them is a run of the store.
    store = expected["store"] * max(1, codes.count(0))
    difference = compare(expected | {"store": store}, describe(folder))
    outcome = "lost" if difference else "survived"
    if difference.startswith(("/log", "/store")) and any(one in console for one in REPORTED):
        outcome = "reported"
    if difference and SMALLER_BATCHES.search((folder / "run/run.log").read_text(errors="replace")):
        outcome = "reported"
    return hit, outcome, f"{damaged} {difference}".strip()


def wait_for_fault(folder: Path, child: int) -> bool:
    """Wait for the moment of the fault; return False if the run has ended before."""
    while not (folder / FIRED).exists():
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False
        time.sleep(0.005)
    return True


def tail(folder: Path) -> str:
    """Return the last traceback or the last lines of the console, in one line."""
    text = (folder / runs.CONSOLE).read_text(errors="replace")
    lines = (text.partition("Traceback")[2] or text).splitlines()
    return " / ".join(line.strip() for line in lines[-8:])[-800:]


def compare(expected: Any, found: Any, where: str = "") -> str:
    """Return the first difference, or an empty string."""
    if isinstance(expected, dict) and isinstance(found, dict):
        if expected.keys() != found.keys():
            return f"{where}: keys {sorted(expected)} became {sorted(found)}"
        parts = (compare(expected[key], found[key], f"{where}/{key}") for key in expected)
        return next((part for part in parts if part), "")
    if expected == found:
        return ""
    if isinstance(expected, list) and isinstance(found, list):
        if len(expected) == len(found) and all(isinstance(one, dict) for one in expected):
            pairs = enumerate(zip(expected, found, strict=True))
            parts = (compare(old, new, f"{where}/{place}") for place, (old, new) in pairs)
            return next((part for part in parts if part), "")
        lost = [one for one in expected if one not in found]
        more = [one for one in found if one not in expected]
        return f"{where}: {len(expected)} became {len(found)}, lost {lost[:3]}, more {more[:3]}"
    return f"{where}: {str(expected)[:300]} became {str(found)[:300]}"


def break_checkpoints() -> None:
    """Let checkpoints be written in place, manifest first, and be read without their digests."""
    from kinopoisk_ft.training.checkpoint import folder as module

    def write(self: Any, tensors: Any, plain: Any, external: Any) -> None:
        number = 1 + max((int(name.name.split("-")[1]) for name in self.folders()), default=0)
        target = self.folder / f"checkpoint-{number:06}"
        target.mkdir()
        names = dict.fromkeys((module.TENSORS, module.PLAIN), "")
        manifest = {"format": module.FORMAT, "files": names, "beside": dict(external)}
        module.write_json_durably(manifest, target / module.MANIFEST)
        module.write_json_durably(plain, target / module.PLAIN)
        module.write_tensors(tensors, target / module.TENSORS)

    module.CheckpointFolder.write = write  # type: ignore[method-assign]
    module.CheckpointFolder._find_problem = lambda self, folder: None  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
