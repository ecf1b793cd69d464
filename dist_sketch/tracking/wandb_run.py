"""Weights & Biases, all of it: a log that may be lost, but that never costs a run more than its timeout.

Every call is made in a thread that is waited for no longer than `track.timeout_s`. What fails or hangs switches the log
off, and ends W&B's own process, for which ours would wait at its end.
"""

import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dist_sketch.core.config import TrackConfig

STEP_AXIS = "images"  # seen by the networks so far: comparable between batch sizes


MOST_PICTURES = 32  # of a run


MOST_ROWS = 16  # of a table


FLUSH_S = 2.0  # after which W&B's files hold what was logged, for `wandb leet` and for a leg that is killed


FOLDER = "wandb"  # in a run's folder


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """Something that one job makes and another uses."""

    kind: Literal["dataset", "model"]
    name: str
    sha256: str
    path: Path | None = None
    """A file to refer to (dataset) or a folder to upload (model); None: it is known by its name alone."""

    def about(self) -> dict[str, str]:
        """For a configuration."""
        return {"name": self.name, "sha256": self.sha256}

    def to_wandb(self, wandb: Any) -> Any:
        """W&B's artifact, not yet logged."""
        assert self.path is not None
        artifact = wandb.Artifact(self.name, type=self.kind, metadata={"sha256": self.sha256})
        if self.kind == "dataset":
            artifact.add_reference(self.path.resolve().as_uri())  # no copy
        else:
            artifact.add_dir(str(self.path))
        return artifact


def dataset(shards: Path, sha256: str) -> Artifact:
    """Packed shards, as their manifest pins them."""
    return Artifact(kind="dataset", name=f"shards-{sha256[:12]}", sha256=sha256, path=shards / "manifest.json")


def model(run_id: str, sha256: str, path: Path | None = None) -> Artifact:
    """A run's generator: `sha256` of its weights' file, exported to the folder `path`."""
    return Artifact(kind="model", name=f"generator-{run_id}", sha256=sha256, path=path)


