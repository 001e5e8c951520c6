"""The toy base's optimizer: torch's Muon, to the bit, and nearly the same where the products are in float32."""

from recipes.muon import Muon, MuonWithAdamW, product_dtype

import pytest
import torch
from torch import nn

SHAPES = [(16, 16), (48, 16), (16, 48)]


def trained(make) -> list[torch.Tensor]:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    optimizer = make(weights)
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.randn(weight.shape)
        optimizer.step()
    return [weight.detach() for weight in weights]


@pytest.mark.parametrize(("dtype", "apart"), [(torch.bfloat16, 0.0), (torch.float32, 0.02)])
def test_it_is_torchs(dtype, apart):
    wanted = trained(
        lambda weights: torch.optim.Muon(weights, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    )
    before = trained(lambda weights: torch.optim.SGD(weights, lr=0.0))
    for one, other, start in zip(trained(lambda weights: Muon(weights, 0.1, 0.1, dtype)), wanted, before, strict=True):
        assert (one - other).norm() <= apart * (other - start).norm()


@pytest.mark.parametrize(("able", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_products_are_in_float32_where_the_cpu_has_none_in_bfloat16(able, dtype, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able})
    assert product_dtype(torch.device("cpu")) == dtype and product_dtype(torch.device("cuda")) == torch.bfloat16
    assert MuonWithAdamW(nn.Linear(4, 4), 0.1).parts[0].dtype == dtype
