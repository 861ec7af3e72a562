"""Compare the project with a Hugging Face Trainer with equal flags, on a GPU or a CPU.

Nothing is downloaded: the model has random weights, and the texts are bundled reviews, several of
them joined. Both sides train for three epochs, and the first is not measured.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import BertConfig

from common.rate import matrix_rate, model_flop, peak_rate
from common.shapes import RUBERT, TINY, Shape, random_bert
from common.sides import ADAPTERS, PEER, SAME_HEAD, read_metrics, run_process
from kinopoisk_ft.data.demo import FILE
from kinopoisk_ft.models.tokenizers import train_wordpiece
from kinopoisk_ft.ops import gpu_package
from kinopoisk_ft.ops.attention.cuda import PACKAGE
from kinopoisk_ft.tracking.mlflow_names import to_mlflow
from kinopoisk_ft.training.precision import DTYPES, choose_precision

BATCH, EPOCHS, LR = 16, 3, 5e-5
# 1 to 6 joined reviews have about 100 to 700 tokens.
MOST_JOINED = 6


@dataclass(frozen=True)
class Work:
    """What both sides train."""

    approach: str
    compile: bool = False


@dataclass(frozen=True)
class Size:
    """The model and the reviews; 64% of them are training reviews, a multiple of the batch size.

    Args:
        square: rows of the matrices whose products give the peak of a device that is not listed.
    """

    shape: Shape
    reviews: int
    max_length: int
    square: int

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return self.reviews * 64 // 100 // BATCH


# Compilation takes longest.
WORKS = {"full": Work("full"), "lora": Work("lora"), "full, compiled": Work("full", compile=True)}
SIZES = {"cuda": Size(RUBERT, 500, 512, 8192), "cpu": Size(TINY, 50, 32, 1024)}
NOTE = (
    "Both sides train a BERT with random weights, on the same reviews in batches of 16, with the "
    "same number of steps, learning rate, precision, attention and compilation. Both pad to the "
    "longest review of a batch, and group reviews of similar length. On a GPU, the model has the "
    "shape of rubert-base (12 layers, width 768, 119,547 tokens in the vocabulary) and reads up to "
    "512 tokens. On a CPU, it is tiny (1 layer, width 64, 32 tokens), and its figures say nothing "
    "about a GPU. `tokens/s`: real tokens without padding, after the first epoch. `MiB`: peak "
    "memory of tensors on a GPU, of the process on a CPU. `MFU`: model FLOPs utilisation, the "
    "FLOP/s of the model divided by `peak`. `peak`: TFLOP/s of the device according to NVIDIA; for "
    "other devices, of measured products of large matrices. `lora`: the project also trains the "
    "pooler."
)


def compare(device: str, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Train both sides once for each name in WORKS, and yield the rows of the table."""
    size, place = SIZES[device], torch.device(device)
    precision, _ = choose_precision("auto", place)
    attention = "sdpa"
    if device == "cuda" and precision != "fp32" and not gpu_package.find_problem(PACKAGE, place):
        attention = "flash_attention_2"
    peak, source = None, "measured"
    if device == "cuda" and precision != "fp32":
        peak, source = peak_rate(torch.cuda.get_device_name()), "NVIDIA"
    if peak is None:
        peak, source = matrix_rate(DTYPES[precision], place, size.square), "measured"
    with tempfile.TemporaryDirectory() as folder:
        data, model = write_inputs(Path(folder), size)
        config = BertConfig.from_pretrained(model)
        for name in names:
            work = WORKS[name]
            peer = run_peer(work, size, model, data, device, precision, attention)
            mine = run_project(work, size, model, data, device, precision)
            if abs(mine["tokens"] / peer["tokens"] - 1) > 1e-3:
                raise SystemExit(f"unequal tokens: {peer['tokens']} and {mine['tokens']:.0f}")
            flop = model_flop(config, 2 if work.approach == "lora" else 3,
                              peer["tokens"], peer["squares"])  # fmt: skip
            row: dict[str, Any] = {"work": name, "precision": precision, "attention": attention}
            row["compile"] = "default" if work.compile else "off"
            for side, found in (("peer", peer), ("project", mine)):
                row[f"{side} tokens/s"] = float(round(found["tokens"] / found["seconds"]))
            row["ratio"] = row["project tokens/s"] / row["peer tokens/s"]
            for side, found in (("peer", peer), ("project", mine)):
                row[f"{side} MFU"] = f"{100 * flop / found['seconds'] / peak:.1f}%"
            row |= {"peer MiB": round(peer["mib"]), "project MiB": round(mine["mib"])}
            yield row | {"peak": f"{peak / 1e12:.3g} ({source})"}


