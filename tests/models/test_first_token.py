"""Compare the last block for the first token with the complete module of transformers."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from networks import make
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from kinopoisk_ft.models.first_token import FirstTokenAttention, limit_to_first_token
from kinopoisk_ft.models.heads import PooledClassifier
from kinopoisk_ft.models.network import list_blocks
from kinopoisk_ft.training.acceleration.dropout import replace_dropout

SIZES: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 40, "max_position_embeddings": 20, "num_labels": 3,
    "initializer_range": 0.3,
}  # fmt: skip
KEPT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
FAMILIES: list[tuple[Any, Any]] = [
    (BertForSequenceClassification, BertConfig),
    (RobertaForSequenceClassification, RobertaConfig),
    (XLMRobertaForSequenceClassification, XLMRobertaConfig),
    (ElectraForSequenceClassification, ElectraConfig),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def last_block(module: nn.Module) -> Any:
    stacks = [m for m in module.modules() if isinstance(m, nn.ModuleList) and len(m) == 2]
    return stacks[0][-1]


def inputs() -> dict[str, Tensor]:
    mask = (torch.arange(11) < torch.tensor([11, 6, 1])[:, None]).long()
    return {"input_ids": torch.randint(5, 60, (3, 11)) * mask, "attention_mask": mask}


def passes(module: nn.Module, given: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the logits and all gradients of a training step."""
    module.zero_grad()
    logits: Tensor = module.train()(**given).logits
    nn.functional.cross_entropy(logits, torch.tensor([0, 2, 1])).backward()
    found = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    return logits.detach(), found


def assert_same(whole: nn.Module, short: nn.Module) -> None:
    given = inputs()
    (want, expected_grads), (got, grads) = passes(whole, given), passes(short, given)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("kind", "config"), FAMILIES, ids=lambda x: x.__name__)
def test_logits_and_gradients_are_those_of_the_whole_block(kind: Any, config: Any) -> None:
    whole = kind(config(**SIZES, **KEPT)).double()
    short = copy.deepcopy(whole)
    assert limit_to_first_token(short, last_block(short))
    assert short.state_dict().keys() == whole.state_dict().keys()
    widths: list[int] = []
    last_block(short).intermediate.register_forward_hook(lambda *a: widths.append(a[2].shape[1]))
    assert_same(whole, short)
    assert widths == [1]
    assert_same(whole, copy.deepcopy(short))


def test_lora_trains_the_same_way() -> None:
    whole = BertForSequenceClassification(BertConfig(**SIZES, **KEPT)).double()
    short = copy.deepcopy(whole)
    assert limit_to_first_token(short, last_block(short))
    config = peft.LoraConfig(target_modules=["query", "value", "dense"], init_lora_weights=False)
    adapted = []
    for module in (whole, short):
        torch.manual_seed(1)
        adapted.append(peft.get_peft_model(module, config).double())
    assert_same(*adapted)


def test_virtual_tokens_in_front_take_part() -> None:
    """Prefix tuning adds keys and values to each layer."""
    whole = BertForSequenceClassification(BertConfig(**SIZES, **KEPT)).double()
    short = copy.deepcopy(whole)
    assert limit_to_first_token(short, last_block(short))
    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)
    adapted = []
    for module in (whole, short):
        torch.manual_seed(1)
        adapted.append(peft.get_peft_model(module, config).double())
    assert_same(*adapted)


def test_first_token_pooled_by_us() -> None:
    encoder = BertForSequenceClassification(BertConfig(**SIZES, **KEPT)).bert
    whole = PooledClassifier(encoder, 3, "cls").double()
    short = copy.deepcopy(whole)
    assert limit_to_first_token(short, last_block(short))
    assert_same(whole, short)


@pytest.mark.parametrize("reads", ["mean", "norm"])
def test_what_needs_more_stays_whole(reads: str) -> None:
    """The head reads all tokens; the block normalizes within its attention."""
    if reads == "mean":
        encoder = BertForSequenceClassification(BertConfig(**SIZES)).bert
        module: nn.Module = PooledClassifier(encoder, 3, "mean")
    else:
        module = RobertaPreLayerNormForSequenceClassification(RobertaPreLayerNormConfig(**SIZES))
    want = module.eval()(**(given := inputs())).logits
    before = last_block(module).attention
    assert not limit_to_first_token(module, last_block(module))
    assert last_block(module).attention is before
    assert torch.equal(module(**given).logits, want)


@pytest.mark.parametrize(
    ("kind", "more", "short"),
    [
        ("bert", [], True), ("pooled", [], False), ("pooled", ["model.pooling=cls"], True),
        ("bert_scratch", [], False), ("bert_scratch", ["model.pooling=cls"], True),
    ],
)  # fmt: skip
def test_recipes_ask_for_it_where_the_first_token_is_pooled(
    kind: str, more: list[str], short: bool
) -> None:
    block: Any = list_blocks(make(kind, "none", *more)[2])[-1]
    assert isinstance(block.attention, FirstTokenAttention) == short


def test_attention_drops_probabilities_and_random_numbers_are_left_alone() -> None:
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.5}
    module = BertForSequenceClassification(BertConfig(**SIZES, **dropout)).train()
    state = torch.get_rng_state()
    assert limit_to_first_token(module, last_block(module))
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training
    assert isinstance(last_block(module).attention, FirstTokenAttention)
    assert last_block(module).attention.training
    core, hidden = last_block(module).attention, torch.randn(400, 1, 24).expand(-1, 9, -1)
    with replace_dropout(module, torch.device("cpu"), "keep"):
        values = core.self.value(hidden[:, :1]).view(400, 1, 3, 8)
        # Return the output of attention without changes.
        core.output = nn.Identity()
        core.output.forward = lambda attended, _: attended
        attended = core(hidden)[0].view(400, 1, 3, 8)
    # All values of a row are equal, so this is the share of kept probabilities, divided by 0.5.
    shares = (attended / values)[..., 0]
    assert shares.unique().numel() > 5
    assert 0.95 < shares.mean().item() < 1.05
