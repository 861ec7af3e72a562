"""The project against a Hugging Face Trainer user: same rows, model, batch, steps and rate.

    python benchmarks/peer.py --peer PEER.py --model FOLDER --data FILE --json peer.json

Both run as whole processes in alternation and say of themselves how long training took: the peer
with the validations and checkpoints that belong to it, the project with those and with the pass
over frozen layers. The caches of the project start empty each time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common.rate import flop_per_token, matrix_rate
from common.report import Section, command_line, publish
from common.shapes import BASE, TINY2, random_bert
from common.sides import FROZEN, Experiment, absent, add_inputs, run_peer, run_project
from transformers import BertConfig

from kinopoisk_ft.training.precision import DTYPES, Precision

CPU = torch.device("cpu")
WORKS = {
    "tiny2-256": Experiment("full", shape=TINY2, steps=60),
    "tiny2-512": Experiment("full", shape=TINY2, steps=30, max_length=512),
    "e5-full": Experiment("full", limit=400, epochs=1),
    "e5-lora": Experiment("lora", limit=400, epochs=1, lr=1e-3),
    "e5-freeze": Experiment("frozen", limit=300, epochs=3, project=FROZEN),
    "e5-head": Experiment("frozen", limit=300, epochs=5, layers=12, project=FROZEN),
    "base-full": Experiment("full", shape=BASE, steps=4),
}
QUICK = Experiment("lora", limit=200, steps=2, max_length=32)


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = command_line(__doc__)
    add_inputs(parser)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--rounds", type=int, default=1, help="of all sides, in alternation")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "auto"],
                        help="of the project; the peer's is fp32")  # fmt: skip
    args = parser.parse_args()
    if absent(args):
        return 0
    works = {"quick": QUICK} if args.quick else {name: WORKS[name] for name in args.works}
    rows = [row for name, work in works.items() for row in compare(name, work, args)]
    remark = (
        "Batches of 16; seconds of training, medians; the peer pads every review to the full "
        "length and is fp32; memory is the process's peak, MiB."
    )
    publish("Against a Hugging Face Trainer user", [Section("Training", NOTE, rows)], args, remark)
    return 0


NOTE = (
    "tiny2 is of the shape of rubert-tiny2 (3 layers, 312 wide), base of rubert-base (12 layers, "
    "768), both from random weights; e5 is the pretrained e5-small-ru. In e5-freeze (10 of 12 "
    "layers, 3 epochs) and e5-head (5 epochs) the project runs frozen layers once "
    "(`trainer.prefix_cache=fp16`), which is in its seconds; evaluation there starts from their "
    "states, too. In the last layer it computes the token that the head reads. Ratios are peer / "
    "project; `auto` took the precision that is faster here. "
    "`share of matrix rate`: the work of the linear layers on real tokens in a training step, as a "
    "part of what the machine does in that time on products of 4096 x 4096 matrices in that "
    "precision. Both train a fresh pooler and classifier at the rate of all else; the peer's LoRA "
    "leaves the pooler as it is. These runs are too short to learn anything, so that they have no "
    "scores here: `quality.py` compares those."
)


def rate(kind: str) -> float:
    """Return the machine's rate of matrix products in a precision of the project's."""
    return matrix_rate(DTYPES[Precision(kind, CPU).kind])


def compare(name: str, work: Experiment, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Run all sides of one work in alternation; yields a row for each precision."""
    with tempfile.TemporaryDirectory() as folder:
        model = args.model
        if work.shape:
            model = random_bert(work.shape, args.model, Path(folder), work.max_length)
        peers: list[dict[str, float]] = []
        ours: dict[str, list[dict[str, float]]] = {kind: [] for kind in args.precisions}
        rates = dict.fromkeys(args.precisions, 0.0)
        for _ in range(args.rounds):
            peers.append(run_peer(work, args.peer, model, args.data))
            for kind, runs in ours.items():
                before = rate(kind)  # the machine's own speed changes from minute to minute
                runs.append(run_project(work, model, args.data, kind))
                rates[kind] = max(rates[kind], before, rate(kind))
        flop = flop_per_token(BertConfig.from_pretrained(model), work)
    for kind, runs in ours.items():
        row: dict[str, Any] = {"work": name, "precision": kind}
        for key, label in (("seconds", "training"), ("eval_seconds", "evaluation")):
            if key not in peers[0]:
                row |= {f"{label} ratio": "-"}
                continue
            theirs, mine = (statistics.median(r[key] for r in side) for side in (peers, runs))
            if label == "training":
                row |= {"peer s": round(theirs, 1), "project s": round(mine, 1)}
            row |= {f"{label} ratio": round(theirs / mine, 2)}
        tokens = statistics.median(run["tokens_per_second"] for run in runs)
        share = flop * tokens / rates[kind]
        row |= {"share of matrix rate": round(share, 2) if share else "-"}
        row |= {"peer MiB": round(peers[-1]["mib"]), "project MiB": round(runs[-1]["mib"])}
        print(json.dumps(row), file=sys.stderr)
        yield row


if __name__ == "__main__":
    sys.exit(main())
