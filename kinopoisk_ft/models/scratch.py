"""Small networks from a random start, with a tokenizer trained on the train split; offline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from transformers import BertConfig, BertForMaskedLM, BertModel, Mamba2Config, MambaConfig

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.checkpoints import check_dropout
from kinopoisk_ft.models.first_token import shorten
from kinopoisk_ft.models.heads import HuggingFaceLayout, pooled_network, set_classes
from kinopoisk_ft.models.mamba import AnyConfig, MambaClassifier, MambaLM
from kinopoisk_ft.models.mamba_recipe import Backend, describe
from kinopoisk_ft.models.mamba_recipe import Pooling as MambaPooling
from kinopoisk_ft.models.network import ModelRecipe, Network
from kinopoisk_ft.models.tokenizers import train_bpe, train_wordpiece


def check_sizes(**sizes: int) -> None:
    """Raise UserError for a size of a network that is not a number above zero."""
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"model.{name}={size}: it must be 1 or more", where=f"model.{name}")


class ScratchBert(ModelRecipe):
    """The group `model`'s `bert_scratch`."""

    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        max_positions: int,
        dropout: float,
        pooling: Literal["mean", "cls", "last"],
        lr: float,
        head_lr: float | None,
        targets: dict[str, list[str] | str],
    ) -> None:
        check_sizes(
            vocab_size=vocab_size, hidden_size=hidden_size, num_layers=num_layers,
            num_heads=num_heads, max_positions=max_positions,
        )  # fmt: skip
        if hidden_size % num_heads:
            raise UserError(
                f"model.num_heads={num_heads} does not divide model.hidden_size={hidden_size}",
                where="model.num_heads",
                fix="choose a divisor",
            )
        check_dropout(dropout)
        self.vocab_size, self.hidden_size, self.num_layers = vocab_size, hidden_size, num_layers
        self.num_heads, self.max_positions, self.dropout = num_heads, max_positions, dropout
        self.pooling, self.lr, self.head_lr, self.targets = pooling, lr, head_lr, targets

    def load_tokenizer(self, texts: Sequence[str]) -> Any:
        """Return a WordPiece tokenizer trained on these texts."""
        return train_wordpiece(texts, self.vocab_size)

    def build(self, class_names: Sequence[str], tokenizer: Any) -> Network:
        """Return a randomly initialised encoder with pooling and a linear head."""
        config = self._config(tokenizer)
        set_classes(config, class_names)
        encoder = BertModel(config, add_pooling_layer=False)
        classes = len(class_names)
        return shorten(pooled_network(encoder, config, classes, self.pooling, [], None, None))

    def build_lm(self, tokenizer: Any) -> Network:
        """Return the encoder with a masked-token head."""
        config = self._config(tokenizer)
        return Network(
            module=BertForMaskedLM(config),
            layout=HuggingFaceLayout(),
            layers="bert.encoder.layer",
            embeddings=["bert.embeddings"],
            head=[],
            fresh=set(),
            base=None,
            max_positions=self.max_positions,
            pooling="",
        )

    def _config(self, tokenizer: Any) -> BertConfig:
        return BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            intermediate_size=4 * self.hidden_size,
            max_position_embeddings=self.max_positions,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            pad_token_id=tokenizer.pad_token_id,
        )


class ScratchMamba(ModelRecipe):
    """The group `model`'s `mamba_scratch`."""

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        num_layers: int,
        d_state: int,
        pooling: MambaPooling,
        scan_backend: Backend,
        lr: float,
        head_lr: float | None,
        targets: dict[str, list[str] | str],
    ) -> None:
        check_sizes(vocab_size=vocab_size, d_model=d_model, num_layers=num_layers, d_state=d_state)
        self.vocab_size, self.d_model, self.num_layers = vocab_size, d_model, num_layers
        self.d_state, self.pooling, self.scan_backend = d_state, pooling, scan_backend
        self.lr, self.head_lr, self.targets = lr, head_lr, targets

    def load_tokenizer(self, texts: Sequence[str]) -> Any:
        """Return a byte-level BPE tokenizer trained on these texts."""
        return train_bpe(texts, self.vocab_size)

    def build(self, class_names: Sequence[str], tokenizer: Any) -> Network:
        """Return a randomly initialised backbone with pooling and a linear head."""
        config = self._config(tokenizer)
        module = MambaClassifier(config, len(class_names), self.pooling, self.scan_backend)
        return describe(module, None, self.pooling, None)

    def build_lm(self, tokenizer: Any) -> Network:
        """Return the backbone with a tied next-token head."""
        module = MambaLM(self._config(tokenizer), scan_backend=self.scan_backend)
        return describe(module, None, "", None)

    def _config(self, tokenizer: Any) -> AnyConfig:
        return MambaConfig(**self._sizes(tokenizer))

    def _sizes(self, tokenizer: Any) -> dict[str, Any]:
        return {
            "vocab_size": len(tokenizer),
            "hidden_size": self.d_model,
            "num_hidden_layers": self.num_layers,
            "state_size": self.d_state,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }


class ScratchMamba2(ScratchMamba):
    """The group `model`'s `mamba2_scratch`: heads of `head_dim` channels with one decay each."""

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        num_layers: int,
        d_state: int,
        head_dim: int,
        pooling: MambaPooling,
        scan_backend: Backend,
        lr: float,
        head_lr: float | None,
        targets: dict[str, list[str] | str],
    ) -> None:
        super().__init__(
            vocab_size=vocab_size, d_model=d_model, num_layers=num_layers, d_state=d_state,
            pooling=pooling, scan_backend=scan_backend, lr=lr, head_lr=head_lr, targets=targets,
        )  # fmt: skip
        check_sizes(head_dim=head_dim)
        if 2 * d_model % head_dim:
            raise UserError(
                f"model.head_dim={head_dim} does not divide the inner width, 2 x {d_model}",
                where="model.head_dim",
                fix="choose a divisor, say 32",
            )
        self.head_dim = head_dim

    def _config(self, tokenizer: Any) -> AnyConfig:
        heads = 2 * self.d_model // self.head_dim
        return Mamba2Config(
            **self._sizes(tokenizer),
            num_heads=heads,
            head_dim=self.head_dim,
            n_groups=1,
            initializer_range=0.02,  # a checkpoint's 0.1 is for vectors four thousand wide
        )
