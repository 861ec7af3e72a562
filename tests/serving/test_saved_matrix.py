"""Check that each tool gives our probabilities with each saved model, or refuses it.

To add a tool, write a function of (folder, texts) that returns probabilities (texts, classes), and
list it in TOOLS; cells where it refuses go into REFUSALS. `docs/saved_models.md` shows this table.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from composing import compose_config
from hydra.utils import instantiate
from mlflow_server import post, serve
from networks import NAMES
from peft import PeftModel
from quick import quick
from saved_networks import train_a_little
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    pipeline,
)

from kinopoisk_ft.data.demo import FILE
from kinopoisk_ft.data.preprocessing import Preprocessing
from kinopoisk_ft.data.tokens import encode_ids, find_windows
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.card import Card, read_card
from kinopoisk_ft.models.saving import make_card, save_base, save_network
from kinopoisk_ft.models.tfidf import Tfidf
from kinopoisk_ft.models.tokenizers import train_wordpiece
from kinopoisk_ft.serving.onnx_export import export_onnx
from kinopoisk_ft.serving.predictor import Predictor
from kinopoisk_ft.tasks.record import PYFUNC
from kinopoisk_ft.training.batching import Examples

MAX_LENGTH = 24
# Texts that a tokenizer could misread.
ODD = [
    "да",
    "Фильм [SEP] хороший [CLS] <|endoftext|>",
    "  Два  пробела\n\nи строки  ",
    "ёЁйЙ 8 из 10",
]


def predict(folder: Path, texts: list[str]) -> np.ndarray:
    return Predictor(folder, "cpu").probabilities(texts)


def run_pipeline(folder: Path, texts: list[str]) -> np.ndarray:
    # Without `tokenizer`, an adapter would be used with its base model's tokenizer.
    model = pipeline("text-classification", str(folder), tokenizer=str(folder), device="cpu")
    rows = model(texts, truncation=True, top_k=None)
    # The class names in alphabetical order are also in the order of the classes.
    return np.array([[x["score"] for x in sorted(row, key=lambda x: x["label"])] for row in rows])


def run_peft(folder: Path, texts: list[str]) -> np.ndarray:
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    plain = AutoModelForSequenceClassification.from_pretrained(base or folder / "base")
    module = PeftModel.from_pretrained(plain, str(folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = module(
            **tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
        ).logits
    return np.asarray(torch.softmax(logits.double(), 1))


def run_mlflow(folder: Path, texts: list[str]) -> np.ndarray:
    to = folder.parent / "mlflow"
    mlflow.pyfunc.save_model(
        str(to), python_model=str(PYFUNC), artifacts={"model_folder": str(folder)},
        pip_requirements=["mlflow"],
    )  # fmt: skip
    answers = mlflow.pyfunc.load_model(str(to)).predict(pd.DataFrame({"text": texts}))
    return np.asarray(answers[[f"p_{name}" for name in NAMES]])


def run_server(folder: Path, texts: list[str]) -> np.ndarray:
    """Serve the model that `run_mlflow` has written."""
    away = folder.parent / "served"
    away.mkdir()
    with serve(str(folder.parent / "mlflow"), away) as url:
        status, answer = post(url, texts)
    assert status == 200, answer
    return np.asarray(pd.DataFrame(answer["predictions"])[[f"p_{name}" for name in NAMES]])


def run_onnx(folder: Path, texts: list[str]) -> np.ndarray:
    exported = folder.parent / "onnx"
    export_onnx(folder, exported)
    return Predictor(exported, "cpu").probabilities(texts)


TOOLS: dict[str, Callable[[Path, list[str]], np.ndarray]] = {
    "predict": predict,
    "pipeline": run_pipeline,
    "peft": run_peft,
    "mlflow": run_mlflow,
    "onnx": run_onnx,
    "server": run_server,
}
# An export and the start of a server take seconds.
QUICK_TOOLS = ("predict", "pipeline", "peft", "mlflow")
# {(kind, tool): a part of the error message}.
REFUSALS = {
    ("tfidf", "pipeline"): "config.json",
    ("pooled", "peft"): "[Mm]odules",
    ("mamba", "peft"): "Unrecognized configuration class",
    ("tfidf", "onnx"): "cannot be exported",
}
ROWS = [
    ("pooled", "lora", "windows"), ("mamba", "none", "head_tail"), ("hf", "lora", "tail"),
    *((kind, adapter, truncation) for kind in ("hf", "pooled", "mamba")
      for adapter in ("none", "lora") for truncation in ("head", "tail", "head_tail", "windows")
      if (kind, truncation) != ("hf", "windows")),
    *(("tfidf", "none", truncation) for truncation in ("head", "tail", "head_tail")),
]  # fmt: skip


@cache
def demo_texts() -> list[str]:
    """Return 50 texts of different lengths, and odd ones."""
    reviews = pd.read_json(FILE, lines=True, nrows=50 - len(ODD))
    return [*ODD, *reviews["text"]]


def real_texts(shared: Path) -> list[str]:
    with gzip.open(shared / "data" / "kinopoisk.jsonl.gz", "rt", encoding="utf-8") as lines:
        reviews = [json.loads(next(lines))["content"].removeprefix("\n") for _ in range(400)]
    reviews = sorted(reviews, key=len)
    return [*ODD, *reviews[:: len(reviews) // (50 - len(ODD))]][:50]


def bert(folder: Path, texts: list[str]) -> list[str]:
    """Save a BERT with a tokenizer trained on the texts; return the options of model=encoder."""
    tokenizer = train_wordpiece(texts, 400)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=MAX_LENGTH, initializer_range=0.2,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ["model=encoder", f"model.name={folder}"]


def save_trained(
    kind: str, adapter: str, how: Preprocessing, texts: list[str], folder: Path
) -> np.ndarray:
    """Train and save a model; return the probabilities of the trained one, text by text."""
    if kind == "tfidf":
        return save_tfidf(how, texts, folder)
    base = folder.parent / "base"
    options = {
        "hf": lambda: [*bert(base, texts), "model.pooling=pooler"],
        "pooled": lambda: [*bert(base, texts), "model.pooling=mean"],
        "mamba": lambda: ["model=mamba_scratch", "model.d_model=16", "model.num_layers=2",
                          "model.d_state=4", "model.vocab_size=400"],
    }[kind]()  # fmt: skip
    cfg = compose_config([*options, f"adapter={adapter}"])
    recipe, made = instantiate(cfg.model), instantiate(cfg.adapter)
    recipe.reads_windows = how.reads_windows
    tokenizer = recipe.load_tokenizer(texts)
    torch.manual_seed(0)
    network = recipe.build(NAMES, tokenizer)
    if network.base is None and made.needs_saved_base:
        save_base(network, folder)
    adapted = made.apply(network)
    ids, windows = encode_ids(texts, tokenizer, how), find_windows(tokenizer, how)
    assert max(map(len, ids)) >= MAX_LENGTH
    examples = Examples(ids, None, windows)
    module: Any = adapted.module
    train_a_little(module, examples.pad(range(8), tokenizer.pad_token_id))
    module.eval()
    logits = center(module, [examples.pad([i], tokenizer.pad_token_id) for i in range(len(texts))])
    card = make_card(network, adapted, NAMES, **asdict(how))
    save_network(network, adapted, tokenizer, card, folder)
    return np.asarray(torch.softmax(logits.double(), 1))


@torch.no_grad()
def center(module: Any, batches: list[dict[str, Any]]) -> torch.Tensor:
    """Make a network's answers differ between texts; return the logits."""
    trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    weight = next(p for n, p in trained if "classifier" in n and n.endswith("weight"))
    bias = next(p for n, p in trained if "classifier" in n and n.endswith("bias"))
    torch.nn.init.normal_(weight, std=2.0)
    logits = torch.cat([module(**batch).logits for batch in batches])
    shift = (logits[:, 0] - logits[:, 1]).mean()
    bias[0] -= shift
    logits[:, 0] -= shift
    return logits


