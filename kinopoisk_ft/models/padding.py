"""Make a model and its tokenizer agree about padding, and check that padding changes no logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.checkpoints import configs_of
from kinopoisk_ft.models.network import run_once
from kinopoisk_ft.models.tokenizers import check_ids

# Of the largest logit. Rounding gives about 1e-6 in fp32.
TOLERANCE = 1e-3


def hugging_face_model(module: nn.Module) -> PreTrainedModel:
    """Return the outermost of Hugging Face's models in a module, which may be the module."""
    return next(part for part in module.modules() if isinstance(part, PreTrainedModel))


def position_offset(module: nn.Module) -> int:
    """Return the id behind which positions start, as RoBERTa's behind its pad id; -1 for most."""
    for name, part in module.named_modules():
        if name.split(".")[-1] == "position_embeddings" and isinstance(part, nn.Embedding):
            return -1 if part.padding_idx is None else part.padding_idx
    return -1


def match_tokenizer(module: nn.Module, tokenizer: Any, name: str, trained: bool = False) -> None:
    """Write the tokenizer's pad id into a model, and check that it has a row for each token id.

    A classifier on a decoder finds the last token by the pad id in its config, and would read
    padding as text if that were another id.

    Args:
        trained: the model was trained with this tokenizer.

    Raises:
        UserError: the tokenizer belongs to another model.
    """
    model: Any = hugging_face_model(module)
    embedding, pad = model.get_input_embeddings(), tokenizer.pad_token_id
    check_ids(tokenizer, len(embedding.weight), name)
    offset = position_offset(module)
    if offset >= 0 and offset != pad:
        if trained:
            return  # Another pad id would move the positions that it was trained with.
        raise UserError(
            f"the tokenizer pads with the id {pad}, and the positions of '{name}' start behind "
            f"its own pad id, {offset}",
            where="model.tokenizer",
            fix="use the checkpoint's own tokenizer, or set pad_token in tokenizer_config.json to "
            f"the token with the id {offset}",
        )
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            for config in configs_of(part.config):
                config.pad_token_id = pad
    if getattr(embedding, "padding_idx", None) is not None:
        embedding.padding_idx = pad  # PyTorch gives the row of this id no gradient.


def lengthen(module: nn.Module, pad_id: int) -> None:
    """Let Funnel read more padding than it pools over, whatever the batch.

    It pools neighbouring tokens, the last one with padding or, in the longest row of a batch, with
    nothing, so that a text's logits would depend on the other texts.
    """
    model: Any = hugging_face_model(module).base_model
    if model.config.model_type != "funnel":
        return
    more = 2 ** len(model.config.block_sizes)  # tokens that one state of the last block stands for

    def pad_more(_: nn.Module, args: Any, kwargs: Any) -> Any:
        ids, mask = args[0] if args else kwargs["input_ids"], kwargs["attention_mask"]
        longer = {
            "input_ids": nn.functional.pad(ids, (0, more), value=pad_id),
            "attention_mask": nn.functional.pad(mask, (0, more)),
        }
        return (), {**kwargs, **longer}

    model.register_forward_pre_hook(pad_more, with_kwargs=True)


def check_padding(module: nn.Module, pad_id: int, name: str) -> None:
    """Raise UserError if the logits of a text depend on the padding behind it.

    They do in XLNet's classifier, which reads the last position, and FNet has no attention mask.
    """
    rows = [[0, 1, 2, 3, 1], [3, 1, 2]]
    rows = [[i + (i >= pad_id) for i in row] for row in rows]  # any ids other than the pad id
    longest, text = rows
    padded = text + [pad_id] * (len(longest) - len(text))
    try:
        with torch.no_grad():
            alone = run_once(module, [text], [len(text)]).logits[-1]
            batched = run_once(module, [longest, padded], [len(longest), len(text)]).logits[-1]
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(
            f"'{name}' cannot classify two texts of different lengths: {error}",
            where="model.name",
            fix="choose another model",
        ) from error
    difference, size = float((alone - batched).abs().max()), float(alone.abs().max())
    if not difference <= TOLERANCE * size:
        raise UserError(
            f"the logits of '{name}' depend on the padding of a batch: {difference:.2g} between a "
            f"text alone and in a batch, where the largest logit is {size:.2g}",
            where="model.name",
            fix="use model.pooling=mean, or choose another model",
        )
