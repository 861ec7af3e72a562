"""The project against a Hugging Face Trainer user: same rows, model, batch, epochs and rate.

Runs both as whole processes in alternation and writes what each says of itself: training seconds,
test scores, trainable parameters, and the ratio of times.

    python benchmarks/peer.py --peer PEER.py --model FOLDER --data FILE --approaches full lora
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ADAPTERS = {"full": ["adapter=none"], "frozen": ["adapter=freeze"], "lora": ["adapter=lora"]}


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = Path(__file__).resolve().parents[1].parent / "shared"
    parser.add_argument("--peer", type=Path, default=shared / "bench" / "peer_hf_trainer.py")
    parser.add_argument("--model", type=Path, default=shared / "models" / "e5-small-ru")
    parser.add_argument("--data", type=Path, default=shared / "data" / "kinopoisk.jsonl.gz")
    parser.add_argument("--approaches", nargs="+", choices=ADAPTERS, default=["full", "lora"])
    parser.add_argument("--limit", type=int, default=1500, help="reviews (default: 1500)")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument(
        "--max-steps", type=int, help="instead of epochs; scores are then no matter"
    )
    parser.add_argument("--max-length", type=int, default=256, help="tokens (default: 256)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1, help="of each side, in alternation")
    parser.add_argument("--lr", type=float, help="of both sides (default: 5e-5, for LoRA 1e-3)")
    parser.add_argument("--precision", default="auto", help="of the project; the peer's is fp32")
    parser.add_argument("--quick", action="store_true", help="a few short steps, under a minute")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    missing = [path for path in (args.peer, args.model, args.data) if not path.exists()]
    if missing:
        print(f"skipped: {missing[0]} is not here; give --peer, --model and --data")
        return 0
    if args.quick:
        args.approaches, args.limit, args.max_steps, args.max_length = ["lora"], 200, 2, 32
    results = [compare(approach, args) for approach in args.approaches]
    print(table(results))
    if args.json:
        args.json.write_text(json.dumps({"arguments": vars(args), "results": results},
                                        indent=2, default=str) + "\n")  # fmt: skip
    return 0


def compare(approach: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run both sides of one approach in alternation; returns medians and scores."""
    lr = args.lr or (1e-3 if approach == "lora" else 5e-5)
    sides: dict[str, list[dict[str, Any]]] = {"peer": [], "project": []}
    for _ in range(args.rounds):
        sides["peer"].append(run_peer(approach, lr, args))
        sides["project"].append(run_project(approach, lr, args))
    seconds = {side: statistics.median(r["train_seconds"] for r in runs)
               for side, runs in sides.items()}  # fmt: skip
    f1 = {"peer": sides["peer"][-1].get("f1"), "project": sides["project"][-1]["f1_weighted"]}
    return {
        "approach": approach,
        "lr": lr,
        "train_seconds": seconds,
        "f1_weighted": f1,
        "ratio": seconds["peer"] / seconds["project"],
        "runs": sides,
    }


def run_peer(approach: str, lr: float, args: argparse.Namespace) -> dict[str, Any]:
    """Return the peer's own JSON line."""
    command = [sys.executable, args.peer, "--approach", approach, "--model", args.model,
               "--data", args.data, "--limit", args.limit, "--epochs", args.epochs,
               "--max-length", args.max_length, "--batch-size", args.batch_size, "--lr", lr,
               "--warmup-steps", warmup(args)]  # fmt: skip
    command += ["--max-steps", args.max_steps] if args.max_steps else []
    found: dict[str, Any] = json.loads(output(command).strip().splitlines()[-1])
    return found


def run_project(approach: str, lr: float, args: argparse.Namespace) -> dict[str, Any]:
    """Return the project's result file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, "-m", "kinopoisk_ft", "model=encoder",
                   f"model.name={args.model}", f"data.path={args.data}", *ADAPTERS[approach],
                   f"data.limit={args.limit}", f"data.max_length={args.max_length}",
                   f"trainer.epochs={args.epochs}", f"trainer.batch_size={args.batch_size}",
                   f"trainer.lr={lr}", f"trainer.warmup_steps={warmup(args)}",
                   f"trainer.precision={args.precision}", "tracking=none",
                   f"result_json={file}", f"output_dir={folder}/run"]  # fmt: skip
        command += [f"trainer.max_steps={args.max_steps}"] if args.max_steps else []
        output(command)
        found: dict[str, Any] = json.loads(file.read_text())
        return found


def warmup(args: argparse.Namespace) -> int:
    """Return a tenth of all steps, the same for both sides."""
    steps = args.epochs * -(-int(args.limit * 0.64) // args.batch_size)
    return max(1, (args.max_steps or steps) // 10)


def output(command: list[Any]) -> str:
    """Run a process; returns its standard output, shows its errors only if it fails."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=env)
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise SystemExit(f"failed: {' '.join(map(str, command))}")
    return done.stdout


def table(results: list[dict[str, Any]]) -> str:
    """Return the comparison as Markdown."""
    lines = ["| approach | peer s | project s | peer / project | peer F1 | project F1 |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for r in results:
        s, f1 = r["train_seconds"], r["f1_weighted"]
        scores = [f"{f1[side]:.3f}" if f1[side] is not None else "-" for side in s]
        lines.append(f"| {r['approach']} | {s['peer']:.1f} | {s['project']:.1f} "
                     f"| {r['ratio']:.2f} | {scores[0]} | {scores[1]} |")  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
