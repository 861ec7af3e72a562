"""Compare the test scores of the project with those of a Hugging Face Trainer, over seeds.

    python benchmarks/quality.py --json quality.json --markdown quality.md

With `--approaches freeze`, compare the prefix cache (frozen layers run once, without dropout) with
training through the whole model. Both sides train on the same rows of the real reviews with the
same batch, steps and learning rate, and are tested on the same rows. Each finished run is stored in
a folder, so an interrupted call can be repeated, and several calls can share the approaches. A
stored run counts only if its settings, model, reviews and code were the same. Nothing is timed. The
peer also keeps freed memory, which makes it faster and changes no score.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.report import Section, command_line, publish
from common.sides import FROZEN, Experiment, absent, add_inputs, run_peer, run_project

from kinopoisk_ft.config.groups import get_conf_dir
from kinopoisk_ft.files import PACKAGE, write_atomically
from kinopoisk_ft.provenance import digest_content, get_commit

TOKENS = 64
PEER, PROJECT, CACHED = "peer", "project", "project-cached"
WORKS = {
    "full": Experiment("full", limit=2000, epochs=3, max_length=TOKENS, lr=1e-4),
    "lora": Experiment("lora", limit=2000, epochs=3, max_length=TOKENS, lr=2e-3),
    "freeze": Experiment("frozen", limit=2000, epochs=3, max_length=TOKENS, lr=5e-4),
}
SEEDS = (0, 1, 2)
SCORES = {"f1": "weighted F1", "accuracy": "accuracy"}
KEEP_FREED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


def main() -> int:
    """Run the command line; return the exit code."""
    parser = command_line(__doc__)
    add_inputs(parser)
    parser.add_argument("--runs", type=Path, default=Path("outputs/quality"),
                        help="folder of finished runs, which are not repeated")  # fmt: skip
    parser.add_argument("--approaches", nargs="+", choices=WORKS, default=list(WORKS))
    args = parser.parse_args()
    if absent(args):
        return 0
    seeds = SEEDS[:1] if args.quick else SEEDS
    rows = [row for name in args.approaches for row in compare(name, seeds, args)]
    work = choose_work(args.approaches[0], args.quick)
    note = (
        f"The first {work.limit:,} reviews that are not neutral (64% train, 16% validation, 20% "
        f"test), {work.max_length} tokens, batches of 16, epochs: {work.epochs}, fp32; seeds "
        f"{', '.join(map(str, seeds))}. Test scores of the epoch with the best validation score; "
        "±: standard deviation over seeds."
    )
    remark = (
        "Both sides have the same learning rates (1e-4 for full fine-tuning, 2e-3 for LoRA, 5e-4 "
        "for the upper 2 of 12 layers) and a new pooler and classifier; the peer's LoRA does not "
        f"train the pooler. `{CACHED}`: frozen layers run once (`trainer.prefix_cache=fp16`)."
    )
    section = Section("Test scores", note, rows)
    publish("Scores compared with a Hugging Face Trainer", [section], args, remark)
    return 0


def choose_work(name: str, quick: bool) -> Experiment:
    """Return the settings of an approach; `limit`, `max_length` and `epochs` are those of all."""
    return replace(WORKS[name], limit=100, epochs=1, max_length=32) if quick else WORKS[name]


def compare(name: str, seeds: tuple[int, ...], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run both sides of an approach with each seed; return a row for each side."""
    sides = (PROJECT, CACHED) if name == "freeze" else (PEER, PROJECT)
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for seed in seeds:
        work = replace(choose_work(name, args.quick), seed=seed)
        for side, runs in found.items():
            kept = args.runs / f"{name}-{seed}-{side}{'-quick' * args.quick}.json"
            runs.append(load_or_run(kept, side, work, args))
    return [
        {"approach": name, "side": side}
        | {label: _spread([run[key] for run in runs]) for key, label in SCORES.items()}
        | {"each seed's F1": ", ".join(f"{run['f1']:.3f}" for run in runs)}
        for side, runs in found.items()
    ]


def load_or_run(
    kept: Path, side: str, work: Experiment, args: argparse.Namespace
) -> dict[str, float]:
    """Return the scores in the file `kept` if its run had the same inputs; otherwise run it."""
    inputs = {"work": str(work), "commit": get_commit(), "code": digest_content(PACKAGE, "*.py")}
    inputs["conf"] = digest_content(get_conf_dir(), "*.yaml")
    inputs["benchmarks"] = digest_content(Path(__file__).parent, "*.py")
    inputs |= {name: digest_content(getattr(args, name)) for name in ("model", "data")}
    if kept.exists() and not args.quick:
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found.get("inputs") == inputs:
            scores: dict[str, float] = found["scores"]
            return scores
    scores = _run(side, work, args)
    write_atomically(kept, json.dumps({"inputs": inputs, "scores": scores}, indent=2) + "\n")
    return scores


def _run(side: str, work: Experiment, args: argparse.Namespace) -> dict[str, float]:
    if side == PEER:
        return run_peer(work, args.model, args.data, "fp32", KEEP_FREED)
    if side == CACHED:
        work = replace(work, project=FROZEN)
    return run_project(work, args.model, args.data, "fp32")


def _spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


if __name__ == "__main__":
    sys.exit(main())
