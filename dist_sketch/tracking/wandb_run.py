"""Weights & Biases: a log that may be lost, but never costs a run more than `track.timeout_s` at its start and its end.

One daemon thread makes all calls to W&B, in order; the training only queues them. A call that fails or hangs switches
the log off and kills W&B's own process, which our process would otherwise wait for at its exit.
"""

import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple

from dist_sketch.core.config import TrackConfig
from dist_sketch.core.places import Address, Place

FOLDER = "wandb"  # in a run's folder
STEP_AXIS = "images"  # x axis of all plots: the number of images seen so far is comparable between batch sizes
MOST_PICTURES = 32  # per run
MOST_ROWS = 16  # per table
FLUSH_S = 2.0  # how far W&B's files may lag behind, for `wandb leet` and for a run that is killed


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """Something that one job makes and another uses."""

    kind: Literal["dataset", "model"]
    name: str
    sha256: str
    path: Place | None = None
    """A file to refer to (dataset) or a folder to upload (model); None: W&B already has it under its name."""

    def about(self) -> dict[str, str]:
        """The entry in a run's configuration."""
        return {"name": self.name, "sha256": self.sha256}

    def to_wandb(self, wandb: Any) -> Any:
        """A W&B artifact that is not logged yet, or the name of one that is."""
        if self.path is None:
            return f"{self.name}:latest"
        about = {"sha256": self.sha256}
        if isinstance(self.path, Address):  # a reference would need the store's own packages, and ask the store
            return wandb.Artifact(self.name, type=self.kind, metadata=about | {"address": str(self.path)})
        artifact = wandb.Artifact(self.name, type=self.kind, metadata=about)
        if self.kind == "dataset":
            artifact.add_reference(self.path.resolve().as_uri())  # no copy
        else:
            artifact.add_dir(str(self.path))
        return artifact


def dataset(shards: Place, sha256: str) -> Artifact:
    """Packed shards, identified by the hash of their manifest."""
    return Artifact(kind="dataset", name=f"shards-{sha256[:12]}", sha256=sha256, path=shards / "manifest.json")


MODES = ("online", "offline", "shared", "disabled", "dryrun", "run")


def odd_mode() -> str | None:
    """What is wrong with WANDB_MODE: a sentence; None if it is not set, or right."""
    mode = os.environ.get("WANDB_MODE")
    return f"WANDB_MODE={mode}: must be one of {', '.join(MODES)}" if mode and mode not in MODES else None


