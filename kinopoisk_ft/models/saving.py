"""Save and load model folders: weights in safetensors, the rest in JSON.

The card `kinopoisk_ft.json` describes the folder. Other tools load the same classifier or refuse
the folder; they never use a randomly initialized head. What they can load depends on the network:

- A classifier of `transformers`: `AutoModelForSequenceClassification` and `pipeline` load it, and
  PEFT loads its adapters.
- An encoder or Mamba with this project's head: `transformers` loads it after `import kinopoisk_ft`;
  see `kinopoisk_ft.models.hf_classes`. It loads the encoder without the head from the subfolder
  `encoder`, and `MambaModel` loads Mamba's backbone.
- An adapter of an encoder or Mamba with this project's head: after `import kinopoisk_ft`,
  `transformers` loads the base model and merges the adapter into it. PEFT cannot load the adapter
  into a model without this head, because the config of the adapter lists modules that only this
  project's networks have.
- A network of a user-defined `ModelRecipe`: no other tool loads it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from kinopoisk_ft.data.tokens import count_added_tokens
from kinopoisk_ft.data.windows import Windows
from kinopoisk_ft.files import write_folder_atomically
from kinopoisk_ft.hub_access import access_hub
from kinopoisk_ft.models.card import BASE, BASE_FILES, CARD, Card, read_card
from kinopoisk_ft.models.frozen_weights import find_dtype, store_in_fp32
from kinopoisk_ft.models.heads import HuggingFaceLayout, PooledLayout
from kinopoisk_ft.models.hf_classes import SavedClassifier
from kinopoisk_ft.models.mamba_recipe import MambaLayout
from kinopoisk_ft.models.network import Adapted, Layout, Network
from kinopoisk_ft.models.onnx_model import OnnxLayout
from kinopoisk_ft.models.tokenizers import check_folder, load_tokenizer
from kinopoisk_ft.models.untrusted import (
    ADAPTER,
    check_adapter,
    explain_load_errors,
    read_json_object,
)

# The `kind` of a card is the name of one of these layouts.
LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (Layout(), HuggingFaceLayout(), PooledLayout(), MambaLayout(), OnnxLayout())
}

LOAD_FIX = "copy or download the whole model folder again; an adapter also needs its base model"


def make_card(
    network: Network,
    adapted: Adapted,
    class_names: Sequence[str],
    recipe: Mapping[str, Any] | None = None,
    **preprocessing: Any,
) -> Card:
    """Create the card of a trained network.

    Args:
        recipe: options of the `ModelRecipe`; stored only if loading builds the network from them.
        preprocessing: the options of `Preprocessing`.
    """
    layout: Any = network.layout.name
    card = Card(
        kind=layout,
        recipe=dict(recipe) if recipe and layout == Layout.name else None,
        class_names=list(class_names),
        **preprocessing,
        window_pooling=network.window_pooling,
        pooling=network.pooling,
        is_peft=adapted.is_peft,
        base=network.base,
        revision=network.revision,
        dtype=find_dtype(adapted.module),
    )
    return replace(card, note=_describe_differences(card))


def _describe_differences(card: Card) -> str:
    notes, length = [], card.max_length
    divided = _divides_texts(card)
    if card.truncation == "head_tail" and not divided:
        notes.append(f"keep the first {length} tokens of a longer text, not its head and tail")
    if card.truncation == "windows" and not divided:
        notes.append(f"keep the first {length} tokens of a longer text instead of all its windows")
    if (characters := card.max_characters) is not None:
        notes.append(f"do not truncate texts to {characters} characters before tokenization")
    if card.text_prefix:
        notes.append(f"do not put {card.text_prefix!r} before a text")
    if card.strip_scores:
        notes.append("do not remove grades written in a text")
    return f"Tools other than kinopoisk_ft {'; they '.join(notes)}." if notes else ""


def save_base(network: Network, folder: Path) -> None:
    """Save a randomly initialized base model before an adapter is applied."""
    # An adapter that an earlier run left here belongs to another base, so it must not be loaded.
    (folder / CARD).unlink(missing_ok=True)
    with write_folder_atomically(folder / BASE, "config.json", BASE_FILES) as part:
        network.layout.save(network.module, part)


def save_network(
    network: Network, adapted: Adapted, tokenizer: Any, card: Card, folder: Path
) -> None:
    """Save a trained model with its tokenizer and card."""
    folder.mkdir(parents=True, exist_ok=True)
    module: Any = adapted.module
    if adapted.is_peft:
        # With the default "auto", PEFT would ask the Hub whether the vocabulary has changed.
        module.save_pretrained(folder, save_embedding_layers=False)
        # PEFT writes an empty README.md. reporting/model_card.py writes another one later.
        (folder / "README.md").unlink(missing_ok=True)
    else:
        network.layout.save(module, folder)
    windows = _find_windows(tokenizer, card) if _divides_texts(card) else None
    network.layout.save_config(network.module, card, windows, folder)
    # In transformers, VERY_LARGE_INTEGER means that there is no limit.
    _save_tokenizer(tokenizer, card, VERY_LARGE_INTEGER if windows else card.max_length, folder)
    # The card is written last, because a folder without a card is not a model folder.
    card.write(folder)


def _divides_texts(card: Card) -> bool:
    """Return whether the saved classifier itself divides or shortens long texts.

    If so, the saved tokenizer does not truncate, so that other tools pass whole texts.
    """
    is_divided = card.truncation == "head_tail" or card.window_pooling is not None
    return is_divided and LAYOUTS[card.kind].divides_long_texts


def _find_windows(tokenizer: Any, card: Card) -> Windows:
    left, right = count_added_tokens(tokenizer, card.text_prefix)
    room = card.max_length - left - right
    if card.truncation == "head_tail":
        # A single window keeps the head and the tail of a text.
        return Windows.of(room, None, 1, left, right)
    return Windows.of(room, card.window_stride, card.max_windows, left, right)


def _save_tokenizer(tokenizer: Any, card: Card, max_length: int, folder: Path) -> None:
    # Other tools truncate texts to this length on this side if they tokenize with truncation=True.
    # Tokenizers have no setting for other parts; the card's note explains the difference.
    settings = {
        "model_max_length": max_length,
        "truncation_side": "left" if card.truncation == "tail" else "right",
        "padding_side": "right",
        # "[SEP]" in a review is ordinary text, not a special token.
        "split_special_tokens": True,
    }
    # The tokenizer of the caller keeps its own settings.
    tokenizer = copy.copy(tokenizer)
    # `save_pretrained` saves the values of attributes, but only of those in `init_kwargs`.
    tokenizer.init_kwargs = {**tokenizer.init_kwargs, **settings}
    for name, value in settings.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)


def save_language_model(network: Network, tokenizer: Any, folder: Path) -> None:
    """Save a pretrained language model as a checkpoint for `model.name`."""
    folder.mkdir(parents=True, exist_ok=True)
    network.layout.save(network.module, folder)
    tokenizer.save_pretrained(folder)


def load_network(folder: Path) -> tuple[nn.Module, Any, Card]:
    """Load a network from a model folder.

    Returns:
        The module in evaluation mode, the tokenizer, and the card (the content of the folder's
        kinopoisk_ft.json). The weights are fp32, except those that are bf16 according to `dtype`
        of the card.

    Raises:
        UserError: the folder is damaged or unsafe, or has no card.
    """
    card = read_card(folder)
    layout = LAYOUTS[card.kind]
    source = str(folder)
    if card.is_peft:
        # A base with random weights exists nowhere else, so it was saved with the adapter.
        source = str(folder / BASE) if card.has_own_base else str(card.base)
        # This check must come before PEFT reads the adapter, which could make it import a module.
        check_adapter(folder)
        check_folder(source, CARD)
    with explain_load_errors(folder):
        with access_hub("model", source, LOAD_FIX):
            tokenizer = load_tokenizer(str(folder))
            module = layout.load(source, card, tokenizer, trained=not card.is_peft)
            layout.match_tokenizer(module, tokenizer, source)
            if card.is_peft:
                # The adapter contains trained copies of these modules, in fp32.
                trained = read_json_object(folder / ADAPTER).get("modules_to_save")
                store_in_fp32(module, trained or ())
                module = PeftModel.from_pretrained(module, str(folder))
        return module.eval(), tokenizer, card


SavedClassifier.load_adapted = staticmethod(lambda folder: load_network(folder)[0])
