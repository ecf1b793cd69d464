"""The networks against the paper's sections 3.2 and 3.3, layer by layer."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from dist_sketch.core import config as cfg
from dist_sketch.core.config import Config, DataConfig, GeneratorConfig
from dist_sketch.core.errors import UserError
from dist_sketch.model import networks
from dist_sketch.model.networks import Baseline, Discriminator, Resize, check_config, discriminator, generator
from dist_sketch.model.networks import Generator as UNet

NORMS = ("batch", "instance", "group", "none")
DOWN = [(3, 64), (64, 128), (128, 256), (256, 512), (512, 512), (512, 512)]
UP = [(512, 512), (1024, 512), (1024, 256), (512, 128), (256, 64)]


def config(*, network: str = "unet", channels: int = 3, norm: str = "batch", dropout: float = 0.5) -> Config:
    return Config(
        data=DataConfig(channels=channels),  # type: ignore[arg-type]
        generator=GeneratorConfig(network=network, dropout=dropout),  # type: ignore[arg-type]
        norm=norm,  # type: ignore[arg-type]
    )


def leaves(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if not list(m.children()) and not isinstance(m, nn.ModuleList)]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_paper_s_parameter_counts_without_arguments() -> None:
    with torch.device("meta"):
        assert count(UNet()) == 16_456_899
        assert count(Discriminator()) == 375_617
        assert count(Baseline()) == 3 * 64 * 9 + 64 + 3 * (64 * 64 * 9 + 64) + 64 * 3 * 9 + 3


def test_layers_of_the_generator_in_the_paper_s_order() -> None:
    with torch.device("meta"):
        net = UNet()
    for block, (i, o) in zip(net.down, DOWN, strict=True):
        conv, activation, norm = block
        assert isinstance(conv, nn.Conv2d)
        assert (conv.in_channels, conv.out_channels) == (i, o)
        assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (2, 2), (1, 1))
        assert isinstance(activation, nn.LeakyReLU)
        assert activation.negative_slope == 0.01
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.num_features == o
    for block, (i, o) in zip(net.up, UP, strict=True):
        conv, activation, norm, dropout = block
        assert isinstance(conv, nn.ConvTranspose2d)
        assert (conv.in_channels, conv.out_channels) == (i, o)
        assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (2, 2), (1, 1))
        assert conv.output_padding == (1, 1)
        assert isinstance(activation, nn.LeakyReLU)
        assert activation.negative_slope == 0.01
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.num_features == o
        assert isinstance(dropout, nn.Dropout2d)
        assert dropout.p == 0.5
    assert isinstance(net.last, nn.ConvTranspose2d)
    assert (net.last.in_channels, net.last.out_channels) == (128, 3)


def test_layers_of_the_discriminator_in_the_paper_s_order() -> None:
    with torch.device("meta"):
        net = leaves(Discriminator())
    kinds = [
        *(nn.Conv2d, nn.LeakyReLU, nn.Identity),
        *(nn.Conv2d, nn.LeakyReLU, nn.BatchNorm2d),
        *(nn.Conv2d, nn.LeakyReLU, nn.BatchNorm2d, nn.Dropout2d),
        nn.Conv2d,
    ]
    assert all(isinstance(m, kind) for m, kind in zip(net, kinds, strict=True))
    convolutions = [(m.in_channels, m.out_channels, m.stride[0], m.padding[0]) for m in net if isinstance(m, nn.Conv2d)]
    assert convolutions == [(6, 64, 2, 1), (64, 128, 2, 1), (128, 256, 1, 0), (256, 1, 1, 0)]
    assert all(m.negative_slope == 0.01 for m in net if isinstance(m, nn.LeakyReLU))
    assert all(m.p == 0.5 for m in net if isinstance(m, nn.Dropout2d))


def test_the_baseline_is_five_plain_convolutions_of_the_same_size() -> None:
    net = Baseline()
    convolutions = [m for m in net if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 5
    assert all((c.kernel_size, c.stride, c.padding) == ((3, 3), (1, 1), (1, 1)) for c in convolutions)
    assert all(b.in_channels == a.out_channels == 64 for a, b in pairwise(convolutions))
    assert net(torch.zeros(1, 3, 20, 36)).shape == (1, 3, 20, 36)
    assert Baseline(channels=1, width=8)(torch.zeros(2, 1, 7, 9)).shape == (2, 1, 7, 9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("make", [UNet, Discriminator, Baseline])
def test_every_convolution_has_a_bias_and_every_norm_is_the_one_asked_for(make: type, norm: str) -> None:
    with torch.device("meta"):
        net = make() if make is Baseline else make(norm=norm)
    layers = leaves(net)
    assert all(m.bias is not None for m in layers if isinstance(m, nn.Conv2d | nn.ConvTranspose2d))
    norms = [m for m in layers if isinstance(m, nn.BatchNorm2d | nn.InstanceNorm2d | nn.GroupNorm)]
    if make is not Baseline and norm != "none":
        assert len(norms) == {UNet: 11, Discriminator: 2}[make]
    else:
        assert not norms
    assert all(isinstance(m, nn.BatchNorm2d) == (norm == "batch") and m.affine for m in norms)


def test_instance_norm_takes_mean_and_variance_of_one_channel_of_one_pair() -> None:
    torch.manual_seed(0)
    norm = UNet(norm="instance").down[0][2]
    x = torch.randn(3, 64, 6, 10) * 5 + 2
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, correction=0)
    by_hand = (x - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    assert torch.allclose(norm(x), by_hand, atol=1e-5)
    assert not list(norm.buffers())  # the same in training and in drawing


@pytest.mark.parametrize("groups", [8, 64])
def test_group_norm_takes_mean_and_variance_of_an_eighth_of_the_channels_of_one_pair(groups: int) -> None:
    norm = UNet(norm="group" if groups == 8 else "instance").down[0][2]
    x = torch.randn(3, 64, 6, 10, generator=torch.Generator().manual_seed(0)) * 5 + 2
    parts = x.reshape(3, groups, -1)
    by_hand = (parts - parts.mean(2, keepdim=True)) / (parts.var(2, keepdim=True, correction=0) + 1e-5).sqrt()
    assert torch.allclose(norm(x), by_hand.reshape(x.shape), atol=1e-5)
    assert not list(norm.buffers())


@pytest.mark.parametrize("width", [8, 64])
@pytest.mark.parametrize("upsample", ["transposed", "resize"])
@pytest.mark.parametrize("detail", [0, 16])
def test_widths_upsampling_and_the_block_at_full_size(width: int, upsample: str, detail: int) -> None:
    with torch.device("meta"):
        net = UNet(channels=1, width=width, upsample=upsample, detail=detail)
        assert net(torch.empty(2, 1, 128, 64)).shape == (2, 1, 128, 64)
    scale = width / 64
    for block, (i, o) in zip(net.up, UP, strict=True):
        conv = block[0]
        assert (conv.in_channels, conv.out_channels) == (i * scale, o * scale)
        assert isinstance(conv, nn.ConvTranspose2d) == (upsample == "transposed")
    full = [m for m in net.detail.modules() if isinstance(m, nn.Conv2d)] if detail else []
    assert [(c.in_channels, c.out_channels) for c in full] == ([(17, 16), (16, 1)] if detail else [])


def test_resize_draws_no_checkerboard() -> None:
    """An even page gives an even drawing except at the border; a transposed convolution would draw a pattern."""
    torch.manual_seed(0)
    patterns = {}
    for upsample in ("transposed", "resize"):
        net = UNet(channels=1, norm="none", dropout=0.0, upsample=upsample).up[0][0]
        with torch.no_grad():
            page = net(torch.ones(1, 512, 8, 8))[..., 4:-4, 4:-4]
        patterns[upsample] = page.std((2, 3)).max().item()
    assert patterns["resize"] < 1e-5
    assert patterns["transposed"] > 1e-3


def test_resize_is_the_nearest_neighbour_and_a_convolution() -> None:
    torch.manual_seed(0)
    layer, x = Resize(5, 7).double(), torch.randn(2, 5, 6, 10, dtype=torch.float64, requires_grad=True)
    enlarged = nn.functional.interpolate(x, scale_factor=2)
    expected = nn.functional.conv2d(enlarged, layer.weight, layer.bias, padding=1)
    assert torch.allclose(layer(x), expected, rtol=1e-12)
    weights = torch.randn_like(expected)
    found, wanted = (
        torch.autograd.grad((y * weights).sum(), (x, layer.weight, layer.bias)) for y in (layer(x), expected)
    )
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(found, wanted, strict=True))


def test_the_kernel_is_folded_once_for_drawing_and_anew_when_weights_change() -> None:
    torch.manual_seed(0)
    layer, x = Resize(5, 7), torch.randn(1, 5, 6, 10)
    made: list[int] = []
    plain = layer._smeared
    layer._smeared = lambda: made.append(1) or plain()  # type: ignore[method-assign]

    def page() -> Tensor:
        with torch.no_grad():
            return layer(x)

    in_training = page()
    layer.eval()
    assert torch.equal(page(), in_training)
    assert torch.equal(page(), in_training)
    assert len(made) == 2  # in training, and once for both drawings
    layer.load_state_dict(Resize(5, 7).state_dict())
    assert not torch.equal(page(), in_training)
    with torch.no_grad():
        layer.weight.zero_()
    assert page().std((2, 3)).max() < 1e-6
    assert len(made) == 4
    layer.weight.data.untyped_storage().fill_(7)  # as a CUDA graph changes weights: torch does not see it
    layer.train().eval()
    page()
    assert len(made) == 5


def test_pages_have_the_fine_tones_of_float32_in_bf16_too() -> None:
    """In bf16 tanh has 26 tones between 0.9 and 1, where paper is."""
    torch.manual_seed(0)
    net = UNet(channels=1, norm="none", dropout=0.0)
    net.last.bias.data.fill_(1.8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        page = net(torch.rand(1, 1, 64, 64) * 2 - 1)
    assert page.dtype == torch.float32
    tones = page[(page > 0.9) & (page < 1)].unique()
    assert len(tones) > 26


def test_group_norm_keeps_type_and_memory_format_where_torch_changes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on GPUs, played on the CPU."""
    torch.manual_seed(0)
    norm = networks.GroupNorm(2, 8)
    x = torch.randn(2, 8, 6, 6, dtype=torch.bfloat16).to(memory_format=torch.channels_last).requires_grad_()
    with torch.no_grad():
        exact = nn.functional.group_norm(x.float(), 2, norm.weight, norm.bias, norm.eps)
    monkeypatch.setattr(networks, "CONVERTING", ("cpu",))
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, exact.bfloat16())
    y.sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert norm(x.detach().double().float()).dtype == torch.float32


