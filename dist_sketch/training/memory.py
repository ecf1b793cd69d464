"""What the user can do when a training does not fit into memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dist_sketch.core.config import Config
from dist_sketch.core.errors import UserError


@contextmanager
def enough_memory(config: Config) -> Iterator[None]:
    """Tells what to change when the memory of the GPU, or that of this process, is too small for what the block does.

    Raises:
        UserError: it was too small.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as e:
        on_gpu = isinstance(e, torch.OutOfMemoryError)
        if not on_gpu and not isinstance(e, MemoryError) and "DefaultCPUAllocator" not in str(e):
            raise
        raise UserError(
            f"data.batch_size = {config.data.batch_size}, generator.width = {config.generator.width}: the memory of "
            f"{'the GPU' if on_gpu else 'this process'} is too small for a training step; use a smaller batch, more "
            "ranks, or a larger train.accumulate, which splits each rank's share"
        ) from e
