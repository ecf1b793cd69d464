"""A trained generator as one ONNX file, for onnxruntime and for browsers, and its comparison with PyTorch's drawing."""

import copy
import hashlib
import importlib.util
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from dist_sketch import __version__
from dist_sketch.core import fileio
from dist_sketch.core.config import to_dict
from dist_sketch.core.errors import UserError
from dist_sketch.data import pixels
from dist_sketch.data.image_files import read_image
from dist_sketch.model.networks import Resize
from dist_sketch.model.pretrained import ONNX, SketchGenerator
from dist_sketch.model.weights import SCALE, from_8bit

OPSET = 18  # in which torch's exporter writes; later ones cost a conversion and bring nothing
LIMIT = 0.5  # gray levels of 255 by which two drawings may differ: half of one step of a picture's tones
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
REPEATS = 5  # of a drawing whose time is measured


def to_bytes(model: SketchGenerator, compact: bool) -> bytes:
    """The generator as one ONNX file of opset 18, with its weights inside.

    Its input "line" and its output "sketch" are float32 (batch, C, size, size) in [-1, 1], for any batch. Facts about
    it are in its metadata: size, channels, step, denoise, data, license, began_with, weights_sha256; as JSON where
    they are not text.

    Batch norm stays a layer of its own: in the paper's order it follows the activation, and the next convolution
    surrounds its result with zeros, so it cannot be folded into either. Half precision was tried for the weights: it
    takes three times the bytes of 8 bits, and changes drawings whose weights were in 8 bits by up to 3 gray levels.

    Args:
        model: as `SketchGenerator.load` returns it; it is not changed.
        compact: store the weights in 8 bits, rounded as `export` rounds them. A runtime makes float32 of them once,
            when it loads the file.

    Raises:
        UserError: a package is missing.
    """
    check_packages()
    stored = model.stored(compact)
    file = _exported(model)
    graph = file.graph
    del graph.value_info[:]  # runtimes find the shapes themselves
    # Here the exporter tells which line of which file on this machine has made a node.
    for part in (file, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    if compact:
        _store_8bit(graph, model.net, stored)
    file.producer_name, file.producer_version = "dist_sketch", __version__
    facts = model.saved["facts"]
    told = {
        "size": model.size,
        "channels": model.config.data.channels,
        "step": model.step,
        "denoise": to_dict(model.denoise),
        **{key: facts[key] for key in ("data", "license", "began_with") if facts.get(key)},
        "weights_sha256": hashlib.sha256(save(stored)).hexdigest(),
    }
    for key, value in told.items():
        file.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    return file.SerializeToString()


def compare(contents: bytes, model: SketchGenerator, compact: bool) -> str:
    """Draws a few real lines with onnxruntime and with PyTorch, on the CPU, and says how they differ and how long it
    takes.

    Args:
        contents: what `to_bytes` has made of `model` and `compact`.

    Raises:
        UserError: the drawings differ by more than LIMIT, or a package is missing.
    """
    check_packages()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(contents, options, providers=["CPUExecutionProvider"])
    net = _copied(model.net)
    net.load_state_dict(from_8bit(model.stored(compact)))

    def by_onnxruntime(line: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["sketch"], {"line": line.numpy()})[0])

    largest = 0.0
    lines = _lines(model.size, model.config.data.channels)
    with torch.inference_mode():
        for line in lines.split(1):
            difference = (by_onnxruntime(line) - net(line)).abs().max().item() * 127.5
            if not difference <= LIMIT:  # also if it is not a number
                raise UserError(
                    f"{ONNX}: onnxruntime {onnxruntime.__version__} draws by {difference:.3g} gray levels differently "
                    f"from PyTorch {torch.__version__}, and more than {LIMIT} are too many; nothing was written. Try "
                    "other versions of onnx, onnxscript and onnxruntime"
                )
            largest = max(largest, difference)
        theirs, ours = (_fastest(draw, lines[:1]) for draw in (by_onnxruntime, net))
    return (
        f"{ONNX}: {len(contents) / 1e6:.1f} MB; on {len(lines)} lines it differs from PyTorch by at most "
        f"{largest:.2g} gray levels of 255; one drawing takes {theirs * 1000:.0f} ms in onnxruntime, "
        f"{ours * 1000:.0f} ms in PyTorch"
    )