def test_fixed_noise_is_made_once() -> None:
    """Not at each drawing: it is made on the CPU, and a GPU would wait for the copy."""
    net = UNet(channels=1, norm="none", dropout=0.0, detail=8, noise=1).eval()
    networks._fixed_noise.cache_clear()
    with torch.no_grad():
        for _ in range(3):
            net(torch.ones(2, 1, 64, 64))
    assert networks._fixed_noise.cache_info().misses == 1


def test_the_block_at_full_size_sees_the_line_to_the_pixel() -> None:
    """The rest of the network is cut off: what is left of one pixel of the line reaches two pixels around, no more."""
    torch.manual_seed(0)
    net = UNet(channels=1, norm="none", dropout=0.0, detail=8).double().eval()
    for weight in (net.last.weight, net.last.bias):
        nn.init.zeros_(weight)
    line = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        before = net(line)
        line[0, 0, 30, 40] = 1
        changed = (net(line) != before)[0, 0].nonzero()
    assert changed.min(0).values.tolist() == [28, 38]
    assert changed.max(0).values.tolist() == [32, 42]


def test_the_finest_band_is_a_plane_of_its_own() -> None:
    """Grain is amplified to 1, whatever the tone of the paper; a page without grain has none, to its very edge."""
    net, seen = Discriminator(channels=1, norm="none", dropout=0.0, fine=100.0), []
    net.layers.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    line, sketch = torch.ones(1, 1, 64, 64), torch.full((1, 1, 64, 64), 0.7)
    net(line, sketch)
    sketch[0, 0, 32, 32] += 0.02
    net(line, sketch)
    net(torch.cat((line, sketch), dim=1))
    assert all(torch.equal(x[:, :2], torch.cat((line, x[:, 1:2]), dim=1)) for x in seen)
    assert seen[0][:, 2].abs().max() < 1e-4
    assert seen[1][0, 2, 32, 32].item() == pytest.approx(math.tanh(100 * 0.02 * 8 / 9), abs=1e-4)
    assert seen[1][0, 2, 31, 32].item() == pytest.approx(math.tanh(-100 * 0.02 / 9), abs=1e-4)
    assert torch.equal(seen[1], seen[2])
    assert Discriminator(channels=1).layers[0][0].in_channels == 2


