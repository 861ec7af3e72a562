"""Train the runs of docs/comparison, and store what a report needs of each run.

    ENCODER=<folder> python tools/comparison.py --data kinopoisk.jsonl.gz --workers 2

Each job that is missing in docs/comparison/runs is trained in a process with one thread. Its
events, scores and test predictions are stored, without texts. `kinopoisk-ft sync
docs/comparison/runs` turns them into an MLflow store for the report.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.metrics import f1_score

CONF = Path("docs/comparison/conf")
KEPT = Path("docs/comparison/runs")
SETTINGS = {
    "film": ["data.split=film"],
    "random": ["data.split=random"],
    "stripped": ["data.split=film", "data.strip_scores=true"],
}
TITLES = {"film": "new films", "stripped": "new films, no written grades", "random": "random split"}
# With few labels an epoch has too few steps; one epoch of all labels has 211.
STEPS = ["trainer.min_steps=200", "trainer.eval_every=100"]
for labels in (100, 300, 1000):
    SETTINGS[f"film_{labels}"] = [*SETTINGS["film"], f"data.train_limit={labels}", *STEPS]
LABELS = {"film_100": "100", "film_300": "300", "film_1000": "1,000", "film": "all 3,363"}
# Which part of a review to read: as many tokens (or characters) from different places. In fp32,
# because not every CPU is fast in bf16.
PARTS = {"head": "start", "tail": "end", "head_tail": "both"}
for part in PARTS:
    read = [f"data.truncation={part}", "data.max_length=256", "trainer.precision=fp32"]
    SETTINGS |= {f"{split}_{part}": [*SETTINGS[split], *read] for split in ("film", "random")}
READ = {
    f"{split}_{part}": f"{TITLES[split]}, {title}"
    for split in ("film", "random") for part, title in PARTS.items()
}  # fmt: skip
# The approaches of these runs. No pretrained encoder is among them.
READERS = {
    "bert_scratch": "BERT from random weights, 256 tokens",
    "tfidf_tail": "TF-IDF, 900 characters",
}
NAMES = {
    "full": "e5-small-ru, all weights (`adapter=none`)",
    "lora": "e5-small-ru, LoRA (`adapter=lora`)",
    "frozen": "e5-small-ru, upper 2 of 12 layers (`adapter=freeze`)",
    "head": "e5-small-ru, linear probe (`adapter=head`)",
    "bert_scratch": "BERT from random weights, 512 tokens (`model=bert_scratch`)",
    "mamba": "Mamba from random weights, 512 tokens (`model=mamba_scratch`)",
    "tfidf": "TF-IDF on whole reviews (`model=tfidf`)",
    "tfidf_tail": "TF-IDF on the last 900 characters",
}
FILES = ("config.yaml", "data.json", "environment.json", "result.json")
PREDICTIONS = "predictions.parquet"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="kinopoisk.jsonl.gz; without it, only print the tables")
    parser.add_argument("--output", type=Path, default=Path("outputs/comparison"),
                        help="folder of complete runs; stopped runs are resumed there")  # fmt: skip
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--approaches", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1, help="jobs at the same time")
    args = parser.parse_args()
    if args.data is None:
        print(f"{table(TITLES)}\n\n{table(LABELS)}\n\n{table(READ, READERS)}")
        return
    jobs = itertools.product(args.seeds, args.settings, args.approaches)
    names = [
        Path(setting, f"{approach}-{seed}")
        for seed, setting, approach in jobs
        if setting not in READ or approach in READERS
    ]
    missing = [name for name in names if not (KEPT / name).exists()]
    print(f"{len(names) - len(missing)} of {len(names)} jobs are kept in {KEPT}")
    with ThreadPoolExecutor(args.workers) as pool:
        failed = sum(pool.map(lambda name: train(name, args.data, args.output), missing))
    sys.exit(f"{failed} jobs failed" if failed else 0)


def train(name: Path, data: str, output: Path) -> bool:
    """Train one job and store its results; return whether it failed."""
    run, setting = output / name, name.parts[0]
    approach, _, seed = name.name.rpartition("-")
    experiment, _, _ = setting.partition("_")
    command = [
        sys.executable, "-m", "kinopoisk_ft", "--config-dir", str(CONF),
        f"experiment=reviews_{approach}", f"seed={seed}", *SETTINGS[setting], f"data.path={data}",
        "tracking=offline", "tracking.log_model=false", f"tracking.experiment=reviews-{experiment}",
        f"output_dir={run}",
    ]  # fmt: skip
    run.mkdir(parents=True, exist_ok=True)
    with (run / "console.log").open("w", encoding="utf-8") as console:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(
            command, stdout=console, stderr=subprocess.STDOUT, env=environment, check=False
        )
    print(f"{name}: exit code {ended.returncode}", flush=True)
    if ended.returncode == 0:
        keep(run, KEPT / name)
    return ended.returncode != 0


def keep(run: Path, kept: Path) -> None:
    """Copy a finished run without its texts; make paths relative to the working folder.

    Times are left out, because jobs that run at the same time slow each other down.
    """
    part = kept.with_name(f"{kept.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "tracking").mkdir(parents=True)
    for name in FILES:
        (part / name).write_text(_relative((run / name).read_text("utf-8")), "utf-8")
    result = _without_times(json.loads((part / "result.json").read_text("utf-8")))
    (part / "result.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    table = pd.read_parquet(run / PREDICTIONS).drop(columns="text")
    table.to_parquet(part / PREDICTIONS, index=False, compression="zstd")
    paths = {f"run:{name}" for name in (*FILES, PREDICTIONS)}
    (log,) = (run / "tracking").glob("*.jsonl")
    with (part / "tracking" / log.name).open("w", encoding="utf-8") as file:
        for event in map(json.loads, log.read_text("utf-8").splitlines()):
            if event["verb"] == "artifact" and event["path"] not in paths:
                continue
            # The checksum is of the complete event.
            event.pop("crc", None)
            event |= {"host": ""} if event["verb"] == "start" else {}
            if event["verb"] == "metrics":
                event["values"] = _without_times(event["values"])
            # The tag "kinopoisk_ft.result" contains times, which are left out, too.
            if event["verb"] == "tags":
                event["values"].pop("kinopoisk_ft.result", None)
            file.write(_relative(json.dumps(event, ensure_ascii=False)) + "\n")
    part.rename(kept)


def _without_times(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if not k.endswith(("_seconds", "_per_second"))}


def table(settings: dict[str, str], names: dict[str, str] = NAMES) -> str:
    """Return the weighted test F1 of each approach.

    Args:
        settings: the column heading of each setting; settings without runs are left out.
        names: the title of each approach.
    """
    settings = {name: title for name, title in settings.items() if (KEPT / name).exists()}
    lines = [
        "| approach | " + " | ".join(settings.values()) + " |",
        "|---" * (len(settings) + 1) + "|",
    ]
    for approach, title in names.items():
        cells = (_cell(sorted((KEPT / setting).glob(f"{approach}-[0-9]"))) for setting in settings)
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    majority = (_majority(next((KEPT / setting).iterdir())) for setting in settings)
    return "\n".join([*lines, "| always the majority class | " + " | ".join(majority) + " |"])


def _cell(runs: list[Path]) -> str:
    """Format "mean ± deviation (seeds)" of the runs whose F1 exceeds the majority class's."""
    results = [json.loads((run / "result.json").read_text("utf-8")) for run in runs]
    scores = [result["f1_weighted"] for result in results]
    if not scores:
        return "-"
    if min(scores) <= float(_majority(runs[0])):
        return "not learned"
    spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
    return f"{statistics.fmean(scores):.3f}{spread} ({len(scores)})"


def _majority(run: Path) -> str:
    labels = pd.read_parquet(run / PREDICTIONS, columns=["label"])["label"]
    return f"{f1_score(labels, [labels.mode()[0]] * len(labels), average='weighted'):.3f}"


def _relative(text: str) -> str:
    # The encoder may be outside of the working folder.
    encoder = Path(os.environ.get("ENCODER", ""))
    if encoder.is_absolute():
        text = text.replace(str(encoder), encoder.name)
    return text.replace(f"{Path.cwd()}/", "")


if __name__ == "__main__":
    main()
