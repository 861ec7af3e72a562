"""Define classifiers with this project's head, and make them ordinary transformers models.

Training uses `PooledClassifier` and `MambaClassifier`. Their subclasses, whose names end in
`ForSequenceClassification`, have the same weights and compute the same logits. The subclasses are
registered with `AutoModelForSequenceClassification`, so that transformers can load and save them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from kinopoisk_ft.models.checkpoints import build_encoder
from kinopoisk_ft.models.hf_configs import (
    Mamba2ClassifierConfig,
    MambaClassifierConfig,
    PooledConfig,
)
from kinopoisk_ft.models.mamba import MambaClassifier
from kinopoisk_ft.models.padding import pad_for_funnel
from kinopoisk_ft.models.pooling import (
    WindowPooling,
    divide_long_texts,
    flatten_windows,
    pool,
)
from kinopoisk_ft.models.untrusted import ADAPTER


class PooledClassifier(nn.Module):
    """A text classifier with an encoder, pooling over the tokens, dropout and one linear layer.

    Args:
        pooling: see `pool`.
        dropout: dropout probability before the linear layer. If None, the config's value is used.
        window_pooling: see `WindowPooling`; None if reviews have no windows.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_labels: int,
        pooling: str,
        dropout: float | None = None,
        window_pooling: str | None = None,
    ) -> None:
        # The subclass is also a PreTrainedModel, whose initializer is called with a config.
        nn.Module.__init__(self)
        self.encoder, self.pooling = encoder, pooling
        config: Any = encoder.config
        if dropout is None:
            dropout = getattr(config, "classifier_dropout", None)
        if dropout is None:
            # 0.1 is the default of BERT. Some configs have other names for dropout.
            dropout = getattr(config, "hidden_dropout_prob", 0.1)
        self.dropout = nn.Dropout(dropout)
        # Longformer and LED classify with global attention at the first token.
        forward = inspect.signature(encoder.forward).parameters
        self.attends_globally = "global_attention_mask" in forward
        self.window_pooling = (
            None if window_pooling is None else WindowPooling(window_pooling, config.hidden_size)
        )
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        # This is the initialization in `PreTrainedModel._init_weights` of transformers.
        nn.init.normal_(self.classifier.weight, std=getattr(config, "initializer_range", 0.02))
        nn.init.zeros_(self.classifier.bias)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None, **_: Any
    ) -> SequenceClassifierOutput:
        """Compute logits (batch, classes) from token ids and attention mask.

        Ids and mask have the shape (batch, length). With window pooling, they may also have the
        shape (batch, windows, length).
        """
        ids, mask = flatten_windows(input_ids, attention_mask)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self.attends_globally:
            # In this mask (batch, length), 1 stands for global attention.
            first = torch.zeros_like(ids)
            first[:, 0] = 1
            inputs["global_attention_mask"] = first
        # The shape is (batch, length, d_model), where each window counts as one row of the batch.
        hidden = self.encoder(**inputs).last_hidden_state
        # For Funnel, there are more hidden states than tokens; see `pad_for_funnel`.
        vectors = pool(hidden[:, : ids.shape[1]], mask, self.pooling)
        if self.window_pooling is not None:
            vectors = self.window_pooling(vectors, attention_mask)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(vectors)))


class SavedClassifier(PreTrainedModel):
    """Base class of the classifiers that transformers loads from a model folder."""

    # Loads the network of a folder that holds an adapter. `kinopoisk_ft.models.saving` sets this
    # function. It cannot be imported here, because `saving` imports this module.
    load_adapted: Callable[[Path], Any]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **options: Any) -> Any:
        """Load a classifier as `PreTrainedModel.from_pretrained` does.

        If the folder holds an adapter, its base model is loaded, and the adapter is merged into it,
        in fp32 on the CPU.

        Raises:
            ValueError: the weights of the classifier are incomplete.
            UserError: the adapter or its base model cannot be loaded.
        """
        source = pretrained_model_name_or_path
        # This method always needs the info, so it passes the option itself.
        wants_info = options.pop("output_loading_info", False)
        if (Path(source) / ADAPTER).is_file():
            model, info = cls._merge(Path(source)), {}
        else:
            model, info = super().from_pretrained(
                source, *args, output_loading_info=True, **options
            )
        # transformers would only log that it has initialized these weights randomly.
        if info.get("missing_keys"):
            names = ", ".join(sorted(info["missing_keys"])[:5])
            raise ValueError(f"'{source}' lacks weights of the classifier: {names}")
        return (model, info) if wants_info else model

    @classmethod
    def _merge(cls, folder: Path) -> Any:
        # The matrices of the base may be stored in bf16. Without `float`, PEFT would merge in bf16.
        model = cls.load_adapted(folder).float().merge_and_unload()
        # The config was made from the card, which does not contain the sizes of windows.
        model.config.windows = cls.config_class.from_pretrained(folder).windows
        return model


class PooledForSequenceClassification(PooledClassifier, SavedClassifier):
    """A `PooledClassifier` that transformers can load and save.

    Args:
        encoder: the encoder, with its weights. If None, it is built from the config.
    """

    config_class = PooledConfig
    # The files of a model folder contain the encoder's weights without this prefix.
    base_model_prefix = "encoder"

    def __init__(self, config: Any, encoder: Any = None) -> None:
        PreTrainedModel.__init__(self, config)
        is_new = encoder is None
        encoder = build_encoder(config.encoder_config) if is_new else encoder
        PooledClassifier.__init__(
            self, encoder, config.num_labels, config.pooling, None, config.window_pooling
        )
        # The encoder and this classifier must share one encoder config, because `match_tokenizer`
        # sets the pad id in the encoder, and `forward` reads it here.
        config.encoder_config = encoder.config
        # The path of the base model has no meaning in the config.json of the classifier.
        encoder.config.name_or_path = ""
        # If an encoder is given, the layout adds this padding in `match_tokenizer`.
        if is_new:
            pad_for_funnel(self, encoder.config.pad_token_id)
        PreTrainedModel.post_init(self)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        """Divide long texts (batch, length) into windows, and compute logits (batch, classes)."""
        config: Any = self.config
        pad_id = config.encoder_config.pad_token_id
        ids, mask = divide_long_texts(input_ids, attention_mask, config.windows, pad_id)
        return PooledClassifier.forward(self, ids, mask)


class MambaForSequenceClassification(MambaClassifier, SavedClassifier):
    """A `MambaClassifier` that transformers can load and save."""

    config_class = MambaClassifierConfig

    def __init__(self, config: Any) -> None:
        PreTrainedModel.__init__(self, config)
        MambaClassifier.__init__(
            self, config, config.num_labels, config.pooling, window_pooling=config.window_pooling
        )
        PreTrainedModel.post_init(self)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        """Divide long texts (batch, length) into windows, and compute logits (batch, classes)."""
        config: Any = self.config
        ids, mask = divide_long_texts(
            input_ids, attention_mask, config.windows, config.pad_token_id
        )
        return MambaClassifier.forward(self, ids, mask)


class Mamba2ForSequenceClassification(MambaForSequenceClassification):
    """A `MambaForSequenceClassification` with the mixer of Mamba-2."""

    config_class = Mamba2ClassifierConfig


MODELS = {
    model.config_class: model
    for model in (
        PooledForSequenceClassification,
        MambaForSequenceClassification,
        Mamba2ForSequenceClassification,
    )
}
for config_class, model in MODELS.items():
    AutoModelForSequenceClassification.register(config_class, model, exist_ok=True)
