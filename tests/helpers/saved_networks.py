"""Train a tiny network a little and save it, as a run does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import torch
from forks import CHILDREN
from networks import NAMES, make

from kinopoisk_ft.data.windows import pad
from kinopoisk_ft.models.saving import make_card, save_base, save_network
from kinopoisk_ft.serving.predictor import Predictor

TEXTS = [tiny.GOOD, "фильм", f"{tiny.BAD} {tiny.GOOD} {tiny.BAD}"]


def train_a_little(module: torch.nn.Module, inputs: dict[str, Any]) -> None:
    """Train three steps, so that all trainable weights change, also LoRA's, whose product is 0."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.02)
    for _ in range(3):
        module.train()
        module(**inputs).logits[:, 0].sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def save(kind: str, adapter: str, folder: Path, *more: str) -> torch.Tensor:
    """Train and save a network; return its logits (texts, classes)."""
    _, made, network, tokenizer = make(kind, adapter, *more)
    if network.base is None and made.needs_saved_base:
        save_base(network, folder)
    adapted = made.apply(network)
    ids = tokenizer(TEXTS, truncation=True, max_length=64)["input_ids"]
    inputs = pad(ids, tokenizer.pad_token_id)
    train_a_little(adapted.module, inputs)
    card = make_card(network, adapted, NAMES, max_length=64)
    save_network(network, adapted, tokenizer, card, folder)
    with torch.no_grad():
        logits: torch.Tensor = adapted.module.eval()(**inputs).logits
    return logits


def run_fork(folders: dict[str, str]) -> dict[str, Any]:
    """Return the logits of each model folder, computed in a separate process."""
    queue = CHILDREN.SimpleQueue()
    process = CHILDREN.Process(target=_predict, args=(folders, queue))
    process.start()
    # The few numbers fit into the pipe, so the process can end before they are read.
    process.join()
    assert process.exitcode == 0
    return dict(queue.get())


def _predict(folders: dict[str, str], queue: Any) -> None:
    found = {}
    for name, folder in folders.items():
        found[name] = Predictor(Path(folder), "cpu").logits(TEXTS).tolist()
    queue.put(found)