def write_inputs(folder: Path, size: Size) -> tuple[Path, Path]:
    """Write reviews with the columns of data=kinopoisk, and a model; return both paths."""
    frame = pd.read_json(FILE, lines=True)
    rows = []
    for label in ("Good", "Bad"):
        texts = frame.loc[frame["label"] == label, "text"].tolist()
        while texts:
            count = 1 + len(rows) % MOST_JOINED
            rows.append({"content": " ".join(texts[:count]), "grade3": label})
            del texts[:count]
    data = folder / "reviews.jsonl"
    shuffled = pd.DataFrame(rows).sample(size.reviews, random_state=0)
    shuffled.to_json(data, orient="records", lines=True, force_ascii=False)
    words = folder / "tokenizer"
    train_wordpiece(frame["text"].tolist(), 30_000).save_pretrained(words)
    return data, random_bert(size.shape, words, folder, size.max_length)


def use_one_gpu() -> dict[str, str]:
    """Return an environment with the first GPU only, because a Trainer would use all of them."""
    return {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]}


def run_peer(
    work: Work, size: Size, model: Path, data: Path, device: str, precision: str, attention: str
) -> dict[str, float]:
    """Return the peer's seconds and tokens after the first epoch, and its peak memory in MiB."""
    command = [sys.executable, PEER, "--approach", work.approach, "--model", model, "--data", data,
               "--device", device, "--precision", precision, "--attention", attention,
               "--limit", size.reviews, "--max-length", size.max_length, "--batch-size", BATCH,
               "--epochs", EPOCHS, "--lr", LR, "--warmup-steps", size.steps]  # fmt: skip
    printed, _ = run_process([*command, "--compile"] if work.compile else command, use_one_gpu())
    found: dict[str, float] = json.loads(printed.strip().splitlines()[-1])
    return found


def run_project(
    work: Work, size: Size, model: Path, data: Path, device: str, precision: str
) -> dict[str, float]:
    """Return the same figures of the project."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "mlflow.db"
        command = [sys.executable, "-m", "kinopoisk_ft", "model=encoder", f"model.name={model}",
                   f"data.path={data}", f"data.limit={size.reviews}", ADAPTERS[work.approach],
                   f"data.max_length={size.max_length}", f"trainer.device={device}",
                   f"trainer.precision={precision}", f"trainer.batch_size={BATCH}",
                   f"trainer.epochs={EPOCHS}", f"trainer.eval_every={EPOCHS * size.steps}",
                   f"trainer.log_every={size.steps}", "trainer.checkpoint_every=0",
                   f"trainer.lr={LR}", f"trainer.warmup_steps={size.steps}",
                   'trainer.compile="default"' if work.compile else 'trainer.compile="off"',
                   *SAME_HEAD, "tracking.log_model=false", f"tracking.uri=sqlite:///{store}",
                   f"output_dir={folder}/run"]  # fmt: skip
        run_process(command, {**use_one_gpu(), "KINOPOISK_FT_CACHE": f"{folder}/cache"})
        with closing(sqlite3.connect(store)) as database:
            # A loss is recorded after the losses of an epoch have been read from the device.
            query = "SELECT timestamp FROM metrics WHERE key = ? ORDER BY step"
            times = [ms for (ms,) in database.execute(query, [to_mlflow("train_loss")])]
        found = read_metrics(store)
    tokens = found["tokens_per_second"] * found["train_seconds"] * (EPOCHS - 1) / EPOCHS
    return {"seconds": (times[-1] - times[0]) / 1000, "tokens": tokens,
            "mib": found["peak_memory_mb"]}  # fmt: skip
