"""Disturb small runs in many ways, and check that nothing is lost.

    python tools/chaos --minutes 20 --seed 1 [--json FILE] [--markdown FILE]

Each experiment starts a run, injects a fault in a phase drawn by the seed, and continues with the
same command until the run has ended. Then the weights, the metrics of each step, the predictions
and the MLflow store must be those of an undisturbed run, with nothing missing and nothing twice. A
fault that is refused with an error message is allowed, and so is a warning that names the damaged
line of an event log; a traceback, a hanging process and any other difference are not. The same seed
gives the same schedule.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import runs
from faults import FAULTS, Fault
from inject import COUNTS, FIRED, PHASE, Injector

ATTEMPTS = 4  # a run that has not ended after so many starts counts as refused or lost
MOST_DELAY = 0.5  # seconds after the start of a phase, in which a kill between events may come
DISK_MB = 96
OUTCOMES = ("survived", "refused", "reported", "lost", "hang", "traceback")
# Warnings that name what a damaged event log lacks.
REPORTED = ("skipping a damaged line", "has lost its last")


@dataclass(frozen=True)
class Plan:
    """What one experiment does: a fault before an event of a phase.

    Args:
        moment: the number of events of the phase before the fault.
        seed: of everything else that is drawn, such as the bit that flips.
    """

    kind: str
    fault: Fault
    phase: str
    moment: int
    seed: int


@dataclass(frozen=True)
class Outcome:
    """How an experiment ended.

    Args:
        phase: the phase in which the fault was injected; "not reached" if the run ended before.
        what: the difference from the undisturbed run or the last lines of the console.
    """

    number: int
    kind: str
    fault: str
    phase: str
    outcome: str
    what: str
    seconds: float


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20, help="time limit (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the schedule (%(default)s)")
    parser.add_argument("--faults", nargs="+", choices=[f.name for f in FAULTS], help="only these")
    parser.add_argument("--kinds", nargs="+", choices=runs.KINDS, default=list(runs.KINDS))
    parser.add_argument("--break-checkpoints", action="store_true",
                        help="write them in place and without digests, to see losses")  # fmt: skip
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    if args.break_checkpoints:
        break_checkpoints()
    end = time.monotonic() + 60 * args.minutes
    # A TemporaryDirectory would be deleted at the exit of each fork.
    root = Path(tempfile.mkdtemp(prefix="chaos_"))
    chosen = [fault for fault in FAULTS if args.faults is None or fault.name in args.faults]
    outcomes = []
    try:
        runs.preload()
        for outcome in experiments(root, args.kinds, chosen, random.Random(args.seed), end):
            print(*asdict(outcome).values(), sep=" | ", flush=True)
            outcomes.append(outcome)
    finally:
        shutil.rmtree(root)
    text = table(outcomes, args.seed)
    print(text)
    if args.json:
        args.json.write_text(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(text + "\n")
    if any(one.outcome not in ("survived", "refused") for one in outcomes):
        sys.exit(1)


def experiments(
    root: Path, kinds: list[str], chosen: list[Fault], rng: random.Random, end: float
) -> Iterator[Outcome]:
    """Yield the outcomes of experiments until the time is over."""
    pairs = list(itertools.product(kinds, chosen))
    references: dict[str, tuple[Any, dict[str, int]]] = {}
    for number in itertools.count():
        # Each fault meets each kind once before a pair is repeated.
        if number % len(pairs) == 0:
            rng.shuffle(pairs)
        kind, fault = pairs[number % len(pairs)]
        if time.monotonic() > end:
            return
        if kind not in references:
            references[kind] = reference(root / f"reference{len(references)}", kind)
        expected, counts = references[kind]
        phase = rng.choice(sorted(counts))
        plan = Plan(kind, fault, phase, rng.randrange(counts[phase]), rng.randrange(2**32))
        with place(root / str(number), fault) as folder:
            started = time.monotonic()
            found = experiment(folder, plan, expected)
            seconds = round(time.monotonic() - started, 1)
            yield Outcome(number, kind, fault.name, *found, seconds)


@contextmanager
def place(folder: Path, fault: Fault) -> Iterator[Path]:
    """Create the folder of an experiment and delete it afterwards."""
    folder.mkdir()
    if fault.needs_disk:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
        subprocess.run(mount, check=True)
    try:
        yield folder
    finally:
        if fault.needs_disk:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def reference(folder: Path, kind: str) -> tuple[Any, dict[str, int]]:
    """Train without a fault; return what was left, and the number of events of each phase."""
    folder.mkdir()
    counter = Injector(folder, "", 0, lambda: None)
    code = runs.wait(runs.start(folder, runs.command(kind, folder), counter))
    if code != 0:
        sys.exit(f"{kind}: exit code {code}\n{(folder / runs.CONSOLE).read_text()}")
    return describe(folder), json.loads((folder / COUNTS).read_text())


def describe(folder: Path) -> Any:
    """Return what a run left, read in another process, whose threads do not matter."""
    file = folder / "described.json"

    def work() -> int:
        file.write_text(json.dumps(runs.describe(folder)))
        return 0

    if runs.wait(runs.start(folder, work)) != 0:
        return (folder / runs.CONSOLE).read_text()[-1000:]
    return json.loads(file.read_text())


def experiment(folder: Path, plan: Plan, expected: Any) -> tuple[str, str, str]:
    """Disturb a run and continue it; return phase, outcome and what was found."""
    fault, rng = plan.fault, random.Random(plan.seed)
    train = runs.command(plan.kind, folder)
    at_event = fault.at_event and not fault.twice and not fault.meanwhile
    act = partial(fault.act, folder, rng)
    injector = Injector(folder, plan.phase if at_event else "", plan.moment, act)
    first = runs.start(folder, train, injector)
    second = runs.start(folder, train) if fault.twice else None
    if not at_event:
        wait_for_phase(folder, plan.phase, first)
    if fault.meanwhile:
        fault.meanwhile(folder)
    elif not fault.at_event:
        time.sleep(rng.random() * MOST_DELAY)
        os.kill(first, signal.SIGKILL)
    codes = [runs.wait(child) for child in (first, second) if child]
    reached = not at_event or (folder / FIRED).exists()
    phase = plan.phase if reached else "not reached"
    (folder / "filler").unlink(missing_ok=True)
    damaged = fault.after(folder, rng) if fault.after else ""
    while not runs.is_finished(folder) and None not in codes and len(codes) < ATTEMPTS:
        codes.append(runs.wait(runs.start(folder, train)))
    console = (folder / runs.CONSOLE).read_text(errors="replace")
    if None in codes:
        return phase, "hang", tail(folder)
    if "Traceback (most recent call last)" in console:
        return phase, "traceback", tail(folder)
    if not runs.is_finished(folder):
        refused = "error:" in console and "to do:" in console
        return phase, "refused" if refused else "lost", f"{damaged} {tail(folder)}"
    runs.wait(runs.start(folder, runs.sync(folder)))
    # Two processes may run one after the other; then each of them is a run of the store.
    store = expected["store"] * max(1, codes.count(0))
    difference = compare(expected | {"store": store}, describe(folder))
    outcome = "lost" if difference else "survived"
    if difference.startswith(("/log", "/store")) and any(one in console for one in REPORTED):
        outcome = "reported"
    return phase, outcome, f"{damaged} {difference}".strip()


def wait_for_phase(folder: Path, phase: str, child: int) -> None:
    """Wait until a run enters a phase or has ended."""
    while Path(f"/proc/{child}/stat").read_text().split(")")[1].split()[0] != "Z":
        if (folder / PHASE).read_bytes().decode().strip() == phase or phase == "delivery":
            return
        time.sleep(0.005)


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


def table(outcomes: list[Outcome], seed: int) -> str:
    """Return the table of faults and outcomes."""
    lines = [f"Seed {seed}: {len(outcomes)} experiments.", "",
             "| fault | injected | " + " | ".join(OUTCOMES) + " |",
             "|---" * (len(OUTCOMES) + 2) + "|"]  # fmt: skip
    for name in [fault.name for fault in FAULTS]:
        found = Counter(one.outcome for one in outcomes if one.fault == name)
        if found:
            cells = [name, str(found.total()), *(str(found[one]) for one in OUTCOMES)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
