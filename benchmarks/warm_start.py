"""Measure the time between a process's imports and its first training step.

    python benchmarks/warm_start.py --json warm_start.json --markdown warm_start.md

The same command runs several times with one cache: the first run tokenizes the reviews, and the
others read the tokens from the cache. A second table compares three ways to get the tokens of
32,000 texts: tokenizing them as a run does, `datasets.map`, and reading them from the cache.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from common import allocator
from common.children import child_figures
from common.report import Section, command_line, publish
from common.sides import absent, add_inputs
from common.timing import ratios, take_turns

WARM = 3
TEXTS, ROUNDS = 32_000, 2
OWN, MAP, CACHE = "tokenize", "datasets.map", "read from the cache"


def until_the_first_step(arguments: list[str]) -> dict[str, float]:
    """Return the seconds from the command to a run's first step, without its imports."""
    import mlflow  # noqa: F401
    import peft  # noqa: F401
    from transformers import BertForSequenceClassification  # noqa: F401

    from kinopoisk_ft import cli, run  # noqa: F401
    from kinopoisk_ft.training.loop import Trainer

    taken: list[float] = []

    def first(*_: Any) -> None:
        taken.append(time.perf_counter() - start)
        raise KeyboardInterrupt

    Trainer._step = first  # type: ignore[method-assign]
    start = time.perf_counter()
    cli.main(arguments)
    return {"seconds": taken[0]}


def finding_tokens(model: str, data: str) -> dict[str, list[float]]:
    """Return the seconds to tokenize many real texts, per round, and to read their tokens."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from kinopoisk_ft.data.preprocessing import Preprocessing
    from kinopoisk_ft.data.tables import read_table
    from kinopoisk_ft.data.tokens import tokenize
    from kinopoisk_ft.files import get_cache_dir

    real = read_table(data).frame["content"].tolist()
    texts = [f"{real[i % len(real)]} {i // len(real)}" for i in range(TEXTS)]
    tokenizer = AutoTokenizer.from_pretrained(model)

    def seconds(job: Callable[[], object]) -> float:
        start = time.perf_counter()
        job()
        return time.perf_counter() - start

    def map_texts() -> None:
        Dataset.from_dict({"text": texts}).map(
            lambda batch: tokenizer(batch["text"], truncation=True, max_length=256),
            batched=True,
            remove_columns=["text"],
        )

    def read() -> None:
        tokenize(texts, tokenizer, Preprocessing(256))

    def fill_cache() -> float:
        shutil.rmtree(get_cache_dir() / "tokens", ignore_errors=True)
        return seconds(read)

    turns = {OWN: fill_cache, MAP: lambda: seconds(map_texts), CACHE: lambda: seconds(read)}
    return take_turns(turns, ROUNDS)


def measure(args: argparse.Namespace) -> list[Section]:
    """Run the child processes one after another with the same cache."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["model=encoder", f"model.name={args.model}", f"data.path={args.data}",
                   "adapter=none", "data.max_length=256", "trainer.precision=fp32",
                   f"tracking.uri=sqlite:///{folder}/mlflow.db"]  # fmt: skip
        seconds = [
            child_figures(__file__, "--run", *command, f"output_dir={folder}/{i}",
                          KINOPOISK_FT_CACHE=f"{folder}/cache")["seconds"]
            for i in range(1 + (1 if args.quick else WARM))
        ]  # fmt: skip
        start = {"cache": "empty", "seconds": seconds[0]}
        warm = {"cache": "warm", "seconds": statistics.median(seconds[1:])}
        note = (
            "All reviews of the file, full fine-tuning of e5-small-ru, 256 tokens. The seconds "
            "include reading, splitting and the leakage report."
        )
        sections = [Section("Time to the first step", note, [start, warm])]
        if not args.quick:
            found = child_figures(__file__, "--tokens", str(args.model), str(args.data),
                                  KINOPOISK_FT_CACHE=f"{folder}/tokens")  # fmt: skip
            note = (
                f"{TEXTS} texts made of real reviews, cut to 256 tokens. Seconds: median of "
                f"{ROUNDS} rounds. `datasets.map`: it calls the same tokenizer, with truncation. "
                "`ratio`: relative to tokenizing with this project; median, minimum and maximum."
            )
            rows = [{"way": way, "seconds": statistics.median(taken), **ratios(taken, found[OWN])}
                    for way, taken in found.items()]  # fmt: skip
            sections.append(Section("Tokens", note, rows))
    return sections


def main() -> None:
    parser = command_line(__doc__)
    add_inputs(parser)
    parser.add_argument("--run", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(until_the_first_step(args.run)))
    elif args.tokens:
        print(json.dumps(finding_tokens(*args.tokens)))
    elif not absent(args):
        publish("From imports to training", measure(args), args, allocator.DEFAULT)


if __name__ == "__main__":
    sys.exit(main())
