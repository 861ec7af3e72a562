"""Show which operators a training step spends its time on, as a picture and a table.

    python benchmarks/profile.py --picture profile.png model=bert_scratch adapter=none

The options are followed by overrides, as for a run; the reviews are the demo reviews. PyTorch's
profiler measures the time of each operator, without the operators that it calls.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from common.report import Section, command_line, publish
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from matplotlib.figure import Figure
from torch import nn
from torch.profiler import ProfilerActivity, profile

from kinopoisk_ft.config.groups import get_conf_dir
from kinopoisk_ft.data.tokens import tokenize
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.objective import Classification

DEFAULT = ["model=bert_scratch", "adapter=none", "data.max_length=256"]
# The kind of an operator is the first one whose pattern matches its name.
KINDS = {
    "matrix products": r"mm$|mm_|linear|mkldnn_|bmm",
    "attention": r"[Aa]tten[dt]|softmax",
    "scan": r"[sS]can|SSD",
    "convolution": r"[cC]onv",
    "dropout": r"[dD]rop|bernoulli",
    "normalisation": r"[nN]orm",
    "activation": r"gelu|silu|tanh|relu|sigmoid",
    "optimizer": r"[Aa]dam|Optimizer|foreach|clip",
    "embedding": r"embedding|index",
    "copies and casts": r"copy|_to_|cat|contiguous|clone|fill|zero|empty|stack",
    "sums and products": r"add|mul|sub|div|sum|mean|neg|exp|where|pow|sqrt",
}
REST = "other"


class Nowhere:
    """A recorder that records nothing."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Discard the values."""

    def flush(self) -> None:
        """Do nothing, because nothing is buffered."""


def kind_of(operator: str) -> str:
    """Return the kind of an operator."""
    return next((kind for kind, name in KINDS.items() if re.search(name, operator)), REST)


def time_by_kind(overrides: list[str], steps: int) -> tuple[dict[str, float], float]:
    """Train twice and profile the second training; return ms per step by kind, and its tokens."""
    with initialize_config_dir(str(get_conf_dir()), version_base="1.3"):
        cfg = compose("train", [*overrides, "data=demo", f"trainer.max_steps={steps}",
                                "trainer.epochs=100", "trainer.eval_every=100000"])  # fmt: skip
    recipe, adapter, trainer = (instantiate(cfg[key]) for key in ("model", "adapter", "trainer"))
    data = instantiate(cfg.data).load()
    tokenizer = recipe.load_tokenizer(data.train["text"].tolist())
    adapted = adapter.apply(recipe.build(data.class_names, tokenizer))
    train, val = (
        Examples(
            tokenize(part["text"].tolist(), tokenizer, data.preprocessing).input_ids,
            part["label"].to_numpy(),
        )
        for part in (data.train, data.val.head(1))
    )
    precision, clock = trainer.open()

    def fit(audit: Any) -> int:
        with tempfile.TemporaryDirectory() as folder:
            return trainer.fit(
                adapted.module, Classification(tokenizer.pad_token_id), train, val,
                fresh=adapted.fresh, audit=audit, precision=precision, clock=clock,
                recorder=Nowhere(), folder=Path(folder),
            ).tokens  # fmt: skip

    def nothing(module: nn.Module) -> None:
        """Skip the audit of gradients."""

    fit(nothing)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        tokens = fit(nothing)
    found: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        found[kind_of(event.key)] += event.self_cpu_time_total / 1000 / steps
    return dict(found), tokens / steps


def picture(found: dict[str, float], title: str, file: Path) -> None:
    """Draw the time of each kind as a bar, the largest first."""
    kinds = sorted(found, key=lambda kind: found[kind])
    figure = Figure(figsize=(7, 0.4 * len(kinds) + 1), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(kinds, [found[kind] for kind in kinds], color="#3b6ea5")
    total = sum(found.values())
    axes.bar_label(bars, [f"{found[kind] / total:.0%}" for kind in kinds], padding=3)
    axes.set_xlabel("milliseconds per step")
    axes.set_title(title, loc="left", fontsize=10)
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)


def main() -> None:
    """Run the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write the picture to FILE")
    parser.add_argument(
        "overrides", nargs="*", help=f"overrides of a run (default: {' '.join(DEFAULT)})"
    )
    args = parser.parse_args()
    overrides = args.overrides or DEFAULT
    found, tokens = time_by_kind(overrides, 3 if args.quick else 30)
    title = f"{' '.join(overrides)}\n{sum(found.values()):.0f} ms per step of {tokens:.0f} tokens"
    if args.picture:
        picture(found, title, args.picture)
    total = sum(found.values())
    rows = [
        {"part": kind, "ms per step": ms, "share": ms / total}
        for kind, ms in sorted(found.items(), key=lambda pair: -pair[1])
    ]
    note = (
        f"`{' '.join(overrides)}`, {torch.get_num_threads()} threads, {tokens:.0f} tokens per step."
    )
    publish("A training step", [Section("Time by kind of operator", note, rows)], args, "")


if __name__ == "__main__":
    main()
