"""Fine-tune text classifiers in different ways, and compare the results fairly.

After `import kinopoisk_ft`, transformers can load models that this project has saved, for example
with `pipeline("text-classification", folder)`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

# Model types in config.json for classifiers with this project's head. They are part of the format
# of model folders. transformers quotes an unknown type in its error message, so it shows the hint.
_HINT = "(of kinopoisk_ft: run `import kinopoisk_ft` first, or `kinopoisk-ft predict`)"
MODEL_TYPES = {name: f"{name} {_HINT}" for name in ("pooled", "mamba", "mamba2")}
# The module of transformers that defines AutoConfig.
_AUTO_CONFIG = "transformers.models.auto.configuration_auto"


class _LazyConfig:
    """A placeholder that AutoConfig holds instead of this project's config classes.

    When transformers reads a config of this project, the real classes replace the placeholder.
    """

    @classmethod
    def from_dict(cls, values: dict[str, Any], **options: Any) -> Any:
        """Import and register the classes of all models, and create a config."""
        import_module("kinopoisk_ft.models.saving")
        config = sys.modules[_AUTO_CONFIG].CONFIG_MAPPING[values["model_type"]]
        return config.from_dict(values, **options)


def _register(auto_config: ModuleType) -> None:
    for model_type in MODEL_TYPES.values():
        auto_config.AutoConfig.register(model_type, _LazyConfig, exist_ok=True)


class _RegisterAfterImport:
    """An import hook that registers this project's model types with AutoConfig.

    The hook waits until other code imports transformers. An import of transformers in this file
    would make the start of every command ten times slower.
    """

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        """Return an import spec for the module that defines AutoConfig; None for other modules.

        The spec loads the module as usual, and then registers the model types of this project.
        """
        if name != _AUTO_CONFIG:
            return None
        # Otherwise, the call of `find_spec` would run this hook again.
        sys.meta_path.remove(self)
        spec = find_spec(name)
        loader: Any = spec.loader if spec else None
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _register(module)

            loader.exec_module = exec_module
        return spec


if _AUTO_CONFIG in sys.modules:
    _register(sys.modules[_AUTO_CONFIG])
else:
    # Python uses the first finder that returns a spec, so the hook must come before the others.
    sys.meta_path.insert(0, _RegisterAfterImport())
