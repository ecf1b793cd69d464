"""The losses against the paper's section 3.4: sigmoid, BCE and L1 written out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torch import nn

from dist_sketch.model.losses import bce, l1, ssim

LOGITS = st.lists(st.floats(-30, 30), min_size=1, max_size=12)


@given(LOGITS, st.sampled_from([0.0, 1.0]))
def test_bce_is_the_paper_s_sigmoid_and_bce(values: list[float], target: float) -> None:
    logits = torch.tensor([values], dtype=torch.float64)
    by_hand = sum(-math.log(1 / (1 + math.exp(-x if target else x))) for x in values) / len(values)
    assert bce(logits, target).item() == pytest.approx(by_hand, rel=1e-10, abs=1e-14)
    probability = torch.sigmoid(logits)
    assert bce(logits, target).item() == pytest.approx(
        nn.BCELoss()(probability, torch.full_like(probability, target)).item(), rel=1e-3, abs=1e-12
    )


def test_bce_is_finite_where_sigmoid_followed_by_a_logarithm_is_not() -> None:
    logits = torch.tensor([[-500.0, 500.0]], requires_grad=True)
    loss = bce(logits, 1.0)
    assert loss.tolist() == [250]
    loss.backward()
    assert torch.equal(logits.grad, torch.tensor([[-0.5, 0.0]]))


@pytest.mark.parametrize(
    ("given_dtype", "computed"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2],
)
def test_losses_are_computed_in_float32_or_better(given_dtype: torch.dtype, computed: torch.dtype) -> None:
    x, y = torch.full((2, 3, 4, 4), 0.5, dtype=given_dtype), torch.zeros(2, 3, 4, 4, dtype=given_dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert bce(x, 1.0).dtype == computed
        terms = [loss(x.repeat(1, 1, 2, 2), y.repeat(1, 1, 2, 2)) for loss in (l1, ssim)]
    assert {t.dtype for t in terms} == {computed}
    assert bce(x, 1.0).tolist() == pytest.approx([math.log1p(math.exp(-0.5))] * 2, rel=1e-6)


def test_one_target_for_each_pair_is_the_same_as_one_after_the_other() -> None:
    logits = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    both = bce(logits, torch.tensor([1.0, 0.0], dtype=torch.float64)[:, None, None, None])
    assert torch.allclose(both, torch.cat((bce(logits[:1], 1.0), bce(logits[1:], 0.0))), rtol=1e-12)


def test_each_pair_has_its_own_loss() -> None:
    draw = torch.Generator().manual_seed(0)
    fake, sketch = torch.rand(2, 4, 3, 16, 20, generator=draw, dtype=torch.float64) * 2 - 1
    structure = [
        structural_similarity(a, b, data_range=2, channel_axis=0)
        for a, b in zip(fake.numpy(), sketch.numpy(), strict=True)
    ]
    assert ssim(fake, sketch).tolist() == pytest.approx(structure, rel=1e-9)
    assert l1(fake, sketch).tolist() == pytest.approx((fake - sketch).abs().mean((1, 2, 3)).tolist(), rel=1e-12)
    assert ssim(fake, fake).tolist() == pytest.approx([1] * 4)
    blank = torch.ones(1, 1, 16, 16)
    assert ssim(blank, blank).item() == pytest.approx(1)  # no variance, no division by zero


def test_ssim_s_gradient_leads_to_the_sketch() -> None:
    torch.manual_seed(0)
    sketch = torch.rand(1, 1, 16, 16, dtype=torch.float64) * 2 - 1
    fake = (torch.rand(1, 1, 16, 16, dtype=torch.float64) * 2 - 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: ssim(f, sketch), (fake,))
    adam, before = torch.optim.Adam([fake], 0.05), ssim(fake, sketch).item()
    for _ in range(150):
        adam.zero_grad()
        (1 - ssim(fake, sketch)).backward()
        adam.step()
    assert ssim(fake, sketch).item() > max(0.8, before + 0.5)
