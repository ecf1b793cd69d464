"""What launchers leave in the environment: this process's rank, and settings that the ranks cannot work with."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dist_sketch.core.errors import SharedError

# Only all of them together make a process one of several
PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
MOST = 1_000_000  # of anything that is counted here
NUMBERS = {  # least and most
    **dict.fromkeys(("RANK", "LOCAL_RANK"), (0, MOST)),
    **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "DIST_SKETCH_RANKS"), (1, MOST)),
    **dict.fromkeys(("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"), (1, MOST)),
    "MASTER_PORT": (0, 65535),
}
OTHER_WAYS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}


def rank() -> int:
    """This process's number among its peers; 0 if the environment makes it no member of a group, see `check`."""
    found, count = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if not all(map(os.environ.get, PLACE)) or not _is_number(found) or not _is_number(count):
        return 0
    return int(found) if int(found) < int(count) else 0


def number(name: str, default: int = 1) -> int:
    """The value of one of `NUMBERS`, which launchers and SLURM set; `default` if it is missing or empty.

    Raises:
        SharedError: it is not a number, or one that cannot be.
    """
    found, (least, most) = os.environ.get(name) or str(default), NUMBERS[name]
    if not _is_number(found) or not least <= int(found) <= most:
        why = f"must be {least} to {most}" if _is_number(found) else "is not a number"
        raise SharedError(f"{name}={found}: {why}; a launcher sets this variable; if it is a leftover: unset {name}")
    return int(found)


def check() -> None:
    """Refuses an environment in which processes cannot find each other, or would train in another way than asked.

    Raises:
        SharedError: names the variable.
    """
    env = os.environ
    for name in NUMBERS:
        number(name)
    for name, way in OTHER_WAYS.items():
        if env.get(name, "").lower() in ("1", "true", "yes", "on"):
            raise SharedError(
                f"{name}={env[name]}: the launcher's configuration asks for {way}, but here each rank holds the whole "
                "networks; use `accelerate launch --multi_gpu ...` or --config_file launch/node8.yaml; if it is a "
                f"leftover: unset {name}"
            )
    if env.get("LOCAL_RANK") is None:
        return  # one process, or `expectations` finds out what is missing
    present = [name for name in PLACE if env.get(name)]
    missing = [name for name in PLACE if name not in present]
    if missing:
        raise SharedError(
            f"the environment has {', '.join(present) or 'an empty LOCAL_RANK'}, but no {', '.join(missing)}: start "
            "several processes with `accelerate launch`, which sets all of them; if they are leftovers: "
            f"unset {' '.join(name for name in PLACE if name in env)}"
        )
    if number("RANK") >= number("WORLD_SIZE"):
        raise SharedError(
            f"RANK={env['RANK']} with WORLD_SIZE={env['WORLD_SIZE']}: ranks count from 0; if they are leftovers: "
            f"unset {' '.join(present)}"
        )


def settings() -> str:
    """The variables that accelerate reads, for a message about them."""
    names = (name for name in os.environ if name in PLACE or name.startswith(("ACCELERATE_", "FSDP_")))
    return ", ".join(f"{name}={os.environ[name]}" for name in sorted(names))


def asked_of_accelerate() -> int | None:
    """How many processes `accelerate launch` was told to start, if it has started this process alone; else None.

    With --cpu it starts one process, whatever its --num_processes says, and leaves no word of that in the environment.
    """
    if os.environ.get("WORLD_SIZE") or "ACCELERATE_USE_CPU" not in os.environ:
        return None
    for words in _ancestors():
        begin = _after_launch(words)
        if begin is None:
            continue
        # Only here: they take a second to import, and mostly there is no launcher.
        from accelerate.commands.config.config_args import default_config_file, load_config_from_file
        from accelerate.commands.launch import launch_command_parser

        try:
            told = launch_command_parser().parse_args(words[begin:])
            count = told.num_processes
            if count is None and (told.config_file or (not told.cpu and Path(default_config_file).is_file())):
                count = load_config_from_file(told.config_file).num_processes
        except (Exception, SystemExit):  # it is not the launcher's command line after all
            return None
        return int(count or 1)
    return None


def _ancestors() -> Iterator[list[str]]:
    """The command lines of this process's parent, of its parent, and so on; only Linux tells them."""
    pid = os.getppid()
    with suppress(OSError):
        while pid:
            process = Path(f"/proc/{pid}")
            yield (process / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            pid = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])


def _after_launch(words: list[str]) -> int | None:
    """Where the arguments of `accelerate launch` begin in a command line; None if it is another program's."""
    for i, word in enumerate(words[:5]):
        name = Path(word).name
        if name in ("accelerate-launch", "accelerate.commands.launch") or word.endswith("/commands/launch.py"):
            return i + 1
        if name in ("accelerate", "accelerate.commands.accelerate_cli", "accelerate_cli.py"):
            return i + 2 if words[i + 1 : i + 2] == ["launch"] else None
    return None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20
