"""Train a classifier with a Hugging Face Trainer: dynamic padding, batches of similar length.

    python benchmarks/common/hf_trainer.py --model FOLDER --data FILE --precision bf16

The file needs the columns of data=kinopoisk. The last printed line is JSON. The first epoch
compiles and warms up, and is not part of `seconds`.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from typing import Any

import pandas as pd
import torch
from peft import LoraConfig, TaskType, get_peft_model
from sklearn.model_selection import train_test_split
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

LORA = {"r": 8, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["query", "value"]}


class EpochTimes(TrainerCallback):
    """Records when the device has finished each epoch."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """Wait for the device, and record the time."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--approach", choices=["full", "lora"], default="full")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--attention", default="sdpa", help="attn_implementation of transformers")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--warmup-steps", type=int, default=0)
    parser.add_argument("--seed", type=int, default=42)
    print(json.dumps(train(parser.parse_args())))


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train the model.

    Returns:
        Seconds, tokens and squared lengths after the first epoch, peak memory (MiB), and steps.
    """
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    rows = read_rows(args, tokenizer)
    model = AutoModelForSequenceClassification.from_pretrained(
        args.model, num_labels=2, dtype=torch.float32, attn_implementation=args.attention
    )
    if args.approach == "lora":
        model = get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, **LORA))
    times = EpochTimes()
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            output_dir=folder, num_train_epochs=args.epochs, learning_rate=args.lr,
            per_device_train_batch_size=args.batch_size, warmup_steps=args.warmup_steps,
            weight_decay=0.01, train_sampling_strategy="group_by_length", seed=args.seed,
            bf16=args.precision == "bf16", fp16=args.precision == "fp16",
            torch_compile=args.compile, use_cpu=args.device == "cpu", eval_strategy="no",
            save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model, options, DataCollatorWithPadding(tokenizer), train_dataset=rows,
                          callbacks=[times])  # type: ignore[arg-type]  # fmt: skip
        trainer.train()
    lengths = [len(row["input_ids"]) for row in rows]
    return {
        "seconds": times.ends[-1] - times.ends[0],
        "tokens": (args.epochs - 1) * sum(lengths),
        "squares": (args.epochs - 1) * sum(length**2 for length in lengths),
        "mib": peak_mib(args.device),
        "steps": trainer.state.global_step,
    }


def read_rows(args: argparse.Namespace, tokenizer: Any) -> list[dict[str, Any]]:
    """Return the training reviews of the project's default split: 64% of Good and Bad."""
    frame = pd.read_json(args.data, lines=True)
    frame = frame[frame["grade3"] != "Neutral"].head(args.limit or len(frame))
    labels = (frame["grade3"] == "Good").astype(int)
    # First the test reviews are split off, and then the validation reviews.
    for _ in range(2):
        frame, _, labels, _ = train_test_split(
            frame, labels, test_size=0.2, random_state=42, stratify=labels
        )
    texts = tokenizer(frame["content"].tolist(), truncation=True, max_length=args.max_length)
    return [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label}
        for ids, label in zip(texts["input_ids"], labels, strict=True)
    ]


def peak_mib(device: str) -> float:
    """Return the peak memory of tensors on a GPU, or of this process on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    main()
