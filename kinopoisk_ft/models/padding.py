"""Match the padding of a model to the tokenizer, and check that padding changes no logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.checkpoints import list_configs
from kinopoisk_ft.models.inspection import run_example_batch
from kinopoisk_ft.models.tokenizers import check_ids

# Maximum difference, relative to the largest logit. Rounding in fp32 changes logits by about 1e-6.
TOLERANCE = 1e-3


def find_hugging_face_model(module: nn.Module) -> PreTrainedModel:
    """Return the first transformers model among a module and its submodules."""
    return next(part for part in module.modules() if isinstance(part, PreTrainedModel))


def find_position_offset(module: nn.Module) -> int:
    """Return the position id of the first token, minus 1.

    This is -1 for most models, because their position ids start at 0. For RoBERTa, it is the pad
    id.
    """
    for name, part in module.named_modules():
        if name.split(".")[-1] == "position_embeddings" and isinstance(part, nn.Embedding):
            return -1 if part.padding_idx is None else part.padding_idx
    return -1


def match_tokenizer(module: nn.Module, tokenizer: Any, name: str, trained: bool = False) -> None:
    """Set a model's pad id to the tokenizer's, and check that each token id has an embedding.

    A decoder classifier finds the last real token by the pad id. If this id differed from the
    tokenizer's, the classifier would treat padding as text.

    Args:
        name: name of the model, for error messages.
        trained: whether the model was trained with this tokenizer. If so, and if the position ids
            depend on the model's pad id, this pad id stays unchanged.

    Raises:
        UserError: a token id has no embedding, or the position ids require another pad id.
    """
    model: Any = find_hugging_face_model(module)
    embedding, pad = model.get_input_embeddings(), tokenizer.pad_token_id
    check_ids(tokenizer, len(embedding.weight), name)
    offset = find_position_offset(module)
    if offset >= 0 and offset != pad:
        if trained:
            # The model keeps its pad id, because changing it would shift the position ids.
            return
        raise UserError(
            f"the tokenizer has pad_token_id {pad}, but '{name}' requires pad_token_id {offset}, "
            "because its position ids depend on it",
            where="model.tokenizer",
            fix="use the checkpoint's own tokenizer, or set pad_token in tokenizer_config.json to "
            f"the token with the id {offset}",
        )
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            for config in list_configs(part.config):
                config.pad_token_id = pad
    # nn.Embedding computes no gradient for the row `padding_idx`.
    if getattr(embedding, "padding_idx", None) is not None:
        embedding.padding_idx = pad


def pad_for_funnel(module: nn.Module, pad_id: int) -> None:
    """Make a Funnel model add padding to each batch; other models stay unchanged.

    Funnel pools adjacent tokens, so padding after a text changes the pooled states of its last
    tokens. Without extra padding, the longest text of a batch has no padding, so the logits of a
    text depend on whether it is the longest. With extra padding, every text is padded.
    """
    model: Any = find_hugging_face_model(module).base_model
    if model.config.model_type != "funnel":
        return
    # This is more than the number of tokens that are pooled into one state of the last block.
    more = 2 ** len(model.config.block_sizes)

    def pad_more(_: nn.Module, args: Any, kwargs: Any) -> Any:
        ids, mask = args[0] if args else kwargs["input_ids"], kwargs["attention_mask"]
        longer = {
            "input_ids": nn.functional.pad(ids, (0, more), value=pad_id),
            "attention_mask": nn.functional.pad(mask, (0, more)),
        }
        # A pre-hook returns the new arguments. Here, all of them are passed by name.
        return (), {**kwargs, **longer}

    model.register_forward_pre_hook(pad_more, with_kwargs=True)


def check_padding(module: nn.Module, pad_id: int, name: str) -> None:
    """Raise UserError if padding after a text changes the logits.

    XLNet's classifier fails, because it reads the last position. FNet fails, because it has no
    attention mask.
    """
    # The logits of the second row are computed alone and in a batch with the longer first row.
    rows = [[0, 1, 2, 3, 1], [3, 1, 2]]
    # The ids are arbitrary, but must differ from the pad id.
    rows = [[i + (i >= pad_id) for i in row] for row in rows]
    longest, text = rows
    padded = text + [pad_id] * (len(longest) - len(text))
    try:
        with torch.no_grad():
            alone = run_example_batch(module, [text], [len(text)]).logits[-1]
            batched = run_example_batch(
                module, [longest, padded], [len(longest), len(text)]
            ).logits[-1]
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(
            f"'{name}' cannot classify a batch of two texts of different lengths: {error}",
            where="model.name",
            fix="choose another model",
        ) from error
    difference, size = float((alone - batched).abs().max()), float(alone.abs().max())
    # The condition is also true for NaN.
    if not difference <= TOLERANCE * size:
        raise UserError(
            f"padding changes the logits of '{name}' by {difference:.2g} (the largest logit is "
            f"{size:.2g})",
            where="model.name",
            fix="use model.pooling=mean, or choose another model",
        )
