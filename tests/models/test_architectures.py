"""Check every architecture with every feature against the table in docs/models.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from architectures import SIZES, checkpoint
from composing import change_config, compose_config
from hydra.utils import instantiate
from networks import NAMES
from places import ROOT
from quick import quick
from saved_networks import TEXTS as SAVED_TEXTS
from saved_networks import run_fork
from torch import Tensor, nn
from transformers import T5EncoderModel

from kinopoisk_ft.adapters.audit import check_gradients
from kinopoisk_ft.data.windows import pad
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.inspection import record_inputs
from kinopoisk_ft.models.network import Adapted, Network, list_blocks
from kinopoisk_ft.models.saving import make_card, save_network
from kinopoisk_ft.prefix_cache.cache import PrefixCache
from kinopoisk_ft.serving.predictor import Predictor
from kinopoisk_ft.tasks.finetune import finetune
from kinopoisk_ft.tracking.base import Tracker
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.precision import Precision

MODELS = {"Mamba": "mamba", "FalconMamba": "falcon_mamba", "Mamba2": "mamba2"}
TEXTS = tiny.reviews(10, seed=5)[0]
# Longer than the attention windows and the chunks of the tiny checkpoints.
assert max(len(text.split()) for text in TEXTS) > 20
QUICK = ("T5", "FalconMamba")
ALL = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SIZES]
# ALBERT runs one block several times.
FREEZE = {"Albert": ("adapter=freeze", "adapter.layers=1")}
HEADER = ["architecture", "`model`", "`none`", "`freeze`", "`lora`", "cache, `freeze`",
          "cache, `head`", "padding", "saved model"]  # fmt: skip


def read_table() -> dict[str, list[str]]:
    """Return the rows of the table in the documentation by architecture."""
    lines = (ROOT / "docs" / "models.md").read_text("utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    first = rows.index(HEADER) + 2
    table = [row for row in rows[first:] if len(row) == len(HEADER)]
    return {row[0]: row[1:] for row in table}


class Made:
    """An adapted tiny checkpoint with its tokenizer; equal arguments give equal weights."""

    def __init__(self, overrides: Iterable[str]) -> None:
        torch.manual_seed(0)
        cfg = change_config([*overrides])
        recipe = instantiate(cfg.model)
        self.tokenizer: Any = recipe.load_tokenizer([])
        self.network: Network = recipe.build(NAMES, self.tokenizer)
        self.adapted: Adapted = instantiate(cfg.adapter).apply(self.network)
        self.rows: list[list[int]] = self.tokenizer(TEXTS)["input_ids"]

    def pad(self, rows: list[list[int]]) -> dict[str, Tensor]:
        return pad(rows, self.tokenizer.pad_token_id)

    def step(self) -> Made:
        """Train one step with a large learning rate and the gradient check of a run."""
        logits = self.adapted.module.train()(**self.pad(self.rows)).logits
        nn.functional.cross_entropy(logits, torch.arange(len(TEXTS)) % 2).backward()
        check_gradients(self.adapted.module)
        trained = [p for p in self.adapted.module.parameters() if p.requires_grad]
        torch.optim.AdamW(trained, lr=0.01).step()
        return self

    @torch.no_grad()
    def logits(self) -> Tensor:
        logits: Tensor = self.adapted.module.eval()(**self.pad(self.rows)).logits
        return logits

    def save(self, folder: Path) -> None:
        card = make_card(self.network, self.adapted, NAMES, max_length=64)
        save_network(self.network, self.adapted, self.tokenizer, card, folder)


def check_all_weights(made: Made) -> None:
    """Check that every weight changes, except those that the architecture keeps constant."""
    before = {n: p.clone() for n, p in made.network.module.named_parameters()}
    made.step()
    named = dict(made.network.module.named_parameters())
    moved = {n for n, p in named.items() if not torch.equal(p, before[n])}
    fixed = {n for n, p in named.items() if not p.requires_grad}
    # Embeddings of tokens that the batch lacks do not change.
    assert moved | fixed >= {n for n in named if "embed" not in n}


def check_frozen_layers(made: Made) -> None:
    """Check that a step does not change the hidden states that the first trained block receives."""
    blocks = list_blocks(made.network)
    trained = [any(p.requires_grad for p in block.parameters()) for block in blocks]
    # All blocks of ALBERT are frozen, because they are one block.
    block = blocks[trained.index(True) if any(trained) else -1]

    def read() -> Tensor:
        with record_inputs(block) as inputs:
            made.logits()
        return inputs[0].clone()

    before, logits = read(), made.logits()
    made.step()
    assert torch.equal(read(), before)
    assert not torch.equal(made.logits(), logits)


def check_adapter(made: Made) -> None:
    assert made.adapted.targets
    logits = made.logits()
    made.step()
    assert not torch.equal(made.logits(), logits)


def check_cache(made: Made) -> None:
    """Check that logits through the cache equal those of the whole model, also after a step."""
    precision = Precision("fp32", torch.device("cpu"))
    made.step()
    part = Examples(made.rows, np.arange(len(TEXTS)) % 2)
    cache = PrefixCache("fp32", made.tokenizer.pad_token_id, precision, 4)
    cached = cache.apply(made.network, made.adapted.module, dict.fromkeys(("train", "val"), part))
    made.step()
    objective = cached.make_objective()
    batch = objective.collate(
        cached.parts["train"], np.arange(len(TEXTS)), np.random.default_rng(0)
    )
    with torch.no_grad():
        found = objective.logits(made.adapted.module.eval(), batch)
    torch.testing.assert_close(found, made.logits(), rtol=1e-4, atol=1e-5)


def check_padding(made: Made) -> None:
    """Check that a row has the same logits alone and in a batch."""
    made.step()
    batched = made.logits()
    with torch.no_grad():
        alone = [made.adapted.module(**made.pad([row])).logits for row in made.rows]
    torch.testing.assert_close(batched, torch.cat(alone), rtol=1e-4, atol=1e-5)


def check_saved(folder: Path, models: list[Made]) -> None:
    """Check that a new process computes the same logits from the model folders."""
    folders = {str(i): str(folder / str(i)) for i in range(len(models))}
    for made, place in zip(models, folders.values(), strict=True):
        made.step().save(Path(place))
        made.rows = made.tokenizer(SAVED_TEXTS, truncation=True, max_length=64)["input_ids"]
    for made, found in zip(models, run_fork(folders).values(), strict=True):
        torch.testing.assert_close(torch.tensor(found), made.logits(), rtol=1e-4, atol=1e-5)


def outcome(check: Callable[[], object], overrides: Iterable[str]) -> str:
    """Return "works", or "refused" if a run is refused for the same reason before reading data."""
    refusal = ""
    try:
        check()
    except UserError as error:
        refusal = error.what
        print(*overrides, refusal, sep="\n")
    if not refusal:
        return "works"
    cfg = compose_config([*overrides, "data=file", "data.path=not_read.csv"])
    with pytest.raises(UserError) as early:
        finetune(cfg, Tracker(uri=None, experiment=""), "", Path("unused"))
    assert early.value.what == refusal
    return "refused"


@pytest.mark.parametrize("architecture", ALL)
def test_every_feature_works_as_documented(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KINOPOISK_FT_CACHE", str(tmp_path / "cache"))
    model = MODELS.get(architecture, "encoder")
    base = checkpoint(tmp_path / "base", architecture)
    common = (f"model={model}", f"model.name={base}")
    freeze = (*common, *FREEZE.get(architecture, ("adapter=freeze", "adapter.layers=2")))
    head, lora, full = ((*common, f"adapter={name}") for name in ("head", "lora", "none"))
    cache = "trainer.prefix_cache=fp32"
    cells = [
        outcome(lambda: check_all_weights(Made(full)), full),
        outcome(lambda: check_frozen_layers(Made(freeze)), freeze),
        outcome(lambda: check_adapter(Made(lora)), lora),
        outcome(lambda: check_cache(Made(freeze)), (*freeze, cache)),
        outcome(lambda: check_cache(Made(head)), (*head, cache)),
        outcome(lambda: check_padding(Made(full)), full),
        outcome(lambda: check_saved(tmp_path, [Made(full), Made(lora)]), full),
    ]
    assert read_table()[f"`{architecture}`"] == [f"`{model}`", *cells]


def test_the_table_lists_every_architecture_and_few_refusals() -> None:
    table = read_table()
    assert {*table} == {f"`{name}`" for name in SIZES}
    cells = [cell for row in table.values() for cell in row[1:]]
    assert {*cells} <= {"works", "refused"}
    assert cells.count("refused") <= 0.2 * len(cells)


# The architecture, the pooling and the start of the prefix of each file in conf/model.
FILES = {
    "rumodernbert": ("ModernBertForMaskedLM", "mean", ""),
    "user2": ("ModernBert", "mean", "classification: "),
    "frida": ("T5", "cls", "categorize_sentiment: "),
    "e5": ("Bert", "mean", "query: "),
    "mdeberta": ("DebertaV2", "mean", ""),
    "qwen3_embedding": ("Qwen3", "last", "Instruct: "),
    "mamba_ru": ("Mamba", "last", ""),
    "falcon_mamba": ("FalconMamba", "last", ""),
}


@pytest.mark.parametrize("model", quick([*FILES][::-1], 1))
def test_a_model_file_fits_its_architecture(model: str, tmp_path: Path) -> None:
    """A saved model puts the prefix before each text, too."""
    architecture, pooling, prefix = FILES[model]
    base = checkpoint(tmp_path / "base", architecture)
    # The checkpoint of FRIDA has no decoder.
    if model == "frida":
        T5EncoderModel.from_pretrained(base).save_pretrained(base)
    overrides = (f"model={model}", f"model.name={base}", "model.revision=null")
    made = Made((*overrides, "adapter=lora"))
    assert made.network.pooling == pooling
    preprocessing = instantiate(compose_config([*overrides, "data=demo"]).data).preprocessing
    assert preprocessing.text_prefix.startswith(prefix)
    assert bool(preprocessing.text_prefix) == bool(prefix)
    card = make_card(made.network, made.step().adapted, NAMES, **asdict(preprocessing))
    save_network(made.network, made.adapted, made.tokenizer, card, tmp_path / "model")
    made.rows = made.tokenizer([preprocessing.text_prefix + text for text in TEXTS])["input_ids"]
    found = Predictor(tmp_path / "model", "cpu").logits(TEXTS)
    torch.testing.assert_close(found, made.logits(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SIZES)
def test_ia3_trains(architecture: str, tmp_path: Path) -> None:
    model = MODELS.get(architecture, "encoder")
    base = checkpoint(tmp_path, architecture)
    check_adapter(Made((f"model={model}", f"model.name={base}", "adapter=ia3")))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["Longformer", "BigBird", "RoFormer"])
def test_the_classifier_of_the_library_trains(architecture: str, tmp_path: Path) -> None:
    """Longformer's global attention, BigBird's unused pooler, RoFormer's fixed positions."""
    base = checkpoint(tmp_path, architecture)
    made = Made(("model=encoder", f"model.name={base}", "model.pooling=pooler"))
    assert made.network.layout.name == "hf"
    named = made.network.module.named_parameters()
    fixed = {n: p.clone() for n, p in named if not p.requires_grad}
    made.step()
    assert all(torch.equal(p, made.network.module.get_parameter(n)) for n, p in fixed.items())
    assert bool(fixed) == (architecture in ("BigBird", "RoFormer"))
