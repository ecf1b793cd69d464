"""The losses against the paper's section 3.4: sigmoid, BCE and L1 written out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torch import nn

from dist_sketch.model.losses import bce, generator_loss, ssim

LOGITS = st.lists(st.floats(-30, 30), min_size=1, max_size=12)


@given(LOGITS, st.sampled_from([0.0, 1.0]))
def test_bce_is_the_paper_s_sigmoid_and_bce(values: list[float], target: float) -> None:
    logits = torch.tensor(values, dtype=torch.float64)
    by_hand = sum(-math.log(1 / (1 + math.exp(-x if target else x))) for x in values) / len(values)
    assert bce(logits, target).item() == pytest.approx(by_hand, rel=1e-10, abs=1e-14)
    probability = torch.sigmoid(logits)
    assert bce(logits, target).item() == pytest.approx(
        nn.BCELoss()(probability, torch.full_like(probability, target)).item(), rel=1e-3, abs=1e-12
    )


def test_bce_is_finite_where_sigmoid_followed_by_a_logarithm_is_not() -> None:
    logits = torch.tensor([[-500.0, 500.0]], requires_grad=True)
    loss = bce(logits, 1.0)
    assert loss.item() == 250
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
        terms = generator_loss(x[:, :1].repeat(1, 1, 2, 2), x.repeat(1, 1, 2, 2), y.repeat(1, 1, 2, 2), 100, 10, 0.1)
    assert {t.dtype for t in terms.values()} == {computed}
    assert bce(x, 1.0).item() == pytest.approx(math.log1p(math.exp(-0.5)), rel=1e-6)


@given(lambda_l1=st.floats(0, 200), lambda_ssim=st.floats(0, 200), scale=st.floats(0.01, 10), seed=st.integers(0, 99))
def test_generator_loss_is_the_paper_s_formula_and_the_term_of_ssim(
    lambda_l1: float, lambda_ssim: float, scale: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 1, 3, 3, generator=draw, dtype=torch.float64)
    fake, sketch = torch.rand(2, 2, 3, 8, 8, generator=draw, dtype=torch.float64) * 2 - 1
    loss = generator_loss(logits, fake, sketch, lambda_l1, lambda_ssim, scale)
    adversarial = -torch.sigmoid(logits).log().mean()
    distance = (fake - sketch).abs().sum() / fake.numel()
    assert loss["loss/g_bce"].item() == pytest.approx(adversarial.item(), rel=1e-12)
    assert loss["loss/g_l1"].item() == pytest.approx(distance.item(), rel=1e-12)
    structure = structural_similarity(fake.numpy()[0, 0], sketch.numpy()[0, 0], data_range=2)  # one of six is enough
    assert ssim(fake[:1, :1], sketch[:1, :1]).item() == pytest.approx(structure, rel=1e-9)
    unlike = 1 - ssim(fake, sketch)
    assert ("loss/g_ssim" in loss) == (lambda_ssim != 0)
    if lambda_ssim:
        assert loss["loss/g_ssim"].item() == unlike.item()
    total = adversarial + lambda_l1 * distance + lambda_ssim * unlike
    assert loss["loss/g"].item() == pytest.approx((scale * total).item(), rel=1e-12)


def test_ssim_is_the_mean_over_pictures_and_channels() -> None:
    x, y = torch.rand(2, 2, 3, 16, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    each = [ssim(x[i : i + 1, c : c + 1], y[i : i + 1, c : c + 1]) for i in range(2) for c in range(3)]
    assert ssim(x, y).item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)
    assert ssim(x, x).item() == pytest.approx(1)
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


def test_the_generator_s_loss_moves_the_page_both_ways() -> None:
    fake = torch.zeros(1, 1, 2, 2, requires_grad=True)
    sketch = torch.ones(1, 1, 2, 2)
    logits = torch.zeros(1, 1, 1, 1, requires_grad=True)
    generator_loss(logits, fake, sketch, 100, 0, 0.1)["loss/g"].backward()
    assert torch.allclose(fake.grad, torch.full_like(fake, -0.1 * 100 / 4))
    assert logits.grad.item() == pytest.approx(-0.1 * 0.5)
