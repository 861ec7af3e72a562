"""Save and load model folders: weights in safetensors, the rest in JSON.

`kinopoisk_ft.json` says what a folder holds. `transformers` and PEFT read these folders with the
same logits, or refuse them; they never answer with a random head:

- a classifier of `transformers`: `AutoModelForSequenceClassification` and `pipeline` read it, and
  PEFT its adapter;
- an encoder with our pooling and head: the folder's own config.json is one that `transformers`
  refuses; `AutoModel` reads the encoder from the folder `encoder`; the head is head.safetensors;
- Mamba with our head: in the layout of its checkpoints, `MambaModel` reads the backbone;
- an adapter on our head: it names modules that exist in our network alone, so that PEFT refuses it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from peft import PeftModel
from pydantic import ConfigDict, TypeAdapter
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import whole_folder
from kinopoisk_ft.hub_access import hub_errors
from kinopoisk_ft.models.checkpoints import load_config, load_encoder
from kinopoisk_ft.models.heads import PooledClassifier, set_classes
from kinopoisk_ft.models.mamba import MambaClassifier
from kinopoisk_ft.models.mamba_recipe import load_backbone, read_config, read_weights
from kinopoisk_ft.models.network import Adapted, Kind, Network
from kinopoisk_ft.models.padding import lengthen, match_tokenizer
from kinopoisk_ft.models.tokenizers import HUB_FIX, check_folder, check_ids, load_tokenizer
from kinopoisk_ft.models.untrusted import check_adapter, check_contents, fits_together

CARD = "kinopoisk_ft.json"
FORMAT = 2
READABLE = (1, FORMAT)  # in format 1 the encoder lies in the folder itself
ENCODER, HEAD = "encoder", "head.safetensors"
# Error messages of transformers quote an unknown model type, so that this one explains itself.
FOREIGN_TYPE = (
    "kinopoisk_ft (transformers cannot read this classifier's pooling and head: use "
    "`python -m kinopoisk_ft.predict`, or read the encoder alone from the folder 'encoder')"
)


@dataclass(frozen=True)
class Card:
    """What a model folder says of itself.

    max_length, truncation, max_characters and strip_scores are what training did to each text, so
    that prediction does the same; a folder without the last three was trained on the heads. `note`
    says where other tools, which know only the saved tokenizer's settings, treat texts differently.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    kind: Kind | Literal["tfidf"]
    class_names: list[str]
    max_length: int
    truncation: str = "head"
    max_characters: int | None = None
    strip_scores: bool = False
    pooling: str = ""
    is_peft: bool = False
    base: str | None = None
    revision: str | None = None
    note: str = ""
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write the card into a folder."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=2)
        (folder / CARD).write_text(text + "\n", encoding="utf-8")


def make_card(
    network: Network,
    adapted: Adapted,
    class_names: Sequence[str],
    max_length: int,
    **preprocessing: Any,
) -> Card:
    """Return the card of a trained network; `preprocessing` holds the card's fields of that."""
    return Card(
        kind=network.kind,
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


def read_card(folder: Path) -> Card:
    """Read a folder's card.

    Raises:
        UserError: there is none, it is not ours, or files of the folder lead out of it.
    """
    file = folder / CARD
    if not file.is_file():
        raise UserError(
            f"'{folder}' is not a model folder of this project: it has no {CARD}",
            fix="give the folder `model` inside a run's output_dir, or a run id",
        )
    check_contents(folder)
    try:
        card = TypeAdapter(Card).validate_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{CARD} cannot be read: {error}", where=str(file)) from error
    if card.format not in READABLE:
        raise UserError(
            f"the model folder has format {card.format}, this version reads 1 to {FORMAT}",
            where=str(file),
            fix="use the version of kinopoisk_ft that wrote it",
        )
    return card


def save_base(network: Network, folder: Path) -> None:
    """Write a network that no checkpoint gave, before an adapter goes on it."""
    # An adapter that is there already belongs to another base.
    (folder / CARD).unlink(missing_ok=True)
    with whole_folder(folder / "base", "config.json") as part:
        _save_plain(network.module, network.kind, part)


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
        _save_plain(module, network.kind, folder)
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
    _save_plain(network.module, network.kind, folder)
    tokenizer.save_pretrained(folder)


def _save_plain(module: Any, kind: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "hf":
        module.save_pretrained(folder)
    elif kind == "pooled":
        module.encoder.save_pretrained(folder / ENCODER)
        save_file(module.classifier.state_dict(), folder / HEAD)
        notice = json.dumps({"model_type": FOREIGN_TYPE}, indent=2)
        (folder / "config.json").write_text(notice + "\n", encoding="utf-8")
    else:
        module.mamba_config.save_pretrained(folder)
        # A tied head shows up twice in a state dict; parameters are named once.
        weights = dict(module.named_parameters()) | dict(module.named_buffers())
        save_file(
            {name: value.detach().contiguous() for name, value in weights.items()},
            folder / "model.safetensors",
            metadata={"format": "pt"},
        )


def load_network(folder: Path) -> tuple[nn.Module, Any, Card]:
    """Return module (evaluation mode, fp32), tokenizer and card of a saved folder."""
    card = read_card(folder)
    inner = folder / "base"
    source = str(folder) if not card.is_peft else str(inner) if inner.is_dir() else str(card.base)
    if card.is_peft:
        check_adapter(folder)
        check_folder(source, CARD)
    with fits_together(folder):
        with hub_errors(f"model '{source}'", HUB_FIX):
            module = _load_plain(source, card, trained=not card.is_peft)
            tokenizer = load_tokenizer(str(folder))
            if card.kind == "mamba":
                rows = len(module.get_parameter("backbone.embeddings.weight"))
                check_ids(tokenizer, rows, source)
            else:
                match_tokenizer(module, tokenizer, source, trained=True)
                lengthen(module, tokenizer.pad_token_id)
            if card.is_peft:
                module = PeftModel.from_pretrained(module, str(folder))
        return module.eval(), tokenizer, card


def _load_plain(source: str, card: Card, trained: bool) -> nn.Module:
    """Load without an adapter; `trained` says whether the folder holds the trained head too."""
    if card.kind == "mamba":
        config = read_config(source, card.revision)
        mamba = MambaClassifier(config, len(card.class_names), card.pooling)
        weights = read_weights(source, card.revision)
        load_backbone(mamba, weights, source)
        if trained:
            mamba.load_state_dict(weights)
        return mamba
    head = Path(source) / HEAD
    if card.kind == "pooled" and head.is_file() and (head.parent / ENCODER).is_dir():
        source = str(head.parent / ENCODER)
        check_contents(Path(source))
    config = load_config(source, card.revision)
    set_classes(config, card.class_names)
    options: dict[str, Any] = {"revision": card.revision}
    if trained:
        options["use_safetensors"] = True  # as it was written
    if card.kind == "hf":
        module: nn.Module = AutoModelForSequenceClassification.from_pretrained(
            source, config=config, dtype=torch.float32, trust_remote_code=False, **options
        )
        return module
    encoder, _ = load_encoder(source, config, **options)
    encoder.pooler = None
    pooled = PooledClassifier(encoder, len(card.class_names), card.pooling)
    if trained:
        pooled.classifier.load_state_dict(load_file(head))
    return pooled
