"""Build small, randomly initialized networks with a tokenizer trained on the train split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import BertConfig, BertForMaskedLM, BertModel, Mamba2Config, MambaConfig

from kinopoisk_ft.errors import UserError, check_positive
from kinopoisk_ft.models.checkpoints import check_dropout
from kinopoisk_ft.models.first_token import shorten_last_block
from kinopoisk_ft.models.heads import (
    HuggingFaceLayout,
    build_pooled_network,
    describe_encoder,
    set_classes,
)
from kinopoisk_ft.models.mamba import AnyConfig, MambaClassifier, MambaLM
from kinopoisk_ft.models.mamba_recipe import Backend, describe_mamba
from kinopoisk_ft.models.mamba_recipe import Pooling as MambaPooling
from kinopoisk_ft.models.network import ModelRecipe, Network
from kinopoisk_ft.models.tokenizers import train_bpe, train_wordpiece


def check_sizes(recipe: ModelRecipe, *names: str) -> None:
    """Raise UserError if an option whose name is in `names` is less than 1."""
    for name in names:
        check_positive(getattr(recipe, name), f"model.{name}")


@dataclass(kw_only=True, eq=False)
class ScratchBert(ModelRecipe):
    """A recipe for a small, randomly initialized BERT (model=bert_scratch)."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    max_positions: int
    dropout: float
    pooling: Literal["mean", "cls", "last"]

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "hidden_size", "num_layers", "num_heads", "max_positions")
        if self.hidden_size % self.num_heads:
            raise UserError(
                f"model.num_heads={self.num_heads} does not divide "
                f"model.hidden_size={self.hidden_size}",
                where="model.num_heads",
                fix="set model.num_heads to a divisor of model.hidden_size",
            )
        check_dropout(self.dropout)

    def measure_layers(self) -> tuple[int, int]:
        """Count the blocks and their weights.

        A block has 4 d² weights in attention and 8 d² in the feed-forward layer; d = hidden_size.
        """
        return self.num_layers, 12 * self.num_layers * self.hidden_size**2

    def load_tokenizer(self, texts: Sequence[str]) -> Any:
        """Train a WordPiece tokenizer on `texts`."""
        return train_wordpiece(texts, self.vocab_size)

    def build(self, class_names: Sequence[str], tokenizer: Any) -> Network:
        """Build a randomly initialized classifier."""
        config = self._build_config(tokenizer)
        set_classes(config, class_names)
        encoder = BertModel(config, add_pooling_layer=False)
        network = build_pooled_network(
            encoder, len(class_names), self.pooling, self.used_window_pooling
        )
        return shorten_last_block(network)

    def build_lm(self, tokenizer: Any) -> Network:
        """Build a randomly initialized masked language model."""
        module = BertForMaskedLM(self._build_config(tokenizer))
        return describe_encoder(module, HuggingFaceLayout())

    def _build_config(self, tokenizer: Any) -> BertConfig:
        return BertConfig(
            # A tokenizer that is trained on few texts has fewer tokens than `self.vocab_size`.
            vocab_size=len(tokenizer),
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            # BERT uses the factor 4 (Devlin et al., 2019, section 3).
            intermediate_size=4 * self.hidden_size,
            max_position_embeddings=self.max_positions,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            pad_token_id=tokenizer.pad_token_id,
        )


@dataclass(kw_only=True, eq=False)
class ScratchMamba(ModelRecipe):
    """A recipe for a small, randomly initialized Mamba (model=mamba_scratch)."""

    vocab_size: int
    d_model: int
    num_layers: int
    d_state: int
    pooling: MambaPooling
    scan_backend: Backend

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "d_model", "num_layers", "d_state")

    def measure_layers(self) -> tuple[int, int]:
        """Count the blocks and their weights.

        With d = d_model, the projections of a block have 6 d² weights. The scan takes as long as
        a product with 2 d² weights, so 2 d² are added to the count.
        """
        return self.num_layers, 8 * self.num_layers * self.d_model**2

    def load_tokenizer(self, texts: Sequence[str]) -> Any:
        """Train a byte-level BPE tokenizer on `texts`."""
        return train_bpe(texts, self.vocab_size)

    def build(self, class_names: Sequence[str], tokenizer: Any) -> Network:
        """Build a randomly initialized classifier."""
        config = self._build_config(tokenizer)
        module = MambaClassifier(
            config, len(class_names), self.pooling, self.scan_backend, self.used_window_pooling
        )
        return describe_mamba(module)

    def build_lm(self, tokenizer: Any) -> Network:
        """Build a randomly initialized language model that predicts the next token."""
        return describe_mamba(MambaLM(self._build_config(tokenizer), self.scan_backend))

    def _build_config(self, tokenizer: Any) -> AnyConfig:
        return MambaConfig(**self._config_options(tokenizer))

    def _config_options(self, tokenizer: Any) -> dict[str, Any]:
        return {
            "vocab_size": len(tokenizer),
            "hidden_size": self.d_model,
            "num_hidden_layers": self.num_layers,
            "state_size": self.d_state,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }


@dataclass(kw_only=True, eq=False)
class ScratchMamba2(ScratchMamba):
    """A recipe for a small, randomly initialized Mamba-2 (model=mamba2_scratch).

    Args:
        head_dim: number of channels per head; the channels of a head share one decay.
    """

    head_dim: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "head_dim")
        if 2 * self.d_model % self.head_dim:
            raise UserError(
                f"model.head_dim={self.head_dim} does not divide d_inner, which is "
                f"2 * model.d_model = {2 * self.d_model}",
                where="model.head_dim",
                fix="set model.head_dim to a divisor of d_inner",
            )

    def _build_config(self, tokenizer: Any) -> AnyConfig:
        # d_inner is 2 * d_model, because the default of Mamba2Config is expand=2.
        heads = 2 * self.d_model // self.head_dim
        return Mamba2Config(
            **self._config_options(tokenizer),
            num_heads=heads,
            head_dim=self.head_dim,
            # This is the default in the code of the authors. The default of Mamba2Config is 8.
            n_groups=1,
            # The default, 0.1, is meant for the default hidden_size, 4,096.
            initializer_range=0.02,
        )
