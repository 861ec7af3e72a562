"""Compare the project with a Hugging Face Trainer: same rows, model, batch, steps, learning rate.

    python benchmarks/peer.py --model FOLDER --data FILE --json peer.json
    python benchmarks/peer.py --device cuda

Each run is a whole process, and the two sides (the project and its peer) alternate. Each process
reports how long its training took. This includes validation and checkpoints, and for the project
the pass through the frozen layers. The project's caches are empty at the start of each run.
With --device, only training is compared, on bundled reviews (`common/equal_flags.py`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import equal_flags
from common.rate import flop_per_token, matrix_rate
from common.report import Section, command_line, publish
from common.shapes import BASE, TINY2, random_bert
from common.sides import FROZEN, Experiment, absent, add_inputs, run_peer, run_project
from common.timing import ratios, take_turns
from transformers import BertConfig

from kinopoisk_ft.training.precision import DTYPES, Precision

CPU = torch.device("cpu")
WORKS = {
    "tiny2-256": Experiment("full", shape=TINY2, limit=800, epochs=1),
    "tiny2-512": Experiment("full", shape=TINY2, limit=400, epochs=1, max_length=512),
    "e5-full": Experiment("full", limit=400, epochs=1),
    "e5-lora": Experiment("lora", limit=400, epochs=1, lr=1e-3),
    "e5-freeze": Experiment("frozen", limit=300, epochs=3, project=FROZEN),
    "e5-head": Experiment("frozen", limit=300, epochs=5, layers=12, project=FROZEN),
    "base-full": Experiment("full", shape=BASE, limit=100, epochs=1),
}
QUICK = Experiment("lora", limit=50, max_length=32)


def main() -> int:
    """Run the command line; return the exit code."""
    parser = command_line(__doc__)
    add_inputs(parser)
    known = f"{', '.join(WORKS)}; with --device: {', '.join(equal_flags.WORKS)}"
    parser.add_argument("--works", nargs="+", metavar="WORK", help=known)
    parser.add_argument(
        "--device",
        choices=["cuda", "cpu"],
        help="only training, on bundled reviews; on a CPU, a tiny model",
    )
    parser.add_argument(
        "--rounds", type=int, default=1, help="how often each side runs (%(default)s)"
    )
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16", "auto"],
                        default=["fp32", "auto"],
                        help="of both sides; auto: what the project chooses here")  # fmt: skip
    args = parser.parse_args()
    choices = list(equal_flags.WORKS if args.device else WORKS)
    names = args.works or choices
    if unknown := set(names) - set(choices):
        parser.error(f"unknown work '{unknown.pop()}': choose from {', '.join(choices)}")
    if args.device:
        for option in ("rounds", "precisions", "quick"):
            if getattr(args, option) != parser.get_default(option):
                parser.error(f"--{option} has no effect with --device: leave it out")
        rows = list(equal_flags.compare(args.device, names))
        sections = [Section("Training", equal_flags.NOTE, rows)]
        publish("Against a Hugging Face Trainer with equal flags", sections, args, "")
        return 0
    if absent(args):
        return 0
    # What `auto` chooses may be in the list already.
    args.precisions = list({Precision(kind, CPU).kind: None for kind in args.precisions})
    works = {"quick": QUICK} if args.quick else {name: WORKS[name] for name in names}
    rows = [row for name, work in works.items() for row in compare(name, work, args)]
    remark = (
        f"Batches of 16. Rounds: {args.rounds}; in each, both sides run as whole processes, in "
        "alternating order. Seconds: training, with its validation and checkpoints; the median. "
        "MiB: peak memory of the process in all rounds; of the project, from tokenizing on."
    )
    section = Section("Training", NOTE, rows)
    publish("Comparison with a Hugging Face Trainer", [section], args, remark)
    return 0


NOTE = (
    "The peer is set up as a user who knows the Trainer would do it: the same precision as the "
    "project, padding to the longest review of a batch, batches of similar length, fused AdamW; in "
    "bf16, its test runs with weights in bf16. tiny2 has the shape of rubert-tiny2 (3 "
    "layers, width 312), base that of rubert-base (12 layers, width 768); both have random "
    "weights. e5 is the pretrained e5-small-ru. In e5-freeze (10 of 12 layers frozen, 3 epochs) "
    "and e5-head (all layers frozen, 5 epochs), the project runs the frozen layers once "
    "(`trainer.prefix_cache=fp16`): its seconds include this pass, and its evaluation starts from "
    "the cached states, too. In the last layer, the project computes only the token that the head "
    "reads. The project keeps freed memory in the process, which is its default; the peer has the "
    "defaults of glibc, as a user would run it. Ratios are peer / project: the median, and for "
    "training also the minimum and maximum, over rounds. The evaluation ratio is about the test "
    "reviews. `share of matrix rate`: the FLOPs of the linear layers on "
    "real tokens in a training step of the project, divided by the FLOPs that products of 4096 x "
    "4096 matrices in the same precision reach in the same time. Both sides train a new pooler and "
    "classifier with the learning rate of all other weights; the peer's LoRA does not train the "
    "pooler. These runs are too short to learn, so the table has no scores; `quality.py` compares "
    "scores."
)


def compare(name: str, work: Experiment, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Run the peer and the project alternately on one work; yield a row for each precision."""
    with tempfile.TemporaryDirectory() as folder:
        model = args.model
        if work.shape:
            model = random_bert(work.shape, args.model, Path(folder), work.max_length)
        flop = flop_per_token(BertConfig.from_pretrained(model), work)
        for kind in args.precisions:
            inputs = (work, model, args.data, kind)
            turns = {"peer": partial(run_peer, *inputs), "project": partial(run_rated, *inputs)}
            runs = take_turns(turns, args.rounds)
            row = {"work": name, "precision": kind, **describe(runs["peer"], runs["project"], flop)}
            print(json.dumps(row), file=sys.stderr)
            yield row


def run_rated(work: Experiment, model: Path, data: Path, kind: str) -> dict[str, float]:
    """Run the project; also return the FLOP/s of matrix products in the same precision."""
    # The speed of the machine changes from minute to minute: measure it twice.
    before = matrix_rate(DTYPES[kind])
    run = run_project(work, model, data, kind)
    return run | {"matrix_rate": max(before, matrix_rate(DTYPES[kind]))}


def describe(
    peer: Sequence[dict[str, float]], project: Sequence[dict[str, float]], flop: int
) -> dict[str, Any]:
    """Return the columns of a row from the runs of both sides, one per round."""
    seconds, tested = (
        [[run[key] for run in runs] for runs in (peer, project)]
        for key in ("seconds", "eval_seconds")
    )
    training = ratios(*seconds)
    shares = [flop * run["tokens_per_second"] / run["matrix_rate"] for run in project]
    return {
        "peer s": statistics.median(seconds[0]),
        "project s": statistics.median(seconds[1]),
        "training ratio": training["ratio"],
        "min": training["min"],
        "max": training["max"],
        "evaluation ratio": ratios(*tested)["ratio"],
        "share of matrix rate": statistics.median(shares) or None,
        "peer MiB": round(max(run["mib"] for run in peer)),
        "project MiB": round(max(run["mib"] for run in project)),
    }


if __name__ == "__main__":
    sys.exit(main())