class WandbRun:
    """One W&B run; its files are in `folder`/wandb. If tracking is off or has failed, every method does nothing.

    As a context manager it is finished when the block is left, however that happens.

    Args:
        job: train, infer or pack.
        run_id: one id for all attempts of a run.
        settings: the run's configuration in W&B.
        uses: what the run is made from. Names and hashes go into the configuration; online they are linked as W&B's
            artifacts, too, so that W&B shows which run used what another made (offline it has no artifacts).
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
        self.is_online = False  # whether W&B's server gets the log now, not only with `dist-sketch sync`
        self._timeout_s, self._uses = track.timeout_s, uses
        self._run: Any = None
        self._gave_up = False
        self._deadline: float | None = None
        self._busy_since = float("inf")  # when the running call began
        self._calls: SimpleQueue[tuple[Callable[[], Any], str] | None] = SimpleQueue()
        if is_off(track):
            return
        # W&B's error reports: they delay the exit by ten seconds if the server for them does not answer.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")  # we print what the user must know
        # Where pictures of tables wait to be sent; W&B's default is the home folder.
        os.environ.setdefault("WANDB_DATA_DIR", str(folder.resolve() / FOLDER))
        if odd := odd_mode():
            self._give_up(odd)
            return
        try:
            self._wandb = _package()  # takes a second or more that the timeout does not count, but contacts nobody
        except Exception as e:
            self._give_up(_short(e))
            return
        if uses:
            settings = settings | {"uses": {a.kind: a.about() for a in uses}}

        def start() -> None:
            self._run, self.is_online = _start(folder, track, job, run_id, settings)

        threading.Thread(target=self._work, daemon=True).start()
        self._calls.put((start, ""))
        self._wait()
        self._deadline = None

    @property
    def is_on(self) -> bool:
        """Whether anything is logged."""
        return self._run is not None

    def __enter__(self) -> "WandbRun":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.finish(exit_code=int(kind is not None))

    def log(self, values: dict[str, Any], step: int) -> None:
        """Logs numbers and texts of a step."""
        self._call(lambda: self._run.log(values, step=step))

    def picture(self, name: str, step: int, images: int, path: Path) -> None:
        """Logs an image file; `images` is its place on the STEP_AXIS."""
        self._call(lambda: self._run.log({name: self._wandb.Image(str(path)), STEP_AXIS: images}, step=step), "picture")

    def table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int | None = None, images: int = 0
    ) -> None:
        """Logs the first MOST_ROWS rows of a table; an array in a cell, uint8 (H, W[, 3]), is shown as an image.

        Tables of one name and several steps become one with a slider. `images` is then its place on the STEP_AXIS.
        """

        def send() -> None:
            image = self._wandb.Image
            cells = [[image(v) if hasattr(v, "shape") else v for v in row] for row in rows[:MOST_ROWS]]
            axis = {} if step is None else {STEP_AXIS: images}
            self._run.log({name: self._wandb.Table(columns=list(columns), data=cells), **axis}, step=step)

        self._call(send, "table")

    def summary(self, values: dict[str, Any]) -> None:
        """Sets values of the whole run."""
        self._call(lambda: self._run.summary.update(values))

    def preempting(self) -> None:
        """Says that a scheduler is about to end this attempt, so that W&B does not call the run crashed."""
        self._call(lambda: self._run.mark_preempting(), "mark that the run is preempted")

    def alert(self, title: str, text: str) -> None:
        """Sends the user a message by e-mail or Slack, as their W&B settings say."""
        self._call(lambda: self._run.alert(title=title, text=text, level="ERROR"), "alert")

    def made(self, artifact: Artifact) -> None:
        """Logs the result of the run, which is about to end; `artifact.path` may be removed afterwards."""
        if not self.is_on:
            return
        about = {"made": {artifact.kind: artifact.about()}}
        self._call(lambda: self._run.config.update(about, allow_val_change=True))
        if self.is_online:
            self._call(lambda: self._run.log_artifact(artifact.to_wandb(self._wandb)), f"artifact {artifact.name}")
        self._wait()

    def finish(self, exit_code: int = 0) -> None:
        """Ends the run; what W&B could not send within the timeout stays in its files."""
        if not self.is_on:
            return

        def use(artifact: Artifact) -> None:
            self._run.use_artifact(artifact.to_wandb(self._wandb), type=artifact.kind)

        def end() -> None:
            self._run.finish(exit_code=exit_code)
            self._wandb.teardown()

        for artifact in self._uses if self.is_online else ():
            self._call(partial(use, artifact), f"artifact {artifact.name}")
        self._call(end)
        self._wait()
        self._run = None
        self._calls.put(None)

    def _call(self, call: Callable[[], Any], optional: str = "") -> None:
        """Queues a call; its failure switches the log off, unless `optional` names what is lost by it."""
        if self.is_on and time.monotonic() - self._busy_since > self._timeout_s:
            self._give_up(f"no answer within {self._timeout_s:g} s")
        if self.is_on:
            self._calls.put((call, optional))

    def _wait(self) -> None:
        """Waits for all calls so far; at the end of a run all waiting shares one timeout."""
        done = threading.Event()
        self._calls.put((done.set, ""))
        self._deadline = self._deadline or time.monotonic() + self._timeout_s
        if not done.wait(max(0.1, self._deadline - time.monotonic())):
            self._give_up(f"no answer within {self._timeout_s:g} s")

    def _work(self) -> None:
        """The thread that makes the calls."""
        for call, optional in iter(self._calls.get, None):
            self._busy_since = time.monotonic()
            try:
                call()
            except BaseException as e:  # W&B may even raise SystemExit
                if not optional:
                    self._give_up(_short(e))
                elif not self._gave_up:
                    print(f"warning: W&B did not take the {optional} ({_short(e)})")
            self._busy_since = float("inf")
            if self._gave_up:  # a call that ended too late may have started a run
                self._run = None
                _kill_service()

    def _give_up(self, why: str) -> None:
        if not self._gave_up:
            self._run, self._gave_up = None, True
            print(f"warning: W&B is switched off for this run ({why}); nothing else is lost")
            self._calls.put(None)
            _kill_service()


def _package() -> Any:
    """The package wandb, made deaf to ./wandb/settings.

    The folder that a command is started in may be somebody else's. This file would say to which server W&B sends the
    user's key, and through which proxy. Settings come from the environment and the user's own ~/.config/wandb.
    """
    import wandb

    # Private: no setting says where this file is; W&B reads it before anything else.
    wandb.Settings.settings_workspace = property(lambda _: os.devnull)
    return wandb


def on_request() -> TrackConfig:
    """The default of all jobs but training: one picture or a trial of `pack` is nothing that W&B should keep."""
    return TrackConfig(wandb="off")


def is_off(track: TrackConfig) -> bool:
    """Whether the user wants no W&B at all."""
    return track.wandb == "off" or os.environ.get("WANDB_MODE") == "disabled"


def _start(folder: Path, track: TrackConfig, job: str, run_id: str, settings: dict[str, Any]) -> tuple[Any, bool]:
    """Starts a run online (True) if that is wanted and the server answers within half of the timeout, else offline."""
    import wandb

    project, name = project_and_name(folder, track)

    def start(mode: Literal["online", "offline"]) -> Any:
        run = wandb.init(
            project=project,
            group=track.group or None,
            name=name,
            job_type=job,
            id=run_id,
            resume="allow" if mode == "online" else None,
            dir=str(folder),
            mode=mode,
            config=settings,
            settings=wandb.Settings(
                console="off",
                use_dot_wandb=False,  # a folder .wandb beside ours would get the files, and `sync` would not find them
                allow_val_change=True,  # a later attempt may have more epochs or another number of ranks
                init_timeout=track.timeout_s / 2,
                x_transaction_log_flush_interval=FLUSH_S,
                finish_timeout=0.8 * track.timeout_s,
                finish_timeout_raises=True,
            ),
        )
        # Private: no setting stops W&B from reporting imports, and imports would fail once its process is gone.
        with suppress(Exception):
            from wandb.sdk.lib import import_hooks

            import_hooks.unregister_all_post_import_hooks()
        run.define_metric(STEP_AXIS, hidden=True)
        run.define_metric("*", step_metric=STEP_AXIS)
        return run

    offline_by_default = track.wandb == "auto" and os.environ.get("WANDB_MODE") in ("offline", "dryrun")
    if track.wandb == "offline" or offline_by_default:
        return start("offline"), False
    if logged_in():
        try:
            run = start("online")
            print(f"W&B: {run.url}")
            return run, True
        except Exception as e:
            print(f"warning: W&B is not reached ({_short(e)}); it logs offline, for `dist-sketch sync {folder}`")
            with suppress(Exception):
                wandb.teardown()  # its process would refuse the same run id
    elif track.wandb == "online":
        print("warning: W&B knows no account here (`wandb login`, or WANDB_API_KEY); it logs offline")
    return start("offline"), False


def project_and_name(folder: Path, track: TrackConfig) -> tuple[str, str]:
    """W&B's names for a run: our defaults give way to W&B's variables, what the user has set for this run does not."""
    default = TrackConfig().project
    project = track.project if track.project != default else os.environ.get("WANDB_PROJECT") or default
    return project, track.name or os.environ.get("WANDB_NAME") or folder.resolve().name


def logged_in() -> bool:
    """Whether W&B finds a key for its server: in the environment, a netrc file or its settings."""
    _package()
    # Private: the public wandb.login() answers no where WANDB_MODE is offline, and rewrites the user's settings.
    from wandb import Error
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    try:
        host = wandb_setup.singleton().settings.base_url
        found = wbauth.authenticate_session(host=host, source="dist-sketch", prompt=False, update_session=False)
    except Error:  # the key has the wrong form
        return False
    return found is not None


def _short(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _kill_service() -> None:
    # Private: the public wandb.teardown(), like W&B's exit handler, waits for W&B's process even if that hangs.
    with suppress(Exception):
        connection = sys.modules["wandb.sdk.wandb_setup"]._singleton._connection
        connection._cleanup()  # removes the exit handler
        connection._proc._process.kill()
        connection._finalizer._queue.put(None)  # ends a thread that would print a traceback


def new_id() -> str:
    """An id for a W&B run."""
    return secrets.token_hex(4)


def is_shown(nth: int, count: int) -> bool:
    """Whether to send the `nth` of a run's `count` pictures: at most MOST_PICTURES, evenly spread, always the last."""
    return nth == count or nth % -(-count // (MOST_PICTURES - 1)) == 0


class Fragment(NamedTuple):
    """The files of one attempt of a W&B run; fragments sort by their start."""

    began: str  # local time, to the second
    number: int  # among those started in that second
    run_id: str
    online: bool
    folder: Path


def fragments(run: Path) -> list[Fragment]:
    """The fragments in RUN/wandb, oldest first. W&B names the second of one second ...-ID-1, the third ...-ID-2."""
    found = []
    for folder in (run / FOLDER).glob("*run-*"):
        if match := re.fullmatch(r"(offline-)?run-(\d{8}_\d{6})-([^-]+)(?:-(\d+))?", folder.name):
            offline, began, run_id, number = match.groups()
            found.append(Fragment(began, int(number or 0), run_id, not offline, folder))
    return sorted(found)
