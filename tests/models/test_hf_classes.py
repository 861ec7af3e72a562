"""Check that saved models are ordinary transformers models after `import kinopoisk_ft`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
from hub_server import HubServer
from networks import NAMES, make
from quick import quick
from safetensors.torch import load_file, save_file
from saved_networks import TEXTS, save, train_a_little
from transformers import AutoConfig, AutoModelForSequenceClassification

from kinopoisk_ft.data.windows import pad
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.checkpoints import load_config
from kinopoisk_ft.models.heads import HEAD
from kinopoisk_ft.models.hf_configs import MambaClassifierConfig, PooledConfig
from kinopoisk_ft.models.mamba_recipe import read_config
from kinopoisk_ft.models.saving import load_network, make_card, save_network

OURS = ("pooled", "mamba", "mamba2", "bert_scratch")

# Opens folders with `pipeline`; the project is imported before or after transformers.
CHILD = """
import json, sys
folders, texts, first = json.load(sys.stdin)
if first:
    import kinopoisk_ft
    assert not {"torch", "transformers"} & sys.modules.keys()
from transformers import pipeline
def classify(folder):
    model = pipeline("text-classification", folder, top_k=None, function_to_apply="none")
    rows = model(texts, truncation=True)
    return [[one["score"] for one in sorted(row, key=lambda one: one["label"])] for row in rows]
refusals = []
if not first:
    for folder in folders:
        try:
            classify(folder)
        except ValueError as error:
            refusals.append(str(error))
    import kinopoisk_ft
print("RESULT" + json.dumps([refusals, [classify(folder) for folder in folders]]))
"""


@pytest.mark.parametrize(
    ("first", "kinds", "adapters"),
    [
        pytest.param(False, ("pooled",), ("none",), marks=pytest.mark.slow),
        pytest.param(True, OURS, ("none", "lora"), marks=pytest.mark.slow),
        pytest.param(False, OURS, ("none", "lora"), marks=pytest.mark.slow),
    ],
    ids=["one", "imported before transformers", "imported after transformers"],
)
def test_pipelines_of_a_new_process(
    tmp_path: Path, first: bool, kinds: tuple[str, ...], adapters: tuple[str, ...]
) -> None:
    folders, expected = [], []
    for kind in kinds:
        for adapter in adapters:
            folders.append(str(tmp_path / f"{kind}-{adapter}"))
            expected.append(save(kind, adapter, Path(folders[-1])).tolist())
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps([folders, TEXTS, first]), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    refusals, found = json.loads(done.stdout.split("RESULT")[1])
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-5, rtol=1e-4)
    assert len(refusals) == (0 if first else len(folders))
    assert all("run `import kinopoisk_ft` first" in refusal for refusal in refusals)
    assert "is not supported for text-classification" not in done.stderr


def test_the_import_alone_is_light() -> None:
    code = "import sys, kinopoisk_ft; print({'torch', 'transformers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


HUB_CHILD = """
import json, sys
import kinopoisk_ft
from transformers import pipeline
found = []
for name in ("study/whole", "study/adapter"):
    try:
        model = pipeline("text-classification", name, function_to_apply="none")
        found.append([one["score"] for one in model(sys.argv[1:], truncation=True)])
    except ValueError as error:
        found.append(str(error))
print("RESULT" + json.dumps(found))
"""


@pytest.mark.slow
def test_a_folder_on_the_hub(hub: HubServer) -> None:
    """A whole model is opened. For an adapter, transformers opens its base model and refuses it."""
    expected = save("pooled", "none", hub.repo("study/whole")).max(1).values
    save("pooled", "lora", hub.repo("study/adapter"))
    process = hub.run(HUB_CHILD, *TEXTS)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    whole, refusal = json.loads(out.split("RESULT")[1])
    torch.testing.assert_close(torch.tensor(whole), expected, atol=1e-5, rtol=1e-4)
    assert "odules" in refusal


def compute(module: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = module.eval()(**inputs).logits
    return logits


def encode(folder: Path) -> dict[str, Any]:
    _, tokenizer, _ = load_network(folder)
    return pad(tokenizer(TEXTS, truncation=True)["input_ids"], tokenizer.pad_token_id)


@pytest.mark.parametrize(
    ("kind", "adapter"), quick([(k, a) for a in ("lora", "none") for k in OURS], 2)
)
def test_a_loaded_classifier_is_saved_as_one(tmp_path: Path, kind: str, adapter: str) -> None:
    """The adapter of a run becomes a whole model in this way."""
    expected = save(kind, adapter, tmp_path / "ours")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "theirs")
    assert type(again) is type(model)
    assert again.config.id2label == dict(enumerate(NAMES))
    assert "/" not in (tmp_path / "theirs" / "config.json").read_text().replace("`", "")
    assert {file.suffix for file in (tmp_path / "theirs").iterdir()} == {".json", ".safetensors"}
    inputs = encode(tmp_path / "ours")
    for module in (model, again):
        torch.testing.assert_close(compute(module, inputs), expected, atol=1e-5, rtol=1e-4)


def test_windows_are_pooled_by_the_loaded_classifier(tmp_path: Path) -> None:
    _, made, network, tokenizer = make("pooled", "none", "+model.reads_windows=true",
                                       "model.window_pooling=attention")  # fmt: skip
    adapted = made.apply(network)
    mask = torch.ones(2, 3, 8, dtype=torch.int64)
    mask[1, 1:] = 0
    inputs = {"input_ids": torch.arange(48).view(2, 3, 8), "attention_mask": mask}
    train_a_little(network.module, inputs)
    card = make_card(network, adapted, NAMES, max_length=8, truncation="windows")
    save_network(network, adapted, tokenizer, card, tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(compute(loaded, inputs), compute(network.module, inputs))


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in architectures.SIZES if n not in architectures.OUR_OWN])
def test_an_encoder_of_every_architecture(tmp_path: Path, name: str) -> None:
    base = architectures.checkpoint(tmp_path / "base", name)
    expected = save("pooled", "none", tmp_path / "model", f"model.name={base}")
    inputs = encode(tmp_path / "model")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(compute(loaded, inputs), expected, atol=1e-5, rtol=1e-4)


def test_a_classifier_without_all_weights_is_refused(tmp_path: Path) -> None:
    save("pooled", "none", tmp_path)
    weights = load_file(tmp_path / HEAD)
    del weights["classifier.bias"]
    save_file(weights, tmp_path / HEAD, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights of the classifier: classifier\.bias"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_a_classifier_as_the_base_of_another_run(tmp_path: Path) -> None:
    """A Mamba can be the base, and so can the encoder of a pooled classifier."""
    save("pooled", "none", tmp_path / "pooled")
    save("mamba", "none", tmp_path / "mamba")
    assert isinstance(AutoConfig.from_pretrained(tmp_path / "pooled"), PooledConfig)
    with pytest.raises(UserError, match=r"model\.name=\S+/encoder"):
        load_config(str(tmp_path / "pooled"), None)
    assert load_config(str(tmp_path / "pooled" / "encoder"), None).model_type == "bert"
    assert isinstance(AutoConfig.from_pretrained(tmp_path / "mamba"), MambaClassifierConfig)
    config = read_config(str(tmp_path / "mamba"), None)
    assert config.model_type == "mamba"
    assert "pooling" not in config.to_dict()
