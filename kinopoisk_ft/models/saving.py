"""Save and load model folders: weights in safetensors, the rest in JSON.

`kinopoisk_ft.json` says what a folder holds. `transformers` and PEFT read these folders with the
same logits, or refuse them; they never answer with a random head:

- a classifier of `transformers`: `AutoModelForSequenceClassification` and `pipeline` read it, and
  PEFT its adapter;
- an encoder with our pooling and head: the folder's own config.json is one that `transformers`
  refuses; `AutoModel` reads the encoder from the folder `encoder`; the head is head.safetensors;
- Mamba with our head: in the layout of its checkpoints, `MambaModel` reads the backbone;
- a network of a user's own recipe: model.safetensors, for this project alone;
- an adapter on our head: it names modules that exist in our network alone, so that PEFT refuses it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from kinopoisk_ft.files import write_folder_atomically
from kinopoisk_ft.hub_access import access_hub
from kinopoisk_ft.models.card import CARD, Card, read_card
from kinopoisk_ft.models.heads import HuggingFaceLayout, PooledLayout
from kinopoisk_ft.models.mamba_recipe import MambaLayout
from kinopoisk_ft.models.network import Adapted, Layout, Network
from kinopoisk_ft.models.tfidf import Tfidf
from kinopoisk_ft.models.tokenizers import HUB_FIX, check_folder, load_tokenizer
from kinopoisk_ft.models.untrusted import check_adapter, fits_together

LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (Layout(), HuggingFaceLayout(), PooledLayout(), MambaLayout())
}


def make_card(
    network: Network,
    adapted: Adapted,
    class_names: Sequence[str],
    max_length: int,
    recipe: Mapping[str, Any] | None = None,
    **preprocessing: Any,
) -> Card:
    """Return the card of a trained network.

    Args:
        recipe: the options of the group `model`, for a network that its recipe builds again.
        preprocessing: the card's fields of that.
    """
    layout: Any = network.layout.name
    return Card(
        kind=layout,
        recipe=dict(recipe) if recipe and layout == Layout.name else None,
        class_names=list(class_names),
        max_length=max_length,
        **preprocessing,
        pooling=network.pooling,
        is_peft=adapted.is_peft,
        base=network.base,
        revision=network.revision,
        note=_differences(max_length, **preprocessing),
    )


def _differences(
    max_length: int,
    truncation: str = "head",
    max_characters: int | None = None,
    strip_scores: bool = False,
) -> str:
    """Return how other tools treat texts differently from training; empty if they do not."""
    found = []
    if truncation == "head_tail":
        found.append(f"keep the first {max_length} tokens of a longer text, not its head and tail")
    if max_characters is not None:
        found.append(f"do not cut texts to {max_characters} characters before tokenizing")
    if strip_scores:
        found.append("do not remove written grades")
    return f"Tools other than kinopoisk_ft {'; they '.join(found)}." if found else ""


def save_base(network: Network, folder: Path) -> None:
    """Write a network that no checkpoint gave, before an adapter goes on it."""
    # An adapter that is there already belongs to another base.
    (folder / CARD).unlink(missing_ok=True)
    with write_folder_atomically(folder / "base", "config.json") as part:
        network.layout.save(network.module, part)


def save_network(
    network: Network, adapted: Adapted, tokenizer: Any, card: Card, folder: Path
) -> None:
    """Write a trained model so that it can be used without the run that made it."""
    folder.mkdir(parents=True, exist_ok=True)
    module: Any = adapted.module
    if adapted.is_peft:
        # "auto" would ask the hub whether the vocabulary has changed.
        module.save_pretrained(folder, save_embedding_layers=False)
    else:
        network.layout.save(module, folder)
    # Other tools truncate with truncation=True to this length, at this side; there is no setting
    # for truncation=head_tail, which the card's note says.
    tokenizer = copy.copy(tokenizer)
    tokenizer.model_max_length = card.max_length
    tokenizer.truncation_side = "left" if card.truncation == "tail" else "right"
    # save_pretrained writes the attributes that init_kwargs names.
    tokenizer.init_kwargs = {**tokenizer.init_kwargs, "truncation_side": tokenizer.truncation_side}
    tokenizer.save_pretrained(folder)
    card.write(folder)


def save_language_model(network: Network, tokenizer: Any, folder: Path) -> None:
    """Write a pretrained base in the layout of its kind's checkpoints, for `model.name`."""
    folder.mkdir(parents=True, exist_ok=True)
    network.layout.save(network.module, folder)
    tokenizer.save_pretrained(folder)


def load_network(folder: Path) -> tuple[nn.Module, Any, Card]:
    """Return module (evaluation mode, fp32), tokenizer and card of a saved folder."""
    card = read_card(folder)
    layout = LAYOUTS[card.kind]
    inner = folder / "base"
    source = str(folder) if not card.is_peft else str(inner) if inner.is_dir() else str(card.base)
    if card.is_peft:
        check_adapter(folder)
        check_folder(source, CARD)
    with fits_together(folder):
        with access_hub("model", source, HUB_FIX):
            tokenizer = load_tokenizer(str(folder))
            module = layout.load(source, card, tokenizer, trained=not card.is_peft)
            layout.match_tokenizer(module, tokenizer, source)
            if card.is_peft:
                module = PeftModel.from_pretrained(module, str(folder))
        return module.eval(), tokenizer, card


def load_estimator(folder: Path, card: Card) -> Tfidf | None:
    """Return the estimator of a saved folder; None if it holds a network."""
    return None if card.kind in LAYOUTS else Tfidf.load(folder)
