"""Describe this project's classifiers to transformers: the contents of config.json."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar

from transformers import AutoConfig, Mamba2Config, MambaConfig, PreTrainedConfig

from kinopoisk_ft import MODEL_TYPES
from kinopoisk_ft.data.windows import Windows


class PooledConfig(PreTrainedConfig):
    """The config of a `PooledForSequenceClassification`.

    Args:
        encoder_config: the config of the encoder, as a dictionary.
        options: `pooling` and `window_pooling` (see `PooledClassifier`), `windows` (see
            `divide_long_texts`), and the options of the base class.
    """

    model_type = MODEL_TYPES["pooled"]
    # transformers also applies options such as the dtype to the configs that are listed here.
    sub_configs: ClassVar[dict[str, Any]] = {"encoder_config": AutoConfig}
    pooling = "mean"
    window_pooling = None
    windows = None

    def __init__(self, encoder_config: dict[str, Any] | None = None, **options: Any) -> None:
        # transformers also creates configs without arguments, to find out the default values.
        self.encoder_config = encoder_config and AutoConfig.for_model(**encoder_config)
        super().__init__(**options)


class MambaClassifierConfig(MambaConfig):
    """The config of a `MambaForSequenceClassification`.

    Args:
        options: `pooling` and `window_pooling` (see `MambaClassifier`), `windows` (see
            `divide_long_texts`), and the options of the base class.
    """

    model_type = MODEL_TYPES["mamba"]
    pooling = "last"
    window_pooling = None
    windows = None


class Mamba2ClassifierConfig(Mamba2Config):
    """The config of a `Mamba2ForSequenceClassification`; see `MambaClassifierConfig`."""

    model_type = MODEL_TYPES["mamba2"]
    pooling = "last"
    window_pooling = None
    windows = None


CONFIGS = (PooledConfig, MambaClassifierConfig, Mamba2ClassifierConfig)
for config in CONFIGS:
    # `exist_ok` lets the class replace the placeholder of `kinopoisk_ft/__init__.py`.
    AutoConfig.register(config.model_type, config, exist_ok=True)


def convert_config(config: PreTrainedConfig, kind: type[PreTrainedConfig], **more: Any) -> Any:
    """Create a config of the class `kind` from the options of `config`.

    `more` adds or replaces options. If `kind` is a config class of transformers, the classifier
    options of `config` are left out.
    """
    # These two options describe the class of the old config.
    left_out = {"model_type", "architectures"}
    if kind not in CONFIGS:
        left_out |= {"pooling", "window_pooling", "windows"}
    options = {key: value for key, value in config.to_dict().items() if key not in left_out}
    return kind(**{**options, **more})


def describe_classifier(card: Any, windows: Windows | None = None) -> dict[str, Any]:
    """Return the config options that describe a classifier, such as its pooling and class names.

    Args:
        card: the `Card` of the model folder.
        windows: see `divide_long_texts`.
    """
    return {
        "windows": None if windows is None else asdict(windows),
        "pooling": card.pooling,
        "window_pooling": card.window_pooling,
        "id2label": dict(enumerate(card.class_names)),
        "label2id": {name: i for i, name in enumerate(card.class_names)},
        # transformers loads the weights in this dtype by default.
        "dtype": "float32",
    }
