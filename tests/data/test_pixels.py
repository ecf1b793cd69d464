import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from dist_sketch.data import pixels


def noise(channels: int, height: int = 20, width: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8, generator=generator)


def decode(data: bytes, channels: int) -> Tensor:
    with Image.open(io.BytesIO(data)) as image:
        return pixels.from_image(image, channels)


def test_uint8_to_float_and_back_is_exact() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    floats = pixels.to_float(values)
    assert floats.dtype == torch.float32
    assert (floats[0], floats[255]) == (-1, 1)
    assert (floats.diff() > 0).all()
    for back in (floats, floats.double()):
        assert torch.equal(pixels.to_uint8(back), values)


def test_to_uint8_rounds_and_clamps() -> None:
    step = 2 / 255
    values = torch.tensor([-9.0, -1 + 0.4 * step, -1 + 0.6 * step, 1 - 0.4 * step, 1 - 0.6 * step, 9.0])
    assert pixels.to_uint8(values).tolist() == [0, 0, 1, 255, 254, 255]
    assert pixels.to_uint8(torch.tensor([-1.0, 1.0], dtype=torch.bfloat16)).tolist() == [0, 255]  # autocast's output


@pytest.mark.parametrize("channels", [1, 3])
def test_encode_and_decode_lose_nothing(channels: int) -> None:
    image = noise(channels)
    data = pixels.encode(image)
    assert torch.equal(decode(data, channels), image)
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "L" if channels == 1 else "RGB", (12, 20))


def test_channels_gray_is_repeated_and_color_becomes_luma() -> None:
    gray, color = noise(1), noise(3)
    assert torch.equal(decode(pixels.encode(gray), 3), gray.expand(3, -1, -1))
    luma = decode(pixels.encode(color), 1)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    assert luma.shape == (1, 20, 12)
    assert (luma[0] - (color * weights).sum(0)).abs().max() <= 1
    gray_in_rgb = gray.expand(3, -1, -1).contiguous()
    assert torch.equal(decode(pixels.encode(gray_in_rgb), 1), gray)


def test_to_rgb() -> None:
    batch = torch.stack([noise(1), noise(1, seed=1)])
    assert torch.equal(pixels.to_rgb(batch), torch.cat([batch] * 3, dim=1))
    assert torch.equal(pixels.to_rgb(noise(3)), noise(3))


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_rgb_and_near(channels: int) -> None:
    image = torch.linspace(0, 255, 64 * 48).reshape(1, 64, 48).to(torch.uint8).expand(channels, -1, -1)
    with Image.open(io.BytesIO(pixels.encode(image, "jpg"))) as picture:
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (48, 64))
        assert np.abs(np.asarray(picture, float) - image[0].numpy()[..., None]).max() <= 4


def test_resize() -> None:
    image = noise(3)
    assert pixels.resize(image, 20, 12) is image
    small = pixels.resize(image, 5, 24)  # the aspect ratio is not kept
    assert (small.shape, small.dtype) == ((3, 5, 24), torch.uint8)
    # Antialiased: a fine checkerboard becomes gray, not black or white.
    board = ((torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255).to(torch.uint8)[None]
    assert (pixels.resize(board, 16, 16).int() - 127).abs().max() <= 2
    flat = torch.full((2, 1, 8, 8), 200, dtype=torch.uint8)
    assert (pixels.resize(flat, 13, 13) == 200).all()
    # The same rule as at packing (each rounds between its two passes).
    packed = np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).resize((8, 9), Image.Resampling.BICUBIC))
    assert (pixels.resize(image, 9, 8).permute(1, 2, 0).int() - torch.from_numpy(packed).int()).abs().max() <= 2


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from([(), (2,)]),
    st.sampled_from([1, 3]),
    st.tuples(*[st.sampled_from([1, 2, 7, 16, 33, 64, 100])] * 4),
    st.booleans(),
)
def test_resize_gives_torchvision_s_pixels(
    batch: tuple[int, ...], channels: int, sides: tuple[int, int, int, int], channels_last: bool
) -> None:
    """Shards were packed, and runs scored, when that was what resized."""
    height, width, *size = sides
    image = torch.randint(0, 256, (*batch, channels, height, width), dtype=torch.uint8)
    if channels_last:
        image = image.movedim(-3, -1).contiguous().movedim(-1, -3)
    if size != [1, 1]:  # there torchvision fails for three channels
        expected = resize(image, size, InterpolationMode.BICUBIC, antialias=True)
        assert torch.equal(pixels.resize(image, *size), expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (1, 40), (40, 1)])
