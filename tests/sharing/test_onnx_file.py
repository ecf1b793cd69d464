"""Generators as ONNX files: they draw what PyTorch draws and tell what they are, or are not written."""

import collections
import hashlib
import importlib.util
import json
import math
import re
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from dist_sketch.__main__ import parse
from dist_sketch.core.config import Config, DataConfig, GeneratorConfig, to_dict
from dist_sketch.core.errors import UserError
from dist_sketch.model.pretrained import SketchGenerator
from dist_sketch.sharing import onnx_file
from dist_sketch.sharing.onnx_file import ONNX, compare, to_bytes

FACTS = {"step": 7, "data": "faces", "license": "CC BY 4.0"}
PORTRAIT = {"width": 8, "upsample": "resize", "detail": 4, "noise": 1}
CONFIGURATIONS = {  # norm, channels, size in px, settings of the generator
    "paper": ("batch", 3, 64, {"width": 8}),
    "instance": ("instance", 3, 128, {"width": 8}),
    "portrait": ("group", 1, 64, PORTRAIT),
    "enhanced": ("batch", 1, 256, PORTRAIT | {"enhance": 4}),
    "baseline": ("batch", 1, 64, {"network": "baseline"}),
}


def made(name: str) -> SketchGenerator:
    """An untrained generator of small width, whose norms have statistics and weights as after a training."""
    norm, channels, size, generator = CONFIGURATIONS[name]
    torch.manual_seed(0)
    config: Any = Config(norm=norm, data=DataConfig(channels=channels), generator=GeneratorConfig(**generator))
    model = SketchGenerator({"config": to_dict(config), "facts": FACTS | {"size": size}}).eval()
    for part in model.net.modules():
        if isinstance(part, nn.BatchNorm2d | nn.GroupNorm):
            for tensor in (part.weight, part.bias, getattr(part, "running_mean", None)):
                if tensor is not None:
                    nn.init.normal_(tensor)
        if isinstance(part, nn.BatchNorm2d) and part.running_var is not None:
            nn.init.uniform_(part.running_var, 0.5, 2)
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):  # also the enhancer's last layer, which begins with zeros
            nn.init.normal_(part.weight, std=0.1)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export, of the network that is quickest to write as ONNX."""
    folder = tmp_path_factory.mktemp("generator") / "baseline"
    made("baseline").save_pretrained(folder)
    return folder


def drawn(contents: bytes, line: torch.Tensor, options: Any = None) -> torch.Tensor:
    session = onnxruntime.InferenceSession(contents, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["sketch"], {"line": line.numpy()})[0])


def facts_of(contents: bytes) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load_from_string(contents).metadata_props}


@pytest.mark.parametrize(
    ("name", "compact"),
    [("paper", True), ("instance", False), ("portrait", True), ("enhanced", False), ("baseline", True)],
)
def test_onnxruntime_draws_what_pytorch_draws(name: str, compact: bool, tmp_path: Path) -> None:
    model = made(name)
    model.net.to(memory_format=torch.channels_last)  # as after a drawing
    contents = to_bytes(model, compact)

    model.compact = compact
    model.save_pretrained(tmp_path)
    exported = SketchGenerator.load(tmp_path)
    optimized = onnxruntime.SessionOptions()
    optimized.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    optimized.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    for batch in (1, 3):
        line = torch.rand(batch, model.config.data.channels, model.size, model.size) * 2 - 1
        with torch.no_grad():
            wanted = exported(line)
        assert wanted.std() > 0.05  # the drawings are not blank
        assert (drawn(contents, line, optimized) - wanted).abs().max() * 127.5 < 0.01

    # What makes float32 of 8 bits has gone when the file is loaded, and is not computed for each drawing.
    operators = collections.Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert not {"Cast", "MatMul", "DequantizeLinear"} & operators.keys()

    file = onnx.load_from_string(contents)
    onnx.checker.check_model(file, full_check=True)
    assert [(o.domain, o.version) for o in file.opset_import] == [("", onnx_file.OPSET)]
    held = sum(len(tensor.raw_data) for tensor in file.graph.initializer)
    parameters = sum(tensor.numel() for tensor in model.net.parameters())
    assert held < 1.5 * parameters + 80_000 if compact else held > 4 * parameters
    weights = (tmp_path / "generator.safetensors").read_bytes()
    assert facts_of(contents)["weights_sha256"] == hashlib.sha256(weights).hexdigest()


def test_export_writes_it_beside_the_generator(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    parse(["checkpoint", "export", str(folder), "--out", str(out), "--onnx", "--compact"])()
    said, warned = capfd.readouterr()
    assert warned == ""
    found = re.match(
        r"generator\.onnx: \d\.\d MB; on 6 lines it differs from PyTorch by at most (\S+) gray levels of 255; "
        r"one drawing takes \d+ ms in onnxruntime, \d+ ms in PyTorch\n",
        said,
    )
    assert found, said
    assert float(found[1]) < 0.01
    assert {p.name for p in out.iterdir()} == {"README.md", "config.json", "generator.safetensors", ONNX}

    contents = (out / ONNX).read_bytes()
    model = SketchGenerator.load(out)
    line = torch.rand(1, 1, 64, 64) * 2 - 1
    with torch.no_grad():
        assert (drawn(contents, line) - model(line)).abs().max() * 127.5 < 0.01
    facts = facts_of(contents)
    assert facts.pop("weights_sha256") == hashlib.sha256((out / "generator.safetensors").read_bytes()).hexdigest()
    assert json.loads(facts.pop("denoise")) == to_dict(model.denoise)
    assert facts == {"size": "64", "channels": "1", **{key: str(value) for key, value in FACTS.items()}}

    # Nothing of the machine on which it was made
    file = onnx.load_from_string(contents)
    assert file.producer_name == "dist_sketch"
    parts = (file.graph, *file.graph.node, *file.graph.initializer, *file.graph.input, *file.graph.output)
    assert not [part for part in parts if part.metadata_props or part.doc_string]
    for place in (Path(__file__).parents[2], Path(torch.__file__).parent, Path.home()):
        assert str(place).encode() not in contents


def test_one_that_draws_differently_is_not_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SketchGenerator.load(folder)
    bias = list(model.net.parameters())[-1]
    nn.init.constant_(bias, 0.1)
    contents = to_bytes(model, True)
    assert compare(contents, model, True)
    nn.init.constant_(bias, math.nan)
    with pytest.raises(UserError, match="draws by nan gray levels differently"):
        compare(contents, model, True)

    monkeypatch.setattr(onnx_file, "to_bytes", lambda model, compact: contents)
    export = parse(["checkpoint", "export", str(folder), "--out", str(tmp_path / "out"), "--onnx", "--compact"])
    with pytest.raises(
        UserError, match=r"draws by \S+ gray levels differently from PyTorch \S+, and more than 0.5 are"
    ):
        export()
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_a_sentence(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    export = parse(["checkpoint", "export", str(folder), "--out", str(tmp_path / "out"), "--onnx"])
    with pytest.raises(UserError, match=r"^ONNX files need onnxscript; type `pip install dist-sketch\[onnx\]`$"):
        export()
    assert not list(tmp_path.iterdir())
