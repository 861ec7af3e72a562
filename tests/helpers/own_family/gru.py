"""Define a user's own family of models: a GRU over word pieces, and its recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from kinopoisk_ft.models.network import ModelRecipe, Network
from kinopoisk_ft.models.pooling import pool
from kinopoisk_ft.models.tokenizers import train_wordpiece


class GruClassifier(nn.Module):
    """Embeddings, one GRU, the mean over its states, and a linear head."""

    def __init__(self, vocab_size: int, hidden_size: int, num_labels: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(vocab_size, hidden_size)
        self.gru = nn.GRU(hidden_size, hidden_size, batch_first=True)
        self.classifier = nn.Linear(hidden_size, num_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        """Map ids and mask (batch, length) to logits (batch, classes)."""
        hidden, _ = self.gru(self.embeddings(input_ids))
        vectors = pool(hidden, attention_mask, "mean")
        return SequenceClassifierOutput(logits=self.classifier(vectors))


class Gru(ModelRecipe):
    """The recipe that conf/model/gru.yaml builds."""

    def __init__(
        self, *, vocab_size: int, hidden_size: int, lr: float, head_lr: float | None,
        targets: dict[str, list[str]],
    ) -> None:  # fmt: skip
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.lr, self.head_lr, self.targets = lr, head_lr, targets

    def load_tokenizer(self, texts: Sequence[str]) -> Any:
        """Train a tokenizer on the train split."""
        return train_wordpiece(texts, self.vocab_size)

    def build(self, class_names: Sequence[str], tokenizer: Any) -> Network:
        """Return the classifier with random weights."""
        module = GruClassifier(len(tokenizer), self.hidden_size, len(class_names))
        return Network(
            module=module, layers="", embeddings=["embeddings"], head=["classifier"],
            fresh={name for name, _ in module.named_parameters()}, base=None, max_positions=None,
            pooling="mean",
        )  # fmt: skip
