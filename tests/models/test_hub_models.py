"""Load each kind of network from a hub, then from the cache without the hub, and offline."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import tiny
from composing import compose_config
from hub_server import HubServer
from hydra.utils import instantiate
from networks import NAMES
from places import HELPERS
from transformers import MambaModel

# Runs in a separate process, because huggingface_hub reads its environment once.
BUILD = """
import json, sys
sys.path.insert(0, sys.argv[1])
from composing import compose_config
from hydra.utils import instantiate
from kinopoisk_ft.errors import UserError
out = {}
for overrides in json.loads(sys.argv[2]):
    recipe = instantiate(compose_config(overrides).model)
    try:
        tokenizer = recipe.load_tokenizer([])
        module = recipe.build(("Bad", "Good"), tokenizer).module
        body = [p.double().sum().item() for n, p in module.named_parameters() if "classif" not in n]
        out[overrides[0]] = [tokenizer("фильм")["input_ids"], sum(body)]
    except UserError as error:
        out[overrides[0]] = [error.what, error.fix]
print("RESULT" + json.dumps(out))
"""
OVERRIDES = [
    ["model=encoder", "model.name=study/bert"],
    ["model=mamba", "model.name=study/mamba", "model.tokenizer=study/mamba"],
    ["model=mamba_ru", "model.name=study/shards", "model.tokenizer=study/shards"],
]


def built(hub: HubServer, *, offline: bool = False, home: str = "home") -> dict[str, list[object]]:
    """Build each network in a new process that can reach only this hub."""
    process = hub.run(BUILD, str(HELPERS), json.dumps(OVERRIDES), offline=offline, home=home)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found: dict[str, list[object]] = json.loads(out.split("RESULT")[1])
    return found


@pytest.mark.slow
def test_networks_from_the_hub_its_cache_and_offline(hub: HubServer) -> None:
    shutil.copytree(tiny.bert(), hub.repo("study/bert"), dirs_exist_ok=True)
    shutil.copytree(tiny.mamba(), hub.repo("study/mamba"), dirs_exist_ok=True)
    shards = hub.repo("study/shards")
    shutil.copytree(tiny.mamba(), shards, dirs_exist_ok=True)
    (shards / "model.safetensors").unlink()
    MambaModel.from_pretrained(tiny.mamba()).save_pretrained(shards, max_shard_size="10KB")
    assert len([*shards.glob("*.safetensors")]) > 1
    cold = built(hub)
    folders = (tiny.bert(), tiny.mamba(), tiny.mamba())
    for overrides, folder in zip(OVERRIDES, folders, strict=True):
        local = [re.sub("study/[a-z]+", folder, override) for override in overrides]
        recipe = instantiate(compose_config(local).model)
        tokenizer = recipe.load_tokenizer([])
        module = recipe.build(NAMES, tokenizer).module
        body = [p.double().sum().item() for n, p in module.named_parameters() if "classif" not in n]
        assert cold[overrides[0]] == [tokenizer("фильм")["input_ids"], sum(body)]
    hub.stop()
    assert built(hub) == cold
    assert built(hub, offline=True) == cold
    for what, fix in built(hub, home="empty").values():
        assert "study/" in str(what)
        assert "model.name=<folder>" in str(fix)


@pytest.mark.slow
def test_an_adapter_on_the_hub_names_its_base(hub: HubServer) -> None:
    config = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "study/base"})
    for overrides in OVERRIDES:
        folder = hub.repo(overrides[1].removeprefix("model.name="))
        (folder / "adapter_config.json").write_text(config, "utf-8")
        for file in Path(tiny.mamba()).glob("tokenizer*"):
            shutil.copy(file, folder)
    for what, fix in built(hub).values():
        assert "is a PEFT adapter for the base model 'study/base'" in str(what)
        assert "model.name=study/base" in str(fix)
