"""Train a classifier with a Hugging Face Trainer: dynamic padding, batches of similar length.

    python benchmarks/common/hf_trainer.py --model FOLDER --data FILE --precision bf16

The file needs the columns of data=kinopoisk. The last printed line is JSON. With `--evaluate`, the
model is validated and saved after each epoch, and the best one is tested.
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
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import train_test_split
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
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
    parser.add_argument("--approach", choices=["full", "frozen", "lora"], default="full")
    parser.add_argument("--freeze-layers", type=int, default=10)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--attention", default="sdpa", help="attn_implementation of transformers")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--evaluate", action="store_true")
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
        Seconds of the whole training; seconds, tokens and squared lengths after the first epoch,
        which compiles and warms up; peak memory (MiB) and steps. With `evaluate`, also the seconds
        and scores of the test.
    """
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    rows, val, test = read_parts(args, tokenizer)
    times = EpochTimes()
    when = "epoch" if args.evaluate else "no"
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            output_dir=folder, num_train_epochs=args.epochs, learning_rate=args.lr,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=2 * args.batch_size, warmup_steps=args.warmup_steps,
            weight_decay=0.01, train_sampling_strategy="group_by_length", seed=args.seed,
            optim="adamw_torch_fused", bf16=args.precision == "bf16", fp16=args.precision == "fp16",
            bf16_full_eval=args.precision == "bf16", torch_compile=args.compile,
            use_cpu=args.device == "cpu", eval_strategy=when, save_strategy=when,
            load_best_model_at_end=args.evaluate, metric_for_best_model="f1", report_to="none",
            disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(build(args), options, DataCollatorWithPadding(tokenizer),
                          train_dataset=rows, eval_dataset=val, compute_metrics=scores,
                          callbacks=[times])  # type: ignore[arg-type]  # fmt: skip
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        tested = trainer.evaluate(test) if args.evaluate else {}  # type: ignore[arg-type]
        eval_seconds = time.perf_counter() - start
    lengths = [len(row["input_ids"]) for row in rows]
    found = {
        "train_seconds": seconds,
        "seconds": times.ends[-1] - times.ends[0],
        "tokens": (args.epochs - 1) * sum(lengths),
        "squares": (args.epochs - 1) * sum(length**2 for length in lengths),
        "mib": peak_mib(args.device),
        "steps": trainer.state.global_step,
    }
    if args.evaluate:
        found |= {"eval_seconds": eval_seconds}
        found |= {key: tested[f"eval_{key}"] for key in ("f1", "accuracy")}
    return found


def build(args: argparse.Namespace) -> torch.nn.Module:
    """Return the model, with frozen layers or LoRA if asked for."""
    model = AutoModelForSequenceClassification.from_pretrained(
        args.model, num_labels=2, dtype=torch.float32, attn_implementation=args.attention
    )
    if args.approach == "frozen":
        for module in (model.bert.embeddings, *model.bert.encoder.layer[: args.freeze_layers]):
            module.requires_grad_(False)
    if args.approach == "lora":
        return get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, **LORA))
    return model


def scores(prediction: EvalPrediction) -> dict[str, float]:
    """Return accuracy and weighted F1."""
    guess, labels = prediction.predictions.argmax(axis=1), prediction.label_ids
    return {"accuracy": accuracy_score(labels, guess),
            "f1": f1_score(labels, guess, average="weighted")}  # fmt: skip


def read_parts(args: argparse.Namespace, tokenizer: Any) -> list[list[dict[str, Any]]]:
    """Return the training, validation and test reviews of the project's default split."""
    frame = pd.read_json(args.data, lines=True)
    frame = frame[frame["grade3"] != "Neutral"].head(args.limit or len(frame))
    rest, test = split(frame)
    train, val = split(rest)
    return [encode(part, tokenizer, args.max_length) for part in (train, val, test)]


def split(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Return 80% of the reviews, and the other 20%."""
    parts: list[pd.DataFrame] = train_test_split(
        frame, test_size=0.2, random_state=42, stratify=frame["grade3"]
    )
    return parts


def encode(frame: pd.DataFrame, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """Return the tokens and labels of reviews."""
    # The real file starts each review with an empty line, which the project removes.
    texts = frame["content"].str.removeprefix("\n").tolist()
    tokens = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    return [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": int(grade == "Good")}
        for ids, grade in zip(tokens, frame["grade3"], strict=True)
    ]


def peak_mib(device: str) -> float:
    """Return the peak memory of tensors on a GPU, or of this process on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    main()