def check_packages() -> None:
    """Looks for the packages that make and run the file.

    Raises:
        UserError: one is missing.
    """
    if missing := missing_packages():
        raise UserError(f"ONNX files need {' and '.join(missing)}; type `pip install dist-sketch[onnx]`")


def missing_packages() -> list[str]:
    """Those of the packages that make and run the file which are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def _copied(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net).to("cpu", torch.float32).eval()


def _exported(model: SketchGenerator) -> Any:
    """The graph as torch's exporter writes it (onnx.ModelProto), with the kernel of each `Resize` folded."""
    net = _copied(model.net)
    line = torch.zeros(2, model.config.data.channels, model.size, model.size)
    with torch.no_grad():
        net(line)  # makes the fixed noise, which is then a constant for the exporter
        for name, layer in list(net.named_modules()):
            if isinstance(layer, Resize):
                net.set_submodule(name, layer.folded())
    program = torch.onnx.export(
        net,
        (line,),
        dynamo=True,
        input_names=["line"],
        output_names=["sketch"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None  # it is None for a file
    return program.model_proto


def _store_8bit(graph: Any, net: nn.Module, stored: dict[str, Tensor]) -> None:
    """Replaces weights of an onnx.GraphProto by 8 bits and by the nodes that make float32 of them.

    These nodes have only constants as inputs, so runtimes compute them once, when they load the file. DequantizeLinear
    is made for this, but runtimes keep it and compute it anew for each drawing.

    Args:
        stored: a result of `to_8bit`.
    """
    from onnx import TensorProto, helper, numpy_helper

    names = [name.removesuffix(SCALE) for name in stored if name.endswith(SCALE)]
    kept = [tensor for tensor in graph.initializer if tensor.name not in names]
    nodes = list(graph.node)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)

    def constant(name: str, tensor: Tensor) -> str:
        graph.initializer.append(numpy_helper.from_array(tensor.contiguous().numpy(), name))
        return name

    def node(operator: str, *inputs: str, output: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def scaled(name: str, weight: Tensor, scale: Tensor, output: str) -> str:
        wide = node("Cast", constant(f"{name}.8bit", weight), output=f"{name}.wide", to=TensorProto.FLOAT)
        return node("Mul", wide, constant(name + SCALE, scale), output=output)

    for name in names:
        weight, scale = stored[name], stored[name + SCALE]
        layer = net.get_submodule(name.removesuffix(".weight"))
        if not isinstance(layer, Resize):
            scaled(name, weight, scale, output=name)
            continue
        # As Resize does it: the 3 x 3 kernels, (in, out, 3 * 3), times `smear` are the 4 x 4 ones.
        weight, scale = (tensor.transpose(0, 1).flatten(2) for tensor in (weight, scale))
        small = scaled(name, weight, scale, output=f"{name}.3x3")
        flat = node("MatMul", small, constant(f"{name}.smear", layer.smear.cpu()), output=f"{name}.flat")
        shape = torch.tensor([layer.in_channels, layer.out_channels, 4, 4])
        node("Reshape", flat, constant(f"{name}.shape", shape), output=name)
    graph.node.extend(nodes)


def _lines(size: int, channels: int) -> Tensor:
    """The line drawings in launch/lines: float32 (n, C, size, size) in [-1, 1]."""
    files = next(found for home in fileio.homes("launch") if (found := sorted((home / "lines").glob("*.png"))))
    lines = [pixels.resize(pixels.from_image(read_image(file), channels), size, size) for file in files]
    return pixels.to_float(torch.stack(lines))


def _fastest(draw: Callable[[Tensor], Tensor], line: Tensor) -> float:
    """The shortest time of a drawing, in seconds."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        draw(line)
        times.append(time.perf_counter() - start)
    return min(times)