def test_resize_to_and_from_any_size(channels: int, size: tuple[int, int]) -> None:
    flat = torch.full((2, channels, 20, 12), 200, dtype=torch.uint8)
    for image in (flat, flat[0]):
        small = pixels.resize(image, *size)
        assert small.shape == (*image.shape[:-2], *size)
        assert (small == 200).all()
        assert (pixels.resize(small, 20, 12) == 200).all()
    means = noise(3).float().mean((1, 2))
    assert (pixels.resize(noise(3), 1, 1).flatten() - means).abs().max() < 30  # each channel for itself


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.booleans(), st.booleans(), st.sampled_from([1, 3]), st.integers(8, 40))
def test_a_moved_image_keeps_its_size(seed: int, flip: bool, shift: bool, channels: int, width: int) -> None:
    image = noise(channels, 32, width)
    one = augment(image, seed, flip=flip, shift=shift)
    assert one.shape == image.shape
    assert one.dtype == torch.uint8
    assert torch.equal(augment(image, seed, flip=flip, shift=shift), one)
    if not flip and not shift:
        assert torch.equal(one, image)


def augment(image: Tensor, seed: int, **options: bool) -> Tensor:
    move = pixels.draw_move(pixels.pair_generator(seed, 0, "k"), *image.shape[-2:], **options)
    return pixels.moved(image, move)


def test_flip_mirrors_half_of_the_pairs() -> None:
    image = noise(3)
    flipped = [torch.equal(augment(image, s, flip=True, shift=False), image.flip(-1)) for s in range(400)]
    same = [torch.equal(augment(image, s, flip=True, shift=False), image) for s in range(400)]
    assert [not f for f in flipped] == same
    assert 160 < sum(flipped) < 240


def test_shift_moves_by_up_to_a_sixteenth_each_way_and_mirrors_what_is_missing() -> None:
    image = noise(1, 48, 64)
    big = torch.nn.functional.pad(image.float(), (4, 4, 3, 3), mode="reflect").to(torch.uint8)
    crops = {(top, left): big[:, top : top + 48, left : left + 64] for top in range(7) for left in range(9)}
    found = set()
    for seed in range(1000):
        moved = augment(image, seed, flip=False, shift=True)
        found.add(next(place for place, crop in crops.items() if torch.equal(crop, moved)))
    assert found == set(crops)


def test_one_option_does_not_change_the_other_ones_draw() -> None:
    image = noise(1, 64, 64)
    for seed in range(20):
        moved = augment(image, seed, flip=False, shift=True)
        mirrored = torch.equal(augment(image, seed, flip=True, shift=False), image.flip(-1))
        both = augment(image, seed, flip=True, shift=True)
        assert torch.equal(both, moved.flip(-1) if mirrored else moved)


def test_half_of_the_pairs_show_a_freehand_version_and_each_one_as_often() -> None:
    shown = [pixels.draw_version(pixels.pair_generator(s, 0, "k"), 4) for s in range(1600)]
    counts = [shown.count(number) for number in (None, 0, 1, 2, 3)]
    assert sum(counts) == 1600
    assert 700 < counts[0] < 900
    assert all(140 < n < 260 for n in counts[1:])
    assert pixels.draw_version(pixels.pair_generator(0, 0, "k"), 0) is None


def test_each_seed_epoch_and_key_has_a_stream_of_its_own() -> None:
    places = [(s, e, k) for s in (0, 1, 11) for e in (0, 1, 11) for k in ("1", "11", "Zoë")]
    draws = {torch.rand(1, generator=pixels.pair_generator(*p)).item() for p in places}
    assert len(draws) == len(places)
    again = torch.rand(3, generator=pixels.pair_generator(5, 2, "a"))
    assert torch.equal(again, torch.rand(3, generator=pixels.pair_generator(5, 2, "a")))
