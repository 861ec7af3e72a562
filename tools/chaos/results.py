"""Read and write the outcomes of experiments, and make the table of the documentation from them."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from faults import FAULTS

OUTCOMES = ("survived", "refused", "reported", "lost", "hang", "traceback")
FAILURES = OUTCOMES[3:]
# The row of the table for experiments whose run ended before the fault.
NO_FAULT = "none: the run ended first"
# The table in the documentation is between these two lines.
START, END = "<!-- chaos -->", "<!-- /chaos -->"


@dataclass(frozen=True)
class Outcome:
    """How an experiment ended, a line of the results.

    Args:
        seed: seed of the schedule.
        number: number of the experiment in the schedule.
        hit: whether the fault was injected; otherwise, the run ended before.
        what: the difference from the undisturbed run or the last lines of the console.
    """

    seed: int
    number: int
    commit: str
    kind: str
    fault: str
    phase: str
    hit: bool
    outcome: str
    what: str
    seconds: float


def read(file: Path) -> list[Outcome]:
    """Read the outcomes in a file; none if there is no file."""
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    return [Outcome(**json.loads(line)) for line in lines]


def add(outcome: Outcome, file: Path) -> None:
    """Print an outcome, and add it to a file, to which several processes write."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(asdict(outcome), ensure_ascii=False) + "\n")
    print(*asdict(outcome).values(), sep=" | ", flush=True)


def get_commit() -> str:
    """Return the short name of the commit."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def make_table(outcomes: list[Outcome]) -> str:
    """Return the table of faults and outcomes, and how often each pair was hit."""
    hits = Counter((one.phase, one.fault) for one in outcomes if one.hit)
    often = Counter(min(3, times) for times in hits.values())
    tested = dict.fromkeys(f"{one.seed} ({one.commit})" for one in outcomes)
    lines = [
        f"{hits.total()} faults, seeds (commits) {', '.join(tested)}. Of {often.total()} pairs of "
        f"a phase and a fault, {often[3]} were hit at least three times, {often[2]} twice and "
        f"{often[1]} once.", "",
        f"| fault | injected | {' | '.join(OUTCOMES)} | fixed |",
        "|---" * (len(OUTCOMES) + 3) + "|"]  # fmt: skip
    for name in [*(fault.name for fault in FAULTS), NO_FAULT]:
        found = [one for one in outcomes if (one.fault if one.hit else NO_FAULT) == name]
        counts = Counter(one.outcome for one in found)
        fixed = sum(is_fixed(one, outcomes) for one in found)
        if found:
            cells = [name, len(found), *(counts[one] for one in OUTCOMES), fixed]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def is_fixed(one: Outcome, outcomes: list[Outcome]) -> bool:
    """Return whether an experiment failed, and its last repetition did not."""
    same = [other for other in outcomes if (other.seed, other.number) == (one.seed, one.number)]
    return one.outcome in FAILURES and same[-1].outcome not in FAILURES


def write_table(outcomes: list[Outcome], page: Path) -> None:
    """Replace the table in a page."""
    before, _, rest = page.read_text("utf-8").partition(START)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{START}\n\n{make_table(outcomes)}\n\n{END}{after}", "utf-8")