def save_tfidf(how: Preprocessing, texts: list[str], folder: Path) -> np.ndarray:
    model = Tfidf(ngrams=2, min_df=1, sublinear_tf=True, C=10.0, class_weight="balanced")
    cut = how.texts(texts)
    model.fit_texts(cut, np.arange(len(cut)) % 2, 2)
    folder.mkdir(parents=True)
    model.save(folder)
    Card("tfidf", list(NAMES), **asdict(how)).write(folder)
    return model.predict_proba(cut)


def check_row(
    kind: str,
    adapter: str,
    truncation: str,
    texts: list[str],
    folder: Path,
    tools: Iterable[str] = tuple(TOOLS),
) -> None:
    characters = 300 if kind == "tfidf" else None
    how = Preprocessing(MAX_LENGTH, truncation, characters)
    expected = save_trained(kind, adapter, how, texts, folder)
    # With nearly equal answers, a tool that reads other tokens would not be noticed.
    assert expected[:, 0].std() > 0.01
    for tool in tools:
        run = TOOLS[tool]
        if (tool == "peft" and adapter == "none") or (tool == "server" and truncation != "head"):
            continue
        if (kind, tool) in REFUSALS:
            with pytest.raises((OSError, ValueError, UserError), match=REFUSALS[kind, tool]):
                run(folder, texts)
        elif (kind, truncation) == ("hf", "head_tail") and tool in ("pipeline", "peft"):
            # The classifiers of transformers cannot read the head and the tail of a text.
            assert "not its head and tail" in read_card(folder).note
        else:
            np.testing.assert_allclose(run(folder, texts), expected, atol=1e-4, err_msg=tool)


@pytest.mark.parametrize(("kind", "adapter", "truncation"), quick(ROWS[:2], 1))
def test_each_tool_gives_our_probabilities_or_refuses(
    tmp_path: Path, kind: str, adapter: str, truncation: str
) -> None:
    check_row(kind, adapter, truncation, demo_texts(), tmp_path / "model", QUICK_TOOLS)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "adapter", "truncation"), sorted(set(ROWS)))
def test_each_tool_on_real_reviews(
    tmp_path: Path, shared: Path, kind: str, adapter: str, truncation: str
) -> None:
    check_row(kind, adapter, truncation, real_texts(shared), tmp_path / "model")
