"""What a new run begins with: the networks of another run or of an export (`init_from`)."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dist_sketch.core import fileio
from dist_sketch.core.config import Config, items
from dist_sketch.core.errors import UserError
from dist_sketch.core.ranks import Ranks
from dist_sketch.model import from_hub, networks
from dist_sketch.model.pretrained import SketchGenerator, find_weights, located, weights_file
from dist_sketch.model.weights import check_weights, load_weights

# Settings that decide what weights mean. Tensors of equal shapes are not enough: those of norm = 'group' also fit into
# norm = 'instance', and would draw something else.
WITHOUT_WEIGHTS = ("generator.dropout", "generator.ema")
NETWORKS = ("norm", "data.channels", *(key for key, _ in items(Config()) if key.startswith(("generator.", "discr"))))
OF_D = tuple(key for key in NETWORKS if key.startswith("discr"))
OF_G = tuple(key for key in NETWORKS if key not in (*OF_D, *WITHOUT_WEIGHTS))
NEW = ("generator.enhance",)  # a part that may be new: with it the generator begins with its old drawing, enlarged


class Found(NamedTuple):
    """Another run's networks, and the facts about them for config.json."""

    drawing: dict[str, Tensor]  # the generator's weights
    judging: Path | None  # file of the discriminator's weights
    facts: dict[str, Any]


def anywhere(source: Path | None) -> Path | None:
    """An absolute path; but the name of a generator that comes with dist_sketch stays a name."""
    return source if source is None or located(source) != source else source.resolve()


def check(config: Config) -> dict[str, Any]:
    """The facts about what `config` begins with; none if it begins with new networks.

    Raises:
        UserError: there is no such run or export, it is damaged, or its networks are others than those of `config`.
    """
    return _find(config, config.init_from).facts if config.init_from else {}


def begin(config: Config, modules: dict[str, nn.Module], ranks: Ranks) -> dict[str, Any]:
    """Loads what `config` begins with into new networks, on all ranks alike; only rank 0 reads.

    Args:
        modules: as `Step.modules` gives them. The moving average begins as the generator.

    Returns:
        The facts, as `check` does.

    Raises:
        UserError: as `check`.
    """
    source = config.init_from
    if source is None:
        return {}

    def load() -> dict[str, Any]:
        found = _find(config, source)
        for name in modules.keys() & {"generator", "ema"}:
            modules[name].load_state_dict(modules[name].state_dict() | found.drawing)
        if found.judging:
            load_weights(found.judging, modules["discriminator"])
        about = found.facts["began_with"][0]
        print(f"begins with the {about['networks']} of {source}, step {about['step']}")
        return found.facts

    facts = ranks.main_decides(load)
    for module in modules.values():
        ranks.same_weights(module)
    return facts


def _find(config: Config, source: Path) -> Found:
    folder = located(source)
    weights, step = find_weights(folder)
    model = SketchGenerator.load(folder, (weights, step))
    judging = weights / "discriminator.safetensors"  # an export has none
    has_d = judging.is_file()
    _same_networks(source, model.config, config, OF_G + OF_D if has_d else OF_G)
    if has_d:
        with torch.device("meta"):
            check_weights(judging, networks.discriminator(config))
    theirs = model.saved["facts"]
    about = {
        "name": source.as_posix() if from_hub.is_name(source) else folder.resolve().name,
        "step": str(step),
        "weights_sha256": fileio.sha256(weights_file(weights)),
        "networks": "generator" + " and discriminator" * has_d,
        "data": theirs.get("data") or "a data set without a name",
        "license": theirs.get("license") or "not stated",
    }
    facts = {"began_with": [about, *theirs.get("began_with", [])]}
    return Found(model.net.state_dict(), judging if has_d else None, facts)


def _same_networks(source: Path, theirs: Config, mine: Config, keys: tuple[str, ...]) -> None:
    there, here = dict(items(theirs)), dict(items(mine))
    others = [key for key in keys if there[key] != here[key] and (there[key] or key not in NEW)]
    if others:
        told = ", ".join(f"{key} is {there[key]!r} there and {here[key]!r} here" for key in others)
        options = " ".join(f"--{key} {there[key]}" for key in others)
        without = (
            "; or begin with its generator alone: `dist-sketch checkpoint export`" if set(others) <= {*OF_D} else ""
        )
        raise UserError(f"init_from = {source}: has other networks: {told}; give {options}{without}")