class WandbRun:
    """One W&B run; `folder`/wandb holds its files. If tracking is off, or has failed, every method does nothing.

    Args:
        job: train, infer or pack.
        run_id: the same for all legs of a run.
        settings: what stands in the run's configuration.
        uses: what the run is made from. Their names and hashes stand in the configuration; online they are W&B's
            artifacts, too, so that it draws lines between the runs (offline it has none).
    """

    def __init__(
        self,
        folder: Path,
        track: TrackConfig,
        *,
        job: str,
        run_id: str,
        settings: dict[str, Any],
        uses: Sequence[Artifact] = (),
    ):
        self._timeout_s, self._uses = track.timeout_s, uses
        self._deadline: float | None = None
        self._gave_up = False
        self._run: Any = None
        self.is_online = False  # whether it goes to a server at once
        if is_off(track):
            return
        # W&B's telemetry: it would hold up the end of our process by ten seconds where its server does not answer.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")  # what the user must know, we say
        # Where a table's pictures wait until they are sent; W&B's default is the home folder.
        os.environ.setdefault("WANDB_DATA_DIR", str(folder.resolve() / FOLDER))
        try:
            import wandb  # takes its second outside of the timeout: it asks nobody
        except Exception as e:
            self._give_up(_short(e))
            return
        self._wandb = wandb
        settings = settings | ({"uses": {a.kind: a.about() for a in uses}} if uses else {})
        started = self._harmless(lambda: _start(wandb, folder, track, job, run_id, settings))
        if started is not None:
            self._run, self.is_online = started

    @property
    def is_on(self) -> bool:
        """Whether anything is logged."""
        return self._run is not None

    def log(self, values: dict[str, Any], step: int) -> None:
        """Numbers and words of a step."""
        self._call(lambda run: run.log(values, step=step))

    def picture(self, name: str, step: int, images: int, path: Path) -> None:
        """A picture that lies on disk."""
        self._call(lambda run: run.log({name: self._wandb.Image(str(path)), STEP_AXIS: images}, step=step), "picture")

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table of at most MOST_ROWS rows; a path, or an array uint8 (H, W[, 3]), is a picture."""

        def cell(value: Any) -> Any:
            if isinstance(value, Path):
                return self._wandb.Image(str(value))
            return self._wandb.Image(value) if hasattr(value, "shape") else value

        def send(run: Any) -> None:
            cells = [[cell(value) for value in row] for row in rows[:MOST_ROWS]]
            run.log({name: self._wandb.Table(columns=list(columns), data=cells)})

        self._call(send, "table")

    def summary(self, values: dict[str, Any]) -> None:
        """What stands of the run when it is over."""
        self._call(lambda run: run.summary.update(values))

    def made(self, artifact: Artifact) -> None:
        """What has come out of the run."""
        about = {artifact.kind: artifact.about()}
        self._call(lambda run: run.config.update({"made": about}, allow_val_change=True))
        if self.is_online:
            self._call(lambda run: run.log_artifact(artifact.to_wandb(self._wandb)), f"artifact {artifact.name}")

    def closing(self) -> None:
        """From here on all calls together get the timeout: the run is done and waits for nothing but this."""
        self._deadline = self._deadline or time.monotonic() + self._timeout_s

    def finish(self, exit_code: int = 0) -> None:
        """Ends the W&B run; what is not sent within the timeout stays in its files."""
        self.closing()
        for artifact in self._uses if self.is_online else ():
            self._call(partial(_use, wandb=self._wandb, artifact=artifact), f"artifact {artifact.name}")

        def end(run: Any) -> None:
            run.finish(exit_code=exit_code)
            self._wandb.teardown()

        if self._run is not None:
            self._call(end)
            self._run = None
            _end_service()

    def _call(self, call: Callable[[Any], Any], optional: str = "") -> None:
        if (run := self._run) is not None:
            self._harmless(lambda: call(run), optional)

    def _harmless(self, call: Callable[[], Any], optional: str = "") -> Any:
        """What `call` returns; None, and a warning, if it fails. Without `optional` that is the log's end."""
        result: list[Any] = []
        error: list[BaseException] = []

        def work() -> None:
            try:
                result.append(call())
            except BaseException as e:  # W&B may even raise SystemExit
                error.append(e)
            if self._gave_up:  # too late: whatever has been begun meanwhile ends here
                _end_service()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        left_s = self._timeout_s if self._deadline is None else max(0.1, self._deadline - time.monotonic())
        thread.join(left_s)
        if thread.is_alive():
            self._give_up(f"no answer within {self._timeout_s:g} s")
            return None
        if error and optional:
            print(f"warning: W&B did not take the {optional} ({_short(error[0])})")
        elif error:
            self._give_up(_short(error[0]))
        return result[0] if result else None

    def _give_up(self, why: str) -> None:
        print(f"warning: W&B is switched off for this run ({why}); nothing else is lost")
        self._run, self._gave_up = None, True
        _end_service()


def is_off(track: TrackConfig) -> bool:
    """Whether the user wants no W&B at all."""
    return track.wandb == "off" or os.environ.get("WANDB_MODE") == "disabled"


def _start(
    wandb: Any, folder: Path, track: TrackConfig, job: str, run_id: str, settings: dict[str, Any]
) -> tuple[Any, bool]:
    """Begins a run: online (True) if that is wanted and the server takes it in half of the time, else offline."""

    def begin(mode: str) -> Any:
        run = wandb.init(
            project=track.project,
            group=track.group or None,
            name=track.name or folder.resolve().name,
            job_type=job,
            id=run_id,
            resume="allow" if mode == "online" else None,
            dir=str(folder),
            mode=mode,
            config=settings,
            settings=wandb.Settings(
                silent=True,
                console="off",
                use_dot_wandb=False,
                allow_val_change=True,  # a later leg may have more epochs or other ranks
                init_timeout=track.timeout_s / 2,
                x_service_wait=track.timeout_s,
                x_transaction_log_flush_interval=FLUSH_S,
                finish_timeout=0.8 * track.timeout_s,
                finish_timeout_raises=True,
            ),
        )
        _leave_imports_alone()
        run.define_metric(STEP_AXIS, hidden=True)
        run.define_metric("*", step_metric=STEP_AXIS)
        return run

    if wants_online(track, wandb):
        try:
            run = begin("online")
            print(f"W&B: {run.url}")
            return run, True
        except Exception as e:
            print(f"warning: W&B is not reached ({_short(e)}); it logs offline, for `dist-sketch sync {folder}`")
            with suppress(Exception):
                wandb.teardown()  # its process holds the id
    return begin("offline"), False


