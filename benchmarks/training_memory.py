"""Measure what gradient checkpointing and a frozen base in bf16 save, and what they cost.

    python benchmarks/training_memory.py --json training_memory.json --markdown training_memory.md

Each memory figure is measured in a separate process: the peak resident size during two steps, minus
the size before them. The weights and AdamW's moments are allocated before, so the figure is the
memory of activations and gradients. Times are measured in one process that alternates both ways.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from common.children import child_figures
from common.report import Section, command_line, publish
from common.timing import ratios, take_turns
from peft import LoraConfig
from torch import nn
from transformers import MambaConfig, Qwen3Config, Qwen3Model

from kinopoisk_ft.adapters.peft import Peft
from kinopoisk_ft.models.encoder import Encoder, Pooling
from kinopoisk_ft.models.frozen_weights import Dtype
from kinopoisk_ft.models.mamba import MambaClassifier
from kinopoisk_ft.models.mamba_recipe import describe_mamba
from kinopoisk_ft.models.network import Network
from kinopoisk_ft.training.acceleration.dropout import replace_dropout
from kinopoisk_ft.training.acceleration.gradient_checkpointing import recompute_activations
from kinopoisk_ft.training.device import keep_freed_memory, peak_memory_mb, reset_peak_memory
from kinopoisk_ft.training.precision import Precision

CPU = torch.device("cpu")
E5 = "e5-small-ru"
# Model, adapter, rows and tokens of a batch.
CASES = {
    "e5-small-ru, all weights": (E5, "none", 16, 256),
    "mamba_scratch, all weights": ("mamba_scratch", "none", 16, 512),
    "mamba-130m, all weights": ("mamba-130m", "none", 1, 512),
    "mamba-130m, LoRA": ("mamba-130m", "lora", 1, 512),
}
QUICK = ("mamba_scratch, all weights",)
# A decoder of 200 M parameters with random weights.
DECODER = {"vocab_size": 32000, "hidden_size": 1024, "num_hidden_layers": 12,
           "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128,
           "intermediate_size": 3072, "pad_token_id": 0}  # fmt: skip
DECODER_BATCH = (2, 128)
MAMBAS = {
    "mamba_scratch": MambaConfig(vocab_size=8000, hidden_size=128, num_hidden_layers=4),
    "mamba-130m": MambaConfig(vocab_size=50280, hidden_size=768, num_hidden_layers=24),
}
TARGETS = ["in_proj", "x_proj", "dt_proj", "out_proj"]


def load_encoder(folder: Path, pooling: Pooling, dtype: Dtype = "fp32") -> Network:
    """Load a checkpoint as a run does."""
    name = str(folder)
    return Encoder(
        name=name, revision=None, tokenizer=name, pooling=pooling, dropout=None, dtype=dtype,
        lr=0.0, head_lr=None, targets=None,
    ).build(("bad", "good"), None)  # fmt: skip


def build(model: str, folder: Path) -> Network:
    """Return a classifier; only e5-small-ru has pretrained weights."""
    if model == E5:
        return load_encoder(folder, "auto")
    return describe_mamba(MambaClassifier(MAMBAS[model], 2, "mean"))


def prepare(case: str, folder: Path) -> tuple[nn.Module, Callable[[int, int], None]]:
    """Return the module, and a function that trains on a batch of (rows, tokens)."""
    model, adapter, _, _ = CASES[case]
    torch.manual_seed(0)
    network = build(model, folder)
    module = network.module
    if adapter == "lora":
        config = LoraConfig(r=8, lora_alpha=32, lora_dropout=0.1, target_modules=TARGETS)
        module = Peft(config=config, lr=0.0).apply(network).module
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step(rows: int, tokens: int) -> None:
        ids = torch.randint(5, 1000, (rows, tokens))
        logits = module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        nn.functional.cross_entropy(logits, torch.zeros(rows, dtype=torch.int64)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return module.train(), step


def recomputing(module: nn.Module, way: str) -> AbstractContextManager[None]:
    return recompute_activations(module, way == "recomputed")


def measure_memory(case: str, way: str, folder: Path) -> dict[str, float]:
    """Return the peak MiB of two steps, without weights and moments."""
    module, step = prepare(case, folder)
    rows, tokens = CASES[case][2:]
    with replace_dropout(module, CPU, "keep"), recomputing(module, way):
        # The first step allocates the moments and compiles kernels.
        step(1, 8)
        gc.collect()
        reset_peak_memory(CPU)
        before = peak_memory_mb(CPU)
        for _ in range(2):
            step(rows, tokens)
        return {"mib": peak_memory_mb(CPU) - before}


def measure_times(case: str, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Return the seconds of steps that alternate between both ways."""
    module, step = prepare(case, folder)
    rows, tokens = CASES[case][2:]

    def turn(way: str) -> float:
        keep_freed_memory(way == "stored")
        with recomputing(module, way):
            start = time.perf_counter()
            step(rows, tokens)
            return time.perf_counter() - start

    with replace_dropout(module, CPU, "keep"):
        # The first step allocates the moments and compiles kernels.
        step(1, 8)
        return take_turns(
            {way: lambda way=way: turn(way) for way in ("stored", "recomputed")},  # type: ignore[misc]
            rounds,
        )


