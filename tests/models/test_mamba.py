"""Compare Mamba with `transformers`; check padding, parameters and adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import (
    FalconMambaConfig,
    FalconMambaModel,
    Mamba2Config,
    MambaConfig,
    MambaForCausalLM,
    MambaModel,
)

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models import mamba
from kinopoisk_ft.models.card import Card
from kinopoisk_ft.models.mamba import MambaBackbone, MambaClassifier, MambaLM
from kinopoisk_ft.models.mamba2 import RMSNorm
from kinopoisk_ft.models.mamba_recipe import make_config, read_config

PUBLISHED = {"vocab_size": 50280, "hidden_size": 768, "num_hidden_layers": 24, "state_size": 16}


def tiny(**changes: object) -> MambaConfig:
    sizes = {"vocab_size": 50, "hidden_size": 20, "num_hidden_layers": 2, "state_size": 5}
    return MambaConfig(**{**sizes, "use_cache": False, **changes})


def test_steps_are_exact_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bias of dt is near -5, where bf16 has a spacing of 0.03: 3% of a step after softplus."""
    torch.manual_seed(0)
    mixer = MambaClassifier(tiny(), 2).backbone.layers[0].mixer
    deltas: list[Tensor] = []

    def scan(u: Tensor, delta: Tensor, *rest: object, **options: object) -> Tensor:
        deltas.append(delta)
        return u

    monkeypatch.setattr(mamba, "selective_scan", scan)
    read: list[Tensor] = []
    mixer.dt_proj.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    with torch.autocast("cpu", torch.bfloat16):
        mixer(torch.randn(2, 9, 20), None)
    weight, bias = mixer.dt_proj.weight.double(), mixer.dt_proj.bias.double()
    want = read[0].double() @ weight.t() + bias
    assert deltas[0].dtype == torch.float32
    torch.testing.assert_close(deltas[0].double(), want, rtol=1e-6, atol=1e-6)


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 50, (batch, length), generator=generator)


