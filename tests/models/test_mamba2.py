"""Compare Mamba-2 with `transformers`; check padding, parameters and adapters."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import Mamba2Config, Mamba2ForCausalLM, Mamba2Model

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.mamba import MambaBackbone, MambaClassifier, MambaLM
from kinopoisk_ft.training.optim import has_weight_decay

# The oracle of the two tests with several groups.
needs_groups = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="transformers before 5.23 normalizes all groups of Mamba-2 together",
)


def tiny(**changes: object) -> Mamba2Config:
    sizes = {"vocab_size": 50, "hidden_size": 24, "num_heads": 6, "head_dim": 8, "n_groups": 2,
             "state_size": 5, "num_hidden_layers": 2, "chunk_size": 16}  # fmt: skip
    return Mamba2Config(**{**sizes, "use_cache": False, **changes})


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 50, (batch, length), generator=generator)


@needs_groups
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("limit", [(0.0, float("inf")), (0.01, 0.05)])
def test_values_and_gradients_equal_those_of_transformers(
    backend: str, limit: tuple[float, float]
) -> None:
    torch.manual_seed(0)
    oracle = Mamba2Model(tiny(use_bias=True, time_step_limit=limit)).eval()
    ours = MambaBackbone(oracle.config, backend)
    ours.load_state_dict(oracle.state_dict())
    ids = tokens(3, 100)
    mask = (torch.arange(100) < torch.tensor([100, 40, 1])[:, None]).long()
    theirs = oracle(ids, attention_mask=mask).last_hidden_state
    hidden = ours(ids, mask)
    real = mask.bool()
    torch.testing.assert_close(hidden[real], theirs[real], rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(theirs)
    (theirs[real] * weight[real]).sum().backward()
    (hidden[real] * weight[real]).sum().backward()
    want = dict(oracle.named_parameters())
    for name, parameter in ours.named_parameters():
        scale = want[name].grad.abs().max().item()
        torch.testing.assert_close(parameter.grad, want[name].grad, rtol=1e-4, atol=1e-5 * scale)


@needs_groups
def test_language_model_equals_that_of_transformers() -> None:
    theirs = Mamba2ForCausalLM(tiny(tie_word_embeddings=True)).eval()
    ours = MambaLM(theirs.config)
    ours.load_state_dict(theirs.state_dict())
    ids = tokens(2, 11)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-5, atol=1e-4)


def test_initialisation_is_that_of_transformers() -> None:
    config = tiny(hidden_size=160, num_heads=40, rescale_prenorm_residual=True)
    theirs = Mamba2Model(config).state_dict()
    ours = MambaBackbone(config).state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.shape == theirs[name].shape
        for one, other in ((value.mean(), theirs[name].mean()), (value.std(), theirs[name].std())):
            spread = theirs[name].std().item() / value.numel() ** 0.5
            torch.testing.assert_close(one, other, rtol=0.05, atol=6 * spread + 1e-6)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_padding_and_batch_do_not_change_logits(pooling: str) -> None:
    torch.manual_seed(0)
    model = MambaClassifier(tiny(), 2, pooling).eval()
    rows = [tokens(1, length, seed=length) for length in (1, 9, 64, 130)]
    alone = torch.cat([model(row).logits for row in rows])
    for width in (130, 131, 200):
        ids, mask = torch.zeros(4, width, dtype=torch.long), torch.zeros(4, width)
        for i, row in enumerate(rows):
            ids[i, : row.shape[1]], mask[i, : row.shape[1]] = row, 1
        torch.testing.assert_close(model(ids, mask).logits, alone, rtol=1e-5, atol=1e-5)


def test_published_size_to_the_parameter() -> None:
    """The published checkpoint has 128,989,632 weights (516 MB in fp32); our head adds to them."""
    config = Mamba2Config(
        vocab_size=50288, hidden_size=768, num_heads=24, head_dim=64, n_groups=1, state_size=128,
        num_hidden_layers=24,
    )  # fmt: skip
    with torch.device("meta"):
        ours, theirs = MambaClassifier(config, num_labels=2), Mamba2Model(config)
        logits = ours(torch.zeros(2, 7, dtype=torch.long), torch.ones(2, 7)).logits
    backbone = sum(p.numel() for p in theirs.parameters())
    assert backbone == 128_989_632
    assert sum(p.numel() for p in ours.parameters()) == backbone + 2 * 768 + 2
    assert logits.shape == (2, 2)


@pytest.mark.parametrize("target", ["in_proj", "out_proj"])
def test_lora_takes_part_on_every_projection(target: str) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=[target], init_lora_weights=False)
    model = peft.get_peft_model(MambaClassifier(tiny(), 2), config)
    model(input_ids=tokens(2, 9), attention_mask=torch.ones(2, 9)).logits.sum().backward()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # The factors A and B in two layers.
    assert len(trainable) == 4
    assert all(p.grad is not None and p.grad.any() for p in trainable.values())


def test_state_parameters_stay_float32_and_do_not_decay() -> None:
    model = MambaClassifier(tiny(), 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(tokens(2, 9)).logits
    logits.sum().backward()
    assert logits.dtype == torch.float32
    for name, parameter in model.named_parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        if name.split(".")[-1] in {"A_log", "D", "dt_bias"} or "norm" in name:
            assert not has_weight_decay(name, parameter)


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(UserError, match=r"model.scan_backend cannot be 'numba'"):
        MambaClassifier(tiny(), 2, scan_backend="numba")
    with pytest.raises(UserError, match="hidden_act 'gelu' is not supported"):
        MambaBackbone(tiny(hidden_act="gelu"))
