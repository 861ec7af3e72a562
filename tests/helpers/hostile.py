"""Create malicious files: if their code runs, it leaves a marker file."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from composing import compose_config
from hydra.utils import instantiate
from networks import NAMES, adapter_overrides, model_overrides
from safetensors.torch import load_file

from kinopoisk_ft.models.saving import make_card, save_network

CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import BertConfig, BertModel
class EvilConfig(BertConfig):
    model_type = "evil"
class EvilModel(BertModel):
    config_class = EvilConfig
"""


class Touch:
    """An object that creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def saved(kind: str, adapter: str, folder: Path) -> Path:
    """Write an untrained model in the format of a run; return its folder."""
    cfg = compose_config([*model_overrides(kind), *adapter_overrides(adapter)])
    recipe, made = instantiate(cfg.model), instantiate(cfg.adapter)
    tokenizer = recipe.load_tokenizer(["хороший фильм", "плохой фильм"])
    network = recipe.build(NAMES, tokenizer)
    adapted = made.apply(network)
    save_network(
        network, adapted, tokenizer, make_card(network, adapted, NAMES, max_length=32), folder
    )
    return folder


def with_code(folder: Path, marker: Path) -> Path:
    """Add a module to a model folder, and an `auto_map` to it in each config."""
    (folder / "modeling_evil.py").write_text(CODE.format(marker=str(marker)))
    classes = {"AutoConfig": "EvilConfig", "AutoModel": "EvilModel"}
    classes |= {"AutoModelForSequenceClassification": "EvilModel"}
    auto_map: dict[str, Any] = {k: f"modeling_evil.{v}" for k, v in classes.items()}
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            auto_map["AutoTokenizer"] = ["modeling_evil.EvilConfig", "modeling_evil.EvilConfig"]
            change(folder / name, auto_map=auto_map, model_type="evil", tokenizer_class="Evil")
    return folder


def with_pickle(folder: Path, weights: str, marker: Path) -> Path:
    """Replace the safetensors of a model folder with a malicious pickle."""
    for file in folder.glob("*.safetensors"):
        file.unlink()
    torch.save({"a": Touch(marker)}, folder / weights)
    return folder


def with_honest_pickle(folder: Path, weights: str) -> Path:
    """Replace the main safetensors of a model folder with a harmless pickle of the same tensors."""
    file = folder / weights.replace("pytorch_model", "model").replace(".bin", ".safetensors")
    torch.save(load_file(file), folder / weights)
    file.unlink()
    return folder


def change(file: Path, **values: Any) -> None:
    """Set keys of a JSON object in a file."""
    found = json.loads(file.read_text("utf-8")) | values
    file.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")


def copied(source: str | Path, target: Path) -> Path:
    """Return a copy of a folder."""
    return Path(shutil.copytree(source, target))


def works(marker: Path) -> None:
    """Check that the attack works: unpickling the file creates the marker."""
    pickle.loads(pickle.dumps(Touch(marker)))
    assert marker.exists()
    marker.unlink()


def with_code_only(folder: Path, marker: Path) -> None:
    for name in ("conftest.py", "sitecustomize.py", "modeling_bert.py", "__init__.py"):
        (folder / name).write_text(f"open({str(marker)!r}, 'w')")
