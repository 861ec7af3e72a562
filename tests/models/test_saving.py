"""Check that networks with adapters give the same logits after loading in a new process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from huggingface_hub import constants
from networks import ADAPTERS, KINDS, NAMES, make
from peft import AutoPeftModelForSequenceClassification, PeftModel
from quick import quick
from safetensors.torch import load_file, save_file
from saved_networks import TEXTS, run_fork, save, train_a_little
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    MambaModel,
    pipeline,
)

from kinopoisk_ft.data.windows import pad
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.card import read_card
from kinopoisk_ft.models.saving import load_network, make_card, save_network
from kinopoisk_ft.models.tfidf import Tfidf
from kinopoisk_ft.serving.predictor import Predictor

MAMBA_TARGETS = ["in_proj", "x_proj", "dt_proj", "out_proj"]

LOADER = """
import json, sys
import torch
from kinopoisk_ft.serving.predictor import Predictor
folders, texts = json.load(sys.stdin)
out = {}
for name, folder in folders.items():
    out[name] = Predictor(__import__("pathlib").Path(folder), "cpu").logits(texts).tolist()
print("RESULT" + json.dumps(out))
"""


def run_interpreter(folders: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", LOADER],
        input=json.dumps([folders, TEXTS]),
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout.split("RESULT")[1]))


@pytest.mark.parametrize(
    ("kinds", "adapters", "run"),
    [
        (("bert", "mamba"), ("none", "lora"), run_fork),
        pytest.param(KINDS, ADAPTERS, run_interpreter, marks=pytest.mark.slow),
    ],
    ids=["a few", "all"],
)
def test_a_new_process_gives_equal_logits(
    tmp_path: Path,
    kinds: tuple[str, ...],
    adapters: tuple[str, ...],
    run: Callable[[dict[str, str]], dict[str, Any]],
) -> None:
    """One new process loads all pairs; it shares only the folders with this one."""
    expected, folders = {}, {}
    for kind in kinds:
        for adapter in adapters:
            name = f"{kind}-{adapter}"
            folders[name] = str(tmp_path / name)
            expected[name] = save(kind, adapter, tmp_path / name)
    for target in MAMBA_TARGETS:
        name = f"mamba-lora-{target}"
        folders[name] = str(tmp_path / name)
        alone = f"adapter.config.target_modules=[{target}]"
        expected[name] = save("mamba", "lora", tmp_path / name, alone)
    found = run(folders)
    assert len(found) == len(kinds) * len(adapters) + len(MAMBA_TARGETS)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    save("bert", "lora", tmp_path / "a")
    save("mamba", "none", tmp_path / "b")
    endings = {file.suffix for file in tmp_path.rglob("*") if file.is_file()}
    assert endings <= {".json", ".safetensors", ".md", ".txt"}


def test_bert_loads_in_transformers_and_pipeline(tmp_path: Path) -> None:
    expected = torch.softmax(save("bert", "none", tmp_path), dim=1).numpy()
    module = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert module.config.id2label == {0: "Bad", 1: "Good"}
    answers = pipeline("text-classification", model=str(tmp_path), device="cpu")(TEXTS)
    for answer, row in zip(answers, expected, strict=True):
        assert answer["label"] == NAMES[row.argmax()]
        assert answer["score"] == pytest.approx(row.max(), abs=1e-5)


def test_lora_loads_in_peft(tmp_path: Path) -> None:
    expected = save("bert", "lora", tmp_path)
    base = AutoModelForSequenceClassification.from_pretrained(tiny.bert(), num_labels=2)
    modules = [
        PeftModel.from_pretrained(base, str(tmp_path)),
        AutoPeftModelForSequenceClassification.from_pretrained(str(tmp_path), num_labels=2),
    ]
    tokenizer = make("bert")[3]
    inputs = pad(tokenizer(TEXTS)["input_ids"], tokenizer.pad_token_id)
    for module in modules:
        with torch.no_grad():
            found = module.eval()(**inputs).logits
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_adapter_names_the_revision_of_its_base(tmp_path: Path) -> None:
    """AutoPeftModel reads it; without one, it would load the main branch."""
    _, made, network, tokenizer = make("bert", "lora")
    network.revision = "v1"
    adapted = made.apply(network)
    card = make_card(network, adapted, NAMES, max_length=9)
    save_network(network, adapted, tokenizer, card, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))
    assert (config["revision"], read_card(tmp_path).revision) == ("v1", "v1")


def test_the_fix_for_a_damaged_model_is_not_about_training(tmp_path: Path) -> None:
    save("bert", "none", tmp_path)
    # The head in this folder has two classes.
    replace(read_card(tmp_path), class_names=["Bad", "Neutral", "Good"]).write(tmp_path)
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        load_network(tmp_path)
    assert str(caught.value.fix).startswith("copy or download the whole model folder again")


def test_peft_loads_the_recorded_revision_of_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base is in the cache of the hub, with other weights in its main branch."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--study--base"
    (repo / "refs").mkdir(parents=True)
    for branch, commit in (("v1", "1" * 40), ("main", "2" * 40)):
        (repo / "refs" / branch).write_text(commit)
        shutil.copytree(tiny.bert(), repo / "snapshots" / commit)
    # This folder is the last one, which belongs to the main branch.
    file = repo / "snapshots" / commit / "model.safetensors"
    changed = {name: weight + 0.1 for name, weight in load_file(file).items()}
    save_file(changed, file, metadata={"format": "pt"})
    expected = save(
        "bert", "lora", tmp_path / "model", "model.name=study/base", "model.revision=v1"
    )
    torch.testing.assert_close(Predictor(tmp_path / "model", "cpu").logits(TEXTS), expected)
    folder = str(tmp_path / "model")
    module = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = pad(tokenizer(TEXTS)["input_ids"], tokenizer.pad_token_id)
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(**inputs).logits, expected)


def test_encoder_and_mamba_load_in_transformers(tmp_path: Path) -> None:
    save("pooled", "none", tmp_path / "pooled")
    save("mamba", "none", tmp_path / "mamba")
    for kind, key, cls, inner in (
        ("pooled", "encoder", AutoModel, "encoder"), ("mamba", "backbone", MambaModel, "."),
    ):  # fmt: skip
        ours: Any = getattr(load_network(tmp_path / kind)[0], key)
        theirs, info = cls.from_pretrained(tmp_path / kind / inner, output_loading_info=True)
        assert not {name for name in info["missing_keys"] if "pooler" not in name}
        ids = torch.arange(5, 15)[None]
        mask = torch.ones_like(ids)
        with torch.no_grad():
            hidden = ours(input_ids=ids, attention_mask=mask)
            hidden = getattr(hidden, "last_hidden_state", hidden)
            expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "adapter", "target"),
    quick(
        [
            ("mamba", "ia3", "in_proj"), ("mamba2", "lora", "in_proj"),
            ("mamba2", "dora", "out_proj"),
            *(("mamba", adapter, target) for adapter in ("lora", "dora", "rslora")
              for target in MAMBA_TARGETS),
        ],
        7,
    ),
)  # fmt: skip
def test_merged_adapters_on_mamba_give_equal_logits(kind: str, adapter: str, target: str) -> None:
    more = ["adapter.config.feedforward_modules=[]"] if adapter == "ia3" else []
    _, made, network, tokenizer = make(
        kind, adapter, f"adapter.config.target_modules=[{target}]", *more
    )
    module: Any = made.apply(network).module
    inputs = pad(tokenizer(TEXTS)["input_ids"], tokenizer.pad_token_id)
    train_a_little(module, inputs)
    with torch.no_grad():
        expected = module.eval()(**inputs).logits
        merged = module.merge_and_unload()(**inputs).logits
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-4)


def test_fp16_checkpoint_is_trained_in_fp32() -> None:
    half = tiny.bert(with_pooler=False, half=True)
    network = make("bert", "none", f"model.name={half}", "model.pooling=auto")[2]
    assert {p.dtype for p in network.module.parameters()} == {torch.float32}
    assert (network.layout.name, network.pooling) == ("pooled", "mean")


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_pooling_by_name(pooling: str) -> None:
    network = make("bert", "none", f"model.pooling={pooling}")[2]
    assert (network.layout.name, network.pooling) == ("pooled", pooling)


def test_auto_takes_a_trained_pooler() -> None:
    network = make("bert", "none", "model.pooling=auto")[2]
    assert network.layout.name == "hf"
    assert network.fresh == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("kind", KINDS)
def test_padding_never_changes_a_result(kind: str) -> None:
    _, _, network, tokenizer = make(kind)
    module = network.module.eval()
    ids = tokenizer(TEXTS)["input_ids"]
    # Padding to a multiple of 48 tokens pads the longest text too.
    longest = max(map(len, ids))
    filler = [tokenizer.pad_token_id] * (longest + -longest % 48)
    together = {name: value[:-1] for name, value in pad([*ids, filler], filler[0]).items()}
    with torch.no_grad():
        batch = module(**together).logits
        alone = torch.cat([module(**pad([row], tokenizer.pad_token_id)).logits for row in ids])
    torch.testing.assert_close(batch, alone, atol=1e-5, rtol=1e-5)


def test_tfidf_saves_and_loads(tmp_path: Path) -> None:
    texts, labels = tiny.reviews(60)
    model = Tfidf(ngrams=2, min_df=2, sublinear_tf=True, C=10.0, class_weight="balanced")
    model.fit_texts(texts, np.array(labels), 2).save(tmp_path)
    again = Tfidf.load(tmp_path)
    np.testing.assert_array_equal(model.predict_proba(TEXTS), again.predict_proba(TEXTS))
    assert again.parameters == model.parameters == len(model.vectorizer.vocabulary_) + 1


@pytest.mark.parametrize("kind", ["bert", "pooled"])
def test_weights_that_are_missing_are_not_drawn_at_random(kind: str, tmp_path: Path) -> None:
    save(kind, "none", tmp_path)
    file = tmp_path / ("encoder" if kind == "pooled" else ".") / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("query.weight"))
    save_file({key: tensors[key] for key in tensors if key != name}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing, for example .*query\.weight"):
        Predictor(tmp_path, "cpu")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a model folder"):
        read_card(tmp_path)
    (tmp_path / "kinopoisk_ft.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        read_card(tmp_path)
    # The card of a newer version has an unknown field.
    (tmp_path / "kinopoisk_ft.json").write_text('{"format": 6, "new": 1}')
    with pytest.raises(UserError, match="has format 6, but this version"):
        read_card(tmp_path)