def test_noise_is_fresh_in_training_and_the_same_for_every_drawing() -> None:
    torch.manual_seed(0)
    net = UNet(channels=1, norm="none", dropout=0.0, detail=8, noise=2).double()
    line = torch.rand(1, 1, 64, 128, dtype=torch.float64).expand(2, -1, -1, -1)
    with torch.no_grad():
        first, other = net(line), net(line)
        assert len({first[0].sum().item(), first[1].sum().item(), other[0].sum().item()}) == 3
        state = torch.get_rng_state()
        drawn = net.eval()(line)
        assert torch.equal(torch.get_rng_state(), state)  # nothing that comes later may depend on a validation
        torch.manual_seed(1)
        assert torch.equal(net(line), drawn)
        assert torch.allclose(drawn[0], drawn[1], rtol=1e-12)
        assert torch.allclose(net(line[:1])[0], drawn[0], rtol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_do_not_depend_on_the_memory_format(norm: str, batch: int) -> None:
    """torch's InstanceNorm2d gives wrong gradients on CPUs for one sample in channels_last (2.15): errors above 1."""
    torch.manual_seed(0)
    line, sketch = torch.rand(2, batch, 1, 128, 128, dtype=torch.float64) * 2 - 1
    for make in (UNet, Discriminator):
        net = make(channels=1, dropout=0.0, norm=norm).double()
        found = []
        for memory_format in (torch.contiguous_format, torch.channels_last):
            net.to(memory_format=memory_format).zero_grad()
            pair = [image.contiguous(memory_format=memory_format) for image in (line, sketch)]
            (net(pair[0]) if make is UNet else net(*pair)).square().mean().backward()
            found.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
        assert (found[0] - found[1]).norm() / found[0].norm() < 1e-10


@pytest.mark.parametrize("size", [64, 128, 192, 256])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("norm", NORMS)
def test_shapes(size: int, channels: int, norm: str) -> None:
    with torch.device("meta"):
        g, d = UNet(channels=channels, norm=norm).eval(), Discriminator(channels=channels, norm=norm)
        line = torch.empty(2, channels, size, size)
        if size > 64 or norm != "instance":
            assert g(line).shape == line.shape
        assert d(line, line).shape == (2, 1, size // 4 - 4, size // 4 - 4)


def test_a_real_page_comes_out_in_range_and_256_px_give_60_x_60_logits() -> None:
    torch.manual_seed(0)
    line = torch.rand(1, 3, 256, 128) * 2 - 1  # sides may differ
    with torch.no_grad():
        fake = UNet()(line)
        assert fake.shape == line.shape
        assert fake.abs().max() <= 1
        assert fake.std() > 0.01
        square = torch.rand(1, 3, 256, 256)
        logits = Discriminator()(square, square)
    assert logits.shape == (1, 1, 60, 60)
    assert logits.min() < 0  # logits, not probabilities


def test_the_discriminator_sees_both_halves_and_a_patch_sees_only_its_surroundings() -> None:
    torch.manual_seed(0)
    d = Discriminator().eval()
    line, sketch = torch.zeros(2, 1, 3, 128, 128).unbind()
    base = d(line, sketch)
    for half in (0, 1):
        pair = [line.clone(), sketch.clone()]
        pair[half][..., :4, :4] = 1  # one corner
        changed = (d(*pair) - base).abs()[0, 0] > 0
        assert changed[0, 0]
        assert not changed[4:, 4:].any()


def test_each_skip_joins_the_layers_of_one_size() -> None:
    """After the first, an up block (and the last layer) takes [the block below, the down block of its size]."""
    net = UNet(dropout=0.0)
    seen: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
    for block in (*net.down, *net.up, net.last):
        block.register_forward_hook(lambda m, i, o: seen.__setitem__(m, (i[0], o)))
    with torch.no_grad():
        net(torch.rand(2, 3, 128, 128))
    assert [seen[d][1].shape[-1] for d in net.down] == [64, 32, 16, 8, 4, 2]
    assert torch.equal(seen[net.up[0]][0], seen[net.down[5]][1])
    for n, block in enumerate((*net.up[1:], net.last)):
        below, skip = seen[net.up[n]][1], seen[net.down[4 - n]][1]
        assert torch.equal(seen[block][0], torch.cat((below, skip), dim=1))


@pytest.mark.parametrize("shape", [(100, 100), (128, 96), (64, 65), (32, 32)])
def test_a_size_that_is_no_multiple_of_64_is_refused(shape: tuple[int, int]) -> None:
    with torch.device("meta"):
        with pytest.raises(ValueError, match=f"multiples of 64, not {shape[0]} x {shape[1]}"):
            UNet()(torch.empty(1, 3, *shape))


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_check_config_refuses_exactly_what_cannot_train(size: int, batch: int, norm: str) -> None:
    """Whether it raises an error, or its bottleneck is the same for all lines."""
    chosen = config(norm=norm, channels=1)
    torch.manual_seed(0)
    x = torch.rand(batch, 1, size, size)
    with torch.no_grad():
        net = generator(chosen)
        try:
            discriminator(chosen)(x, net(x))
            for down in net.down:
                x = down(x)
            works = bool((x.std(dim=1) > 1e-3).all())
        except ValueError:
            works = False
    if works:
        check_config(chosen, size, batch)
    else:
        with pytest.raises(UserError, match=r"64 px.*bottleneck"):
            check_config(chosen, size, batch)
    assert works == (size > 64 or norm in ("none", "group") or (norm == "batch" and batch > 1))


def test_check_config_s_sentences() -> None:
    with pytest.raises(UserError, match=r"norm = 'instance' at 64 px: .* use norm = 'batch'"):
        check_config(config(norm="instance"), 64, 8)
    with pytest.raises(UserError, match=r"norm = 'batch' at 64 px with one pair a rank: .*batch_size of at least 2"):
        check_config(config(), 64, 1)
    check_config(config(network="baseline", norm="instance"), 64, 1)  # it has no bottleneck


def test_the_configuration_reaches_the_networks() -> None:
    chosen = config(channels=1, norm="instance", dropout=0.25)
    chosen = replace(chosen, generator=replace(chosen.generator, width=16, upsample="resize", detail=8, noise=2))
    with torch.device("meta"):
        assert generator(chosen).down[0][0].out_channels == 16
        assert isinstance(generator(chosen).last, Resize)
        assert [generator(chosen).detail[i].in_channels for i in (0, 2)] == [8 + 1 + 2, 8]
        assert discriminator(replace(chosen, discriminator=cfg.DiscriminatorConfig(fine=4.0))).fine == 4
        for net in (generator(chosen), discriminator(chosen)):
            assert {m.p for m in net.modules() if isinstance(m, nn.Dropout2d)} == {0.25}
            assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
        assert generator(chosen)(torch.empty(2, 1, 128, 128)).shape == (2, 1, 128, 128)
        baseline = generator(config(network="baseline", channels=1))
    assert isinstance(baseline, Baseline)
    assert baseline[0].in_channels == 1


def test_discriminator_takes_the_halves_or_the_joined_pair() -> None:
    net = Discriminator(dropout=0)
    line, sketch = torch.randn(2, 2, 3, 64, 64)
    assert torch.equal(net(line, sketch), net(torch.cat((line, sketch), dim=1)))


def test_an_enhanced_generator_begins_with_its_own_small_drawing_enlarged() -> None:
    torch.manual_seed(0)
    settings = {"channels": 1, "norm": "group", "dropout": 0.0, "width": 8, "detail": 8, "noise": 1}
    small, large = UNet(**settings).eval(), UNet(**settings, enhance=8).eval()
    missing = large.load_state_dict(small.state_dict(), strict=False).missing_keys
    assert {name.partition(".")[0] for name in missing} == {"enhancer"}
    line = torch.rand(2, 1, 256, 128) * 2 - 1
    with torch.no_grad():
        reduced = nn.functional.avg_pool2d(line, 2)
        enlarged = nn.functional.interpolate(small(reduced).atanh(), scale_factor=2, mode="bilinear").tanh()
        assert torch.allclose(large(line), enlarged, atol=1e-4)
        large.enhancer.layers[-1].weight.fill_(0.1)
        assert not torch.allclose(large(line), enlarged, atol=1e-2)


def test_the_enhancer_sees_the_line_at_full_size_and_passes_gradients_to_the_small_generator() -> None:
    torch.manual_seed(0)
    net = UNet(channels=1, norm="none", dropout=0.0, width=8, detail=8, enhance=8).double()
    nn.init.normal_(net.enhancer.layers[-1].weight)
    line = torch.full((1, 1, 128, 128), 0.5, dtype=torch.float64)
    stripes = line.clone()
    stripes[..., ::2], stripes[..., 1::2] = 0.25, 0.75  # half the size shows nothing of them
    assert torch.equal(nn.functional.avg_pool2d(line, 2), nn.functional.avg_pool2d(stripes, 2))
    assert (net(line) - net(stripes)).abs().max() > 1e-3
    net(stripes).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_a_coarser_judge_sees_the_pair_at_half_the_size_and_weighs_as_much() -> None:
    torch.manual_seed(0)
    net = Discriminator(channels=1, norm="group", dropout=0.0, fine=4.0, scales=2, width=8).eval()
    assert [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)] == [8, 16, 32, 1, 16, 32, 64, 1]
    pair = torch.rand(2, 2, 128, 128) * 2 - 1
    coarse = Discriminator(channels=1, norm="group", dropout=0.0, fine=4.0, width=16).eval()
    coarse.layers.load_state_dict(net.coarser[0].state_dict())
    with torch.no_grad():
        maps, alone = net(pair), coarse(nn.functional.avg_pool2d(pair, 2))
    assert maps.shape == (2, 2, 28, 28)
    assert torch.equal(maps[:, 1], nn.functional.interpolate(alone, size=(28, 28))[:, 0])


def test_an_enhancer_needs_sizes_of_which_the_half_can_be_drawn() -> None:
    enhanced = replace(config(channels=1), generator=GeneratorConfig(detail=8, enhance=8))
    with pytest.raises(UserError, match=r"generator.enhance = 8: needs a size that is a multiple of 128 px, not 192"):
        check_config(enhanced, 192, 4)
    with pytest.raises(UserError, match="norm = 'batch' at 128 px with one pair a rank"):
        check_config(enhanced, 128, 1)
    check_config(enhanced, 256, 1)
    with torch.device("meta"), pytest.raises(ValueError, match="multiples of 128, not 64 x 64"):
        generator(enhanced)(torch.zeros(1, 1, 64, 64))