def wants_online(track: TrackConfig, wandb: Any) -> bool:
    """Whether a run shall be sent at once; asks neither the network nor the terminal."""
    if track.wandb == "offline" or (track.wandb == "auto" and os.environ.get("WANDB_MODE") in ("offline", "dryrun")):
        return False
    if logged_in(wandb):
        return True
    if track.wandb == "online":
        print("warning: W&B knows no account here (`wandb login`, or WANDB_API_KEY); it logs offline")
    return False


def logged_in(wandb: Any) -> bool:
    """Whether W&B finds a key for its server: in the environment, a netrc file, its settings."""
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    try:
        host = wandb_setup.singleton().settings.base_url
        found = wbauth.authenticate_session(host=host, source="dist-sketch", prompt=False, update_session=False)
    except wandb.Error:  # a key that cannot be one
        return False
    return found is not None


def _use(run: Any, wandb: Any, artifact: Artifact) -> None:
    run.use_artifact(artifact.to_wandb(wandb) if artifact.path else f"{artifact.name}:latest", type=artifact.kind)


def _short(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _leave_imports_alone() -> None:
    """W&B counts which packages are imported; once its process is gone, our own imports would fail in that."""
    with suppress(Exception):
        from wandb.sdk.lib import import_hooks

        import_hooks.unregister_all_post_import_hooks()


def _hush_threads() -> None:
    """W&B's own threads may fail without a word when its process is gone: that it is off has been said."""
    before = threading.excepthook
    if before.__module__ == __name__:
        return

    def hook(failed: threading.ExceptHookArgs) -> None:
        if failed.thread is None or not failed.thread.name.startswith("wandb"):
            before(failed)

    threading.excepthook = hook


def _end_service() -> None:
    """Ends W&B's own process if it still runs: whatever it is stuck in, our process would wait for it at its end."""
    _leave_imports_alone()
    with suppress(Exception):  # W&B's private parts, which another version may not have
        connection = sys.modules["wandb.sdk.wandb_setup"]._singleton._connection
        _hush_threads()
        connection._cleanup()
        connection._proc._process.kill()


@contextmanager
def job(
    folder: Path,
    track: TrackConfig,
    *,
    kind: str,
    settings: dict[str, Any],
    uses: Sequence[Artifact] = (),
    is_main: bool = True,
    again: bool = False,
) -> Iterator[WandbRun]:
    """The log of a job that has no legs; it is finished when the block is left, however that happens.

    Args:
        is_main: whether this is the rank that logs.
        again: go on with the newest run that lies in `folder`, if there is one.
    """
    earlier = fragments(folder) if again else []
    run_id = earlier[-1].run_id if earlier else new_id()
    log = WandbRun(
        folder, track if is_main else TrackConfig(wandb="off"), job=kind, run_id=run_id, settings=settings, uses=uses
    )
    try:
        yield log
    except BaseException:
        log.finish(exit_code=1)
        raise
    log.finish()


def new_id() -> str:
    """An id for a W&B run."""
    return secrets.token_hex(4)


def is_shown(nth: int, count: int) -> bool:
    """Whether the `nth` of `count` pictures of a run is sent: MOST_PICTURES at most, evenly, the last one always."""
    return nth == count or nth % -(-count // (MOST_PICTURES - 1)) == 0


class Fragment(NamedTuple):
    """What one leg has left of a W&B run; in the order in which they were begun."""

    began: str  # local time, to the second
    number: int  # of those that began within that second
    run_id: str
    online: bool
    folder: Path


def fragments(run: Path) -> list[Fragment]:
    """What lies in RUN/wandb, oldest first. W&B names a second fragment of one second ...-ID-1, a third ...-ID-2."""
    found = []
    for folder in (run / FOLDER).glob("*run-*"):
        if match := re.fullmatch(r"(offline-)?run-(\d{8}_\d{6})-([^-]+)(?:-(\d+))?", folder.name):
            offline, began, run_id, number = match.groups()
            found.append(Fragment(began, int(number or 0), run_id, not offline, folder))
    return sorted(found)