@pytest.fixture(scope="module", params=["mamba", "falcon_mamba"])
def oracle(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    config = tiny(use_bias=True, rescale_prenorm_residual=True)
    if request.param == "mamba":
        return MambaModel(config).eval()
    # A large epsilon, so that a norm with another epsilon would be noticed.
    return FalconMambaModel(FalconMambaConfig(**config.to_diff_dict(), mixer_rms_eps=0.1)).eval()


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_values_and_gradients_equal_those_of_transformers(oracle: Any, backend: str) -> None:
    ours = MambaBackbone(oracle.config, backend)
    ours.load_state_dict(oracle.state_dict())
    ids = tokens(3, 37)
    mask = (torch.arange(37) < torch.tensor([37, 20, 1])[:, None]).long()
    oracle.zero_grad()
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


def test_the_config_of_a_checkpoint_keeps_the_norms_of_falcon_mamba(
    oracle: Any, tmp_path: Path
) -> None:
    oracle.save_pretrained(tmp_path / "checkpoint")
    config = read_config(str(tmp_path / "checkpoint"), None)
    card = Card("mamba", ["Bad", "Good"], 8, pooling="last")
    make_config(config, card).save_pretrained(tmp_path / "model")
    ids = tokens(2, 9)
    for folder in ("checkpoint", "model"):
        known = read_config(str(tmp_path / folder), None)
        assert type(known) is type(oracle.config)
        ours = MambaBackbone(known)
        ours.load_state_dict(oracle.state_dict())
        torch.testing.assert_close(ours(ids), oracle(ids).last_hidden_state, rtol=1e-5, atol=1e-5)
    classifier = MambaBackbone(make_config(config, card))
    classifier.load_state_dict(oracle.state_dict())
    torch.testing.assert_close(classifier(ids), ours(ids))


def test_language_model_equals_that_of_transformers() -> None:
    theirs = MambaForCausalLM(tiny()).eval()
    ours = MambaLM(theirs.config)
    ours.load_state_dict(theirs.state_dict())
    assert ours.lm_head.weight is ours.backbone.embeddings.weight
    ids = tokens(2, 11)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("scheme", ["random", "constant"])
def test_initialisation_is_that_of_transformers(scheme: str) -> None:
    config = tiny(hidden_size=160, time_step_init_scheme=scheme, rescale_prenorm_residual=True)
    theirs = MambaModel(config).state_dict()
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
    lengths = [1, 9, 33, 40]
    rows = [tokens(1, length, seed=length) for length in lengths]
    alone = torch.cat([model(row).logits for row in rows])
    for width in (40, 64, 101):
        ids, mask = torch.zeros(4, width, dtype=torch.long), torch.zeros(4, width)
        for i, row in enumerate(rows):
            ids[i, : row.shape[1]], mask[i, : row.shape[1]] = row, 1
        torch.testing.assert_close(model(ids, mask).logits, alone, rtol=1e-5, atol=1e-5)
        one = model(ids[1:2], mask[1:2]).logits
        torch.testing.assert_close(one, alone[1:2], rtol=1e-5, atol=1e-5)


def test_last_position_reads_the_pads() -> None:
    model = MambaClassifier(tiny(), 2, "last_position").eval()
    ids, mask = tokens(2, 12), torch.ones(2, 12)
    mask[:, 8:] = 0
    torch.testing.assert_close(model(ids, mask).logits, model(ids).logits)
    changed = ids.clone()
    changed[:, 10] = ids[:, 10] % 49 + 1
    assert not torch.equal(model(changed, mask).logits, model(ids, mask).logits)


def test_last_position_is_warned_of_when_it_is_built(caplog: pytest.LogCaptureFixture) -> None:
    MambaClassifier(tiny(), 2, "last")
    assert not caplog.records
    model = MambaClassifier(tiny(), 2, "last_position")
    for _ in range(2):
        model(tokens(2, 5), torch.ones(2, 5))
    warnings = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "model.pooling=last_position reproduces the original study" in warnings[0]


@pytest.mark.parametrize(
    ("scan", "conv"),
    [("auto", "auto"), ("cuda", "auto"), ("torch", "torch"), ("reference", "torch")],
)
def test_convolution_follows_the_scan(scan: str, conv: str) -> None:
    second = Mamba2Config(hidden_size=8, num_heads=2, head_dim=8, n_groups=1, num_hidden_layers=1)
    for config in (tiny(), second):
        mixer = MambaClassifier(config, 2, scan_backend=scan).backbone.layers[0].mixer
        assert (mixer.scan_backend, mixer.conv_backend) == (scan, conv)


def test_row_without_tokens_gives_finite_logits_and_gradients() -> None:
    model = MambaClassifier(tiny(), 2)
    model(tokens(2, 5), torch.tensor([[0] * 5, [1] * 5])).logits.sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("row", [[0, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 1]])
def test_other_padding_is_refused(row: list[int]) -> None:
    with pytest.raises(ValueError, match="padding on the right"):
        MambaBackbone(tiny())(tokens(1, 4), torch.tensor([row]))


def test_published_size_to_the_parameter() -> None:
    with torch.device("meta"):
        model = MambaClassifier(MambaConfig(**PUBLISHED), num_labels=2)
        logits = model(torch.zeros(2, 7, dtype=torch.long), torch.ones(2, 7)).logits
    assert sum(p.numel() for p in model.parameters()) == 129_136_898
    assert logits.shape == (2, 2)


@pytest.mark.parametrize("target", ["in_proj", "x_proj", "dt_proj", "out_proj"])
def test_lora_takes_part_on_every_projection(target: str) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=[target], init_lora_weights=False)
    model = peft.get_peft_model(MambaClassifier(tiny(), 2), config)
    model(input_ids=tokens(2, 9), attention_mask=torch.ones(2, 9)).logits.sum().backward()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # The factors A and B in two layers.
    assert len(trainable) == 4
    assert all(p.grad is not None and p.grad.any() for p in trainable.values())


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_autocast_keeps_residuals_and_scan_in_float32(backend: str) -> None:
    torch.manual_seed(0)
    model = MambaClassifier(tiny(), 2, scan_backend=backend)
    seen: dict[str, torch.dtype] = {}
    model.backbone.layers[1].register_forward_hook(lambda *a: seen.update(block=a[2].dtype))
    model.backbone.layers[1].mixer.in_proj.register_forward_hook(
        lambda *a: seen.update(projection=a[2].dtype)
    )
    model.backbone.layers[1].norm.register_forward_hook(lambda *a: seen.update(norm=a[2].dtype))
    model.backbone.norm_f.register_forward_hook(lambda *a: seen.update(norm_f=a[2].dtype))
    exact = model(tokens(2, 9)).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(tokens(2, 9)).logits
    logits.sum().backward()
    assert seen == {"norm": torch.bfloat16, "projection": torch.bfloat16} | dict.fromkeys(
        ("block", "norm_f"), torch.float32
    )
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, exact, rtol=0.1, atol=0.1)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_norms_round_where_projections_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast, the norm of a block writes the values that the projection would round to."""
    torch.manual_seed(0)
    model, found = MambaClassifier(tiny(), 2), []
    forward = RMSNorm.forward
    for dtype in (lambda given: given, lambda given: None):
        monkeypatch.setattr(RMSNorm, "forward", lambda norm, x, given=None, dtype=dtype: forward(
            norm, x, dtype(given)))  # fmt: skip
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(tokens(2, 9)).logits
        logits.sum().backward()
        found.append([logits.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.slow
def test_compiles() -> None:
    torch.manual_seed(0)
    model = MambaClassifier(tiny(num_hidden_layers=1), 2)
    ids, mask = tokens(2, 9), torch.ones(2, 9)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids, mask).logits, model(ids, mask).logits)


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'mean'"):
        MambaClassifier(tiny(), 2, pooling="meen")
    with pytest.raises(UserError, match="did you mean 'numba'"):
        MambaClassifier(tiny(), 2, scan_backend="nunba")
    with pytest.raises(UserError, match="hidden_act 'gelu' is not supported"):
        MambaBackbone(tiny(hidden_act="gelu"))