def measure_base(dtype: Dtype, precision: Precision, folder: Path) -> dict[str, Any]:
    """Return memory, seconds and logits of LoRA on a decoder whose base is stored in a dtype."""
    keep_freed_memory(False)
    reset_peak_memory(CPU)
    before = peak_memory_mb(CPU)
    torch.manual_seed(0)
    network = load_encoder(folder, "last", dtype)
    config = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"])
    module = Peft(config=config, lr=0.0).apply(network).module.train()
    loaded = peak_memory_mb(CPU) - before
    ids = torch.randint(5, 1000, DECODER_BATCH)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        with precision.autocast():
            logits = module(**inputs).logits.float()
        logits.sum().backward()
        seconds.append(time.perf_counter() - start)
    return {
        "weights": sum(p.nbytes for p in module.parameters()) / 2**20,
        "loaded": loaded,
        "step": peak_memory_mb(CPU) - before,
        "seconds": min(seconds),
        "logits": logits.flatten().tolist(),
    }


def compare_bases(folder: Path) -> list[dict[str, Any]]:
    """Return a row for each pair of trainer.precision and model.dtype."""
    rows = []
    for precision in ("fp32", "bf16"):
        found = {
            dtype: child_figures(__file__, "--way", f"{precision} {dtype}", "--model", str(folder))
            for dtype in ("fp32", "bf16")
        }
        whole = torch.tensor(found["fp32"]["logits"])
        for dtype, run in found.items():
            difference = (torch.tensor(run["logits"]) - whole).abs().max() / whole.abs().max()
            rows.append({
                "trainer.precision": precision, "model.dtype": dtype, "weights MiB": run["weights"],
                "peak of loading MiB": run["loaded"], "peak of training MiB": run["step"],
                "time ratio": run["seconds"] / found["fp32"]["seconds"],
                "difference of logits": float(difference),
            })  # fmt: skip
    return rows


def measure(case: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Return the row of a case."""
    common = ("--case", case, "--model", str(folder))
    kept, less = (
        child_figures(__file__, *common, "--way", way)["mib"] for way in ("stored", "recomputed")
    )
    times = child_figures(__file__, *common, "--way", "times", "--rounds", str(rounds))
    slower = ratios(times["recomputed"], times["stored"])
    rows, tokens = CASES[case][2:]
    return {
        "case": case, "batch": f"{rows} x {tokens}", "stored MiB": kept, "recomputed MiB": less,
        "memory ratio": less / kept, "time ratio": slower["ratio"], "min": slower["min"],
        "max": slower["max"],
    }  # fmt: skip


def main() -> None:
    """Run the command line."""
    shared = Path(__file__).resolve().parents[2] / "shared"
    parser = command_line(__doc__)
    parser.add_argument("--model", type=Path, default=shared / "models" / E5)
    parser.add_argument(
        "--rounds", type=int, default=5, help="timed steps of each way (%(default)s)"
    )
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way and not args.case:
        precision, dtype = args.way.split()
        print(json.dumps(measure_base(dtype, Precision(precision, CPU), args.model)))
        return
    if args.case:
        # As in training, freed memory stays in the process, except with gradient checkpointing.
        keep_freed_memory(args.way == "stored")
        found = (
            measure_times(args.case, args.rounds, args.model)
            if args.way == "times"
            else measure_memory(args.case, args.way, args.model)
        )
        print(json.dumps(found))
        return
    cases = [c for c in (QUICK if args.quick else CASES) if args.model.exists() or E5 not in c]
    note = (
        "fp32, with dropout. `stored`: activations are stored, as by default. `recomputed`: with "
        "trainer.gradient_checkpointing=true. MiB: activations and gradients of a step. `time "
        f"ratio`: recomputed / stored; median, minimum and maximum of {args.rounds} pairs."
    )
    if not args.model.exists():
        print(f"skipped: {args.model} does not exist, so there is no row for {E5}; give --model")
    rows = [measure(case, args.rounds, args.model) for case in cases]
    section = Section("A training step with and without gradient checkpointing", note, rows)
    sections = [section]
    if not args.quick:
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            # Most decoders are published in bf16.
            Qwen3Model(Qwen3Config(**DECODER)).bfloat16().save_pretrained(folder)
            rows = compare_bases(Path(folder))
        rows_of_batch, tokens = DECODER_BATCH
        note = (
            "LoRA on a Qwen3 with 200 M random weights, which are stored in bf16; batch "
            f"{rows_of_batch} x {tokens}. Each row is a separate process. Peaks: resident size, "
            "minus the size before loading. Each row is compared with the fp32 base of the same "
            "precision: the time of the fastest of three steps, and the largest difference of "
            "logits, relative to the largest logit."
        )
        sections.append(Section("A frozen base in fp32 and in bf16", note, rows))
    remark = "Freed memory stays in the process, except with gradient checkpointing."
    publish("Memory of training", sections, args, remark)


if __name__ == "__main__":
    main()
