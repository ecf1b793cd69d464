"""What a run says of itself: `metrics.jsonl` (the truth), `status.json`, the console and W&B (which can never hurt)."""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from dist_sketch.config import Track
from dist_sketch.errors import UserError
from dist_sketch.fileio import finite, write_atomic, write_json


class Tracker:
    """Rank 0's log of a run. On the other ranks every method does nothing.

    Args:
        run: the run's folder; `metrics.jsonl` there is cut back to `step`, the checkpoint that the run resumes from.
        run_id: one W&B id for all legs of a run.
        settings: everything resolved, for W&B's configuration.
    """

    def __init__(
        self, run: Path, track: Track, *, job: str, run_id: str, step: int, settings: dict[str, Any], is_main: bool
    ):
        self.run, self.is_main = run, is_main
        self._wandb: Any = None
        self._timeout_s = track.timeout_s
        if not is_main:
            return
        self._path = run / "metrics.jsonl"
        _cut_back(self._path, step)
        if track.wandb != "off":
            self._wandb = self._harmless(lambda: _start_wandb(run, track, job, run_id, settings))

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Appends one line {"kind", "step", "time", **values} and sends its numbers to W&B."""
        if not self.is_main:
            return
        line = finite({"kind": kind, "step": step, "time": round(time.time(), 3), **values})
        try:
            with open(self._path, "a", encoding="utf-8") as f:
                f.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as e:
            raise UserError(f"{self._path}: cannot be written ({e.strerror})") from e
        numbers = {k: v for k, v in line.items() if "/" in k and isinstance(v, int | float)}
        if self._wandb is not None and numbers:
            self._harmless(lambda: self._wandb.log({**numbers, "images": line.get("images")}, step=step))

    def picture(self, name: str, step: int, path: Path) -> None:
        """Sends a picture that lies on disk to W&B."""
        if self._wandb is not None:
            import wandb

            self._harmless(lambda: self._wandb.log({name: wandb.Image(str(path))}, step=step))

    def status(self, **values: Any) -> None:
        """Writes `status.json`: the state of the run for scripts and schedulers."""
        if self.is_main:
            write_json(self.run / "status.json", {**values, "time": round(time.time(), 3)})

    def close(self, exit_code: int = 0) -> None:
        """Finishes the W&B run; waits at most the configured timeout."""
        if self._wandb is not None:
            run, self._wandb = self._wandb, None
            self._harmless(lambda: run.finish(exit_code=exit_code))

    def _harmless(self, call: Callable[[], Any]) -> Any:
        """Runs a W&B call in a thread: an error or a hang costs W&B's log, never the run."""
        result: list[Any] = []
        error: list[BaseException] = []

        def work() -> None:
            try:
                result.append(call())
            except BaseException as e:  # wandb may even raise SystemExit
                error.append(e)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(self._timeout_s)
        if thread.is_alive() or error:
            why = f"{type(error[0]).__name__}: {error[0]}" if error else f"no answer within {self._timeout_s:g} s"
            print(f"warning: W&B is switched off for this run ({why}); metrics.jsonl goes on")
            self._wandb = None
        return result[0] if result else None


def _start_wandb(run: Path, track: Track, job: str, run_id: str, settings: dict[str, Any]) -> Any:
    import wandb

    online = track.wandb == "online" or (track.wandb == "auto" and _logged_in())
    return wandb.init(
        project=track.project,
        group=track.group or None,
        name=track.name or run.resolve().name,
        job_type=job,
        id=run_id,
        resume="allow" if online else None,
        dir=str(run),
        mode="online" if online else "offline",
        config=settings,
        settings=wandb.Settings(silent=True, init_timeout=track.timeout_s, console="off"),
    )


def _logged_in() -> bool:
    """Whether W&B would find a key, without asking the network or the terminal."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc

    try:
        file = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    return file.authenticators(host or "") is not None


def _cut_back(path: Path, step: int) -> None:
    """Drops lines after `step` and a last line cut short: they will be written again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):  # not splitlines: U+2028 is text
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    write_atomic(path, "".join(line + "\n" for line in kept))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl` in order of their steps; none if the file is gone.

    Of two records of a step, as a killed run may leave, the later wins; torn lines are left out.
    """
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return []
    records: dict[tuple[str, int], dict[str, Any]] = {}
    for line in lines:
        try:
            record = json.loads(line)
            records[record["kind"], int(record["step"])] = record
        except (ValueError, KeyError, TypeError):
            continue
    return sorted(records.values(), key=lambda r: r["step"])


def memory_mb(device: torch.device) -> float:
    """On a GPU, the most that tensors have taken there; else what this process has in memory now (Linux; else 0)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def versions() -> dict[str, str]:
    """Versions of the packages that decide what is computed."""
    from importlib.metadata import version

    names = ("dist-sketch", "torch", "torchvision", "accelerate", "webdataset", "pillow", "scikit-image")
    return {n: version(n) for n in names} | {"cuda": torch.version.cuda or ""}
