import errno
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import sha256
from dist_sketch.core.ranks import Ranks
from dist_sketch.core.saved import read_best, sealed_weights
from dist_sketch.model import checkpoint
from dist_sketch.model.checkpoint import check, chosen, entries, find, load, save, step_of, table, verify
from dist_sketch.model.weights import load_weights


class Killed(BaseException):
    """The process ends here: no `except OSError` runs, no tidying."""


class Nets:
    """Two networks, their optimizer and a state like a run's; each step changes everything."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.g = nn.Sequential(nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last), nn.BatchNorm2d(4))
        self.d = nn.Linear(32, 24)
        self.optimizer = torch.optim.Adam([*self.g.parameters(), *self.d.parameters()], 0.1, fused=True)
        self.place: dict[str, Any] = {"step": 0, "sums": {"loss/g": 0.1}, "locked": "", "policy": {"mean": None}}

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"generator": self.g, "discriminator": self.d}

    def step(self) -> None:
        loss = self.g(torch.randn(2, 2, 5, 5)).square().sum() + self.d(torch.randn(32)).sum()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.place = {**self.place, "step": self.place["step"] + 1, "locked": "timer"}

    def save(self, run: Path, ranks: Any, keep: int = 3, best: int | None = None) -> Path:
        state = {"optimizer": self.optimizer.state_dict(), "place": self.place}
        save(run, self.place["step"], self.modules, state, ranks, keep, best)
        return run / f"checkpoints/step-{self.place['step']:08d}"

    def load(self, folder: Path, ranks: Any) -> None:
        state = load(folder, self.modules, ranks)
        self.optimizer.load_state_dict(state["optimizer"])
        self.place = state["place"]

    def everything(self) -> bytes:
        """All that must be the same bit for bit, torch's random state included."""
        tensors = [*self.g.state_dict().values(), *self.d.state_dict().values()]
        moments = [t for s in self.optimizer.state_dict()["state"].values() for t in s.values()]
        numbers = [t.detach().contiguous().numpy().tobytes() for t in (*tensors, *moments, torch.get_rng_state())]
        return b"".join(numbers) + repr(self.place).encode()


@pytest.fixture(scope="module")
def ranks() -> Ranks:
    return Ranks()


def fake_ranks(rank: int, world_size: int) -> Any:
    """One of several ranks whose peers have the random state of seed `peer`."""

    def gather(value: Any) -> list[Any]:
        return [
            value if r == rank else {"cpu": torch.Generator().manual_seed(r).get_state()} for r in range(world_size)
        ]

    return SimpleNamespace(
        rank=rank,
        world_size=world_size,
        is_main=rank == 0,
        device=torch.device("cpu"),
        gather_to_main=gather,
        main_decides=lambda function: function() if rank == 0 else None,
    )


@pytest.fixture
def saved(tmp_path: Path, ranks: Ranks) -> Path:
    """A run with checkpoints at steps 1, 2 and 3."""
    nets = Nets()
    for _ in range(3):
        nets.step()
        nets.save(tmp_path, ranks)
    return tmp_path


def folders(run: Path) -> list[str]:
    return sorted(p.name for p in (run / "checkpoints").iterdir())


def flip(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


# Round trip


def test_a_run_goes_on_bit_for_bit(tmp_path: Path, ranks: Ranks) -> None:
    straight = Nets()
    for _ in range(2):
        straight.step()
    folder = straight.save(tmp_path, ranks)
    saved = straight.everything()
    torch.rand(1)  # what comes after the saving must not matter
    for _ in range(3):
        straight.step()
    straight.load(folder, ranks)
    assert straight.everything() == saved
    for _ in range(3):
        straight.step()

    resumed = Nets()
    resumed.load(folder, ranks)
    assert resumed.everything() == saved
    for _ in range(3):
        resumed.step()
    assert resumed.everything() == straight.everything()


def test_saving_draws_no_random_number_and_changes_nothing(tmp_path: Path, ranks: Ranks) -> None:
    nets = Nets()
    nets.step()
    before = nets.everything()
    nets.save(tmp_path, ranks)
    assert nets.everything() == before


def test_what_a_checkpoint_is_made_of(tmp_path: Path, ranks: Ranks) -> None:
    nets = Nets()
    nets.step()
    folder = nets.save(tmp_path, ranks)
    files = {"generator.safetensors", "discriminator.safetensors", "state.pt", "rng.pt"}
    assert {p.name for p in folder.iterdir()} == files | {"checkpoint.json"}
    seal = json.loads((folder / "checkpoint.json").read_text())
    assert seal["step"] == step_of(folder) == 1
    assert {n: f["bytes"] for n, f in seal["files"].items()} == {n: (folder / n).stat().st_size for n in files}
    assert folders(tmp_path) == ["step-00000001"]


def test_equal_weights_are_equal_bytes_in_any_memory_format(tmp_path: Path, ranks: Ranks) -> None:
    nets = Nets()
    one = nets.save(tmp_path / "one", ranks)
    nets.g.to(memory_format=torch.contiguous_format)
    other = nets.save(tmp_path / "other", ranks)
    assert (one / "generator.safetensors").read_bytes() == (other / "generator.safetensors").read_bytes()


# Ranks


def test_each_rank_gets_its_own_random_numbers_back(tmp_path: Path) -> None:
    nets = Nets()
    torch.manual_seed(0)  # the state of rank 0; the others' are those of seeds 1 and 2
    folder = nets.save(tmp_path, fake_ranks(0, 3))
    for rank in range(3):
        Nets().load(folder, fake_ranks(rank, 3))
        expected = torch.rand(4, generator=torch.Generator().manual_seed(rank))
        assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(("was", "now"), [(1, 2), (2, 1), (4, 2)])
def test_another_number_of_ranks_keeps_all_but_the_random_numbers_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], was: int, now: int
) -> None:
    nets = Nets()
    nets.step()
    folder = nets.save(tmp_path, fake_ranks(0, was))
    drawn = []
    for rank in range(now):
        resumed = Nets()
        torch.manual_seed(99)
        resumed.load(folder, fake_ranks(rank, now))
        first = torch.rand(4).tolist()
        Nets().load(folder, fake_ranks(rank, now))
        assert torch.rand(4).tolist() == first  # ... but they are the same each time
        drawn.append(first)
        assert resumed.place == nets.place
        assert torch.equal(resumed.d.weight, nets.d.weight)
        said = capsys.readouterr().out
        assert said.count(f"warning: saved on {was} rank(s), resumed on {now}") == (2 if rank == 0 else 0)
    assert len({tuple(d) for d in drawn}) == now


def test_only_rank_0_writes(tmp_path: Path) -> None:
    Nets().save(tmp_path, fake_ranks(1, 2))
    assert list(tmp_path.iterdir()) == []


# Damage


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda path: os.truncate(path, path.stat().st_size - 1),
        lambda path: os.truncate(path, 0),
        Path.unlink,
    ],
    ids=["flipped", "cut", "emptied", "missing"],
)
@pytest.mark.parametrize(
    "name", ["generator.safetensors", "discriminator.safetensors", "state.pt", "rng.pt", "checkpoint.json"]
)
def test_damage_is_named_and_the_older_one_is_found(saved: Path, name: str, damage: Callable[[Path], Any]) -> None:
    newest, older = (saved / f"checkpoints/step-0000000{n}" for n in (3, 2))
    assert verify(newest) == []
    assert find(saved) == newest
    # JSON does not mind its last byte
    damage(newest / name) if (damage, name) != (flip, "checkpoint.json") else flip(newest / name, 0)
    said: list[str] = []
    assert find(saved, said.append) == older
    assert len(said) == 1
    assert said[0].startswith(f"passed over: {newest / name}: ")


def test_every_flipped_bit_of_the_seal_is_seen_or_harmless(saved: Path) -> None:
    newest = saved / "checkpoints/step-00000003"
    seal = newest / "checkpoint.json"
    good = seal.read_bytes()
    step = range(good.index(b'"step"'), good.index(b","))  # only for readers: the folder's name counts
    rng = random.Random(0)
    for place in range(len(good)):
        seal.write_bytes(good)
        content = bytearray(good)
        content[place] ^= 1 << rng.randrange(8)
        seal.write_bytes(content)
        problems = verify(newest)
        assert all(p.startswith(str(newest)) for p in problems)
        assert problems or place in step or json.loads(content) == json.loads(good)


@pytest.mark.parametrize("seal", ["[]", "{}", '{"files": []}', '{"files": {}}', '{"files": {"rng.pt": 3}}', "null"])
def test_a_seal_that_seals_nothing_is_damage(saved: Path, seal: str) -> None:
    newest = saved / "checkpoints/step-00000003"
    (newest / "checkpoint.json").write_text(seal)
    (problem,) = verify(newest)
    assert problem.startswith(f"{newest / 'checkpoint.json'}: ")


@pytest.mark.parametrize("name", ["\0", "\ud800", "x" * 300, ""])
def test_a_seal_of_a_name_that_no_file_can_have_is_damage(saved: Path, name: str) -> None:
    newest = saved / "checkpoints/step-00000003"
    (newest / "checkpoint.json").write_text(json.dumps({"files": {name: {"bytes": 1, "sha256": ""}}}))
    assert len(verify(newest)) == 1


def test_no_good_checkpoint_is_none(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find(saved / "nowhere") is None
    for folder in (saved / "checkpoints").iterdir():
        (folder / "rng.pt").unlink()
    assert find(saved) is None
    assert capsys.readouterr().out.count("rng.pt: missing") == 3


def test_other_folders_do_not_disturb(saved: Path) -> None:
    others = ("step-best", "step-", ".step-00000009.part", "step-00000003 copy", "step-²", "step-٣", "step--0000001")
    for name in (*others, "step-9", f"step-{10**20}"):
        shutil.copytree(saved / "checkpoints/step-00000001", saved / "checkpoints" / name)
    (saved / "checkpoints/step-5.txt").write_text("mine")
    said: list[str] = []
    assert find(saved, said.append) == saved / "checkpoints/step-00000003"
    assert said == []


@pytest.mark.parametrize("kind", ["a link to nowhere", "a link in a circle", "a file", "no rights"])
@pytest.mark.parametrize("read", [find, entries, chosen])
def test_checkpoints_that_are_out_of_sight_are_not_none(
    saved: Path, kind: str, read: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = saved / "checkpoints"
    if kind == "no rights":  # the superuser has all of them

        def refuse(path: Path) -> Any:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

        monkeypatch.setattr(os, "listdir", refuse)
    else:
        home.rename(saved / "elsewhere")
        home.write_text("") if kind == "a file" else home.symlink_to("checkpoints" if "circle" in kind else "gone")
    with pytest.raises(UserError, match=f"^{home}: .*is its disk there"):
        read(saved)


def test_steps_are_ordered_as_numbers(tmp_path: Path, ranks: Ranks) -> None:
    nets = Nets()
    for step in (99_999_999, 100_000_000):
        nets.place["step"] = step
        nets.save(tmp_path, ranks, keep=1)
    assert folders(tmp_path) == ["step-100000000"]
    assert find(tmp_path) == tmp_path / "checkpoints/step-100000000"


# What the command line tells of them


def test_entries_tell_size_time_and_what_is_wrong(saved: Path) -> None:
    flip(saved / "checkpoints/step-00000002/state.pt")
    (saved / "checkpoints/step-00000002/rng.pt").unlink()
    (saved / "checkpoints/step-00000002/rng.pt").mkdir()
    (saved / "checkpoints/step-00000001/checkpoint.json").unlink()
    os.utime(saved / "checkpoints/step-00000001", (5, 5))
    os.utime(saved / "checkpoints/step-00000003/checkpoint.json", (7, 7))
    newest, middle, oldest = entries(saved)
    assert [step_of(e.folder) for e in (newest, middle, oldest)] == [3, 2, 1]
    assert (newest.problems, newest.files) == ([], 5)
    assert [e.written.timestamp() for e in (newest, oldest)] == [7, 5]
    assert newest.bytes == sum(p.stat().st_size for p in newest.folder.iterdir())
    assert sorted(p.removeprefix(f"{middle.folder}/") for p in middle.problems) == [
        "rng.pt: is not a file",
        "state.pt: damaged (size or hash)",
    ]
    assert oldest.problems == [f"{oldest.folder}/checkpoint.json: cannot be read (No such file or directory)"]
    assert entries(saved, 2) == [middle]


def test_entries_of_nothing_are_a_sentence(saved: Path) -> None:
    with pytest.raises(UserError, match=r"^--step 4: there is no such checkpoint; there are 1, 2, 3$"):
        entries(saved, 4)
    shutil.rmtree(saved / "checkpoints")
    (saved / "checkpoints").mkdir()
    (saved / "checkpoints/step-00000001").write_text("a file")
    for run in (saved, saved / "nowhere"):
        with pytest.raises(UserError, match=rf"^{run}: has no checkpoints; is it the folder of a run\?$"):
            entries(run)


def test_a_checkpoint_that_the_run_removes_meanwhile_is_not_damage(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint.verify

    def slow(folder: Path) -> list[str]:
        if folder.name.endswith("2"):  # both older ones go while this one is read
            (folder / "rng.pt").unlink()
            shutil.rmtree(saved / "checkpoints/step-00000001")
        problems = real(folder)
        if folder.name.endswith("1"):
            shutil.rmtree(saved / "checkpoints/step-00000002")
        return problems

    monkeypatch.setattr(checkpoint, "verify", slow)
    said: list[str] = []
    check(saved, say=said.append)
    assert [s.split(": ")[0] for s in said] == [f"{saved}/checkpoints/step-00000003"]


def test_check_names_the_damaged_files_and_the_newest_good_one(saved: Path) -> None:
    folder = {n: saved / f"checkpoints/step-0000000{n}" for n in (1, 2, 3)}
    said: list[str] = []
    check(saved, say=said.append)
    assert [s.split(": good (5 files, ")[0] for s in said] == [str(folder[n]) for n in (3, 2, 1)]
    flip(folder[3] / "state.pt")
    (folder[3] / "rng.pt").unlink()
    for step in (3, None):
        said.clear()
        with pytest.raises(UserError) as e:
            check(saved, step, said.append)
        assert str(e.value).splitlines() == [
            f"1 of {1 if step else 3} checkpoint(s) damaged:",
            f"  {folder[3]}/rng.pt: missing",
            f"  {folder[3]}/state.pt: damaged (size or hash)",
            f"newest complete checkpoint: {folder[2]}",
        ]
        assert [s.split(": ")[0] for s in said] == ([] if step else [str(folder[2]), str(folder[1])])
    check(saved, 2)
    flip(folder[2] / "state.pt")
    flip(folder[1] / "state.pt")
    with pytest.raises(UserError, match=r"^3 of 3 [^$]*\nnewest complete checkpoint: none$"):
        check(saved, say=said.append)


def test_the_table_marks_the_newest_complete_one(saved: Path) -> None:
    flip(saved / "checkpoints/step-00000003/state.pt")
    for step, age in ((3, 10), (2, 3 * 60 + 5), (1, 50 * 3600)):
        written = time.time() - age
        os.utime(saved / f"checkpoints/step-0000000{step}/checkpoint.json", (written, written))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(entries(saved)))
    rows = [[c.strip() for c in r.split("│")[1:-1]] for r in console.export_text().splitlines() if r.startswith("│")]
    assert [(r[0], r[2], r[4]) for r in rows] == [
        ("3", "5", "state.pt: damaged (size or hash)"),
        ("2", "5", "complete, newest"),
        ("1", "5", "complete"),
    ]
    assert [r[3].split("(")[1][:-8] for r in rows] == ["0:00", "0:03", "2 days, 2:00"]  # without ":SS ago)"
    assert all(r[1].endswith(("kB", "bytes")) for r in rows)


def test_the_table_marks_the_one_that_draws(tmp_path: Path, ranks: Ranks) -> None:
    nets = Nets()
    for best in (1, 1, 1):
        nets.step()
        nets.save(tmp_path, ranks, best=best)
    states = list(table(entries(tmp_path)).columns[-1].cells)
    assert states == ["complete, newest", "complete", "complete, draws"]
    flip(tmp_path / "checkpoints/step-00000001/state.pt")
    assert "draws" not in " ".join(map(str, table(entries(tmp_path)).columns[-1].cells))


# Which are kept


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_newest_are_kept(tmp_path: Path, ranks: Ranks, keep: int) -> None:
    nets = Nets()
    for _ in range(4):
        nets.step()
        nets.save(tmp_path, ranks, keep)
    assert folders(tmp_path) == [f"step-{n:08d}" for n in range(max(1, 5 - keep), 5)]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newer_one_does_not_push_out_what_is_saved_now(saved: Path, ranks: Ranks, keep: int) -> None:
    for step in (2, 3):
        flip(saved / f"checkpoints/step-0000000{step}/state.pt")
    nets = Nets()
    found = find(saved, lambda _: None)
    assert found == saved / "checkpoints/step-00000001"
    nets.load(found, ranks)
    nets.step()
    folder = nets.save(saved, ranks, keep)  # step 2 again
    assert find(saved, lambda _: None) == folder
    assert verify(folder) == []


@pytest.mark.parametrize("keep", [1, 2])
def test_the_best_is_kept_beside_the_newest_and_draws(tmp_path: Path, ranks: Ranks, keep: int) -> None:
    nets = Nets()
    for best in (1, 2, 2, 2, 5):
        nets.step()
        nets.save(tmp_path, ranks, keep, best)
        newest = nets.place["step"]
        kept = {best, *range(max(1, newest + 1 - keep), newest + 1)}
        assert folders(tmp_path) == [f"step-{n:08d}" for n in sorted(kept)]
        assert chosen(tmp_path) == tmp_path / f"checkpoints/step-{best:08d}"
        assert find(tmp_path) == tmp_path / f"checkpoints/step-{newest:08d}"  # where the run goes on


def test_a_damaged_best_leaves_the_newest_to_draw(tmp_path: Path, ranks: Ranks) -> None:
    nets, said = Nets(), []
    assert chosen(tmp_path) is None
    for _ in range(3):
        nets.step()
        nets.save(tmp_path, ranks, 1, 1)
    flip(tmp_path / "checkpoints/step-00000001/generator.safetensors")
    assert chosen(tmp_path, said.append) == tmp_path / "checkpoints/step-00000003"
    assert len(said) == 1
    assert said[0].startswith("passed over the best one: ")
    (tmp_path / "checkpoints/step-00000003/best.json").write_text('{"step": 2}')  # sealed as all files are
    assert chosen(tmp_path, said.append) is None
    assert said[1].endswith("best.json: damaged (size or hash)")


# Disks and deaths


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The kernel refuses to let any file of this process grow beyond `size` bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Each larger than those that are written before it.
@pytest.mark.parametrize("name", ["generator.safetensors", "discriminator.safetensors", "state.pt"])
def test_a_full_disk_at_any_file_is_a_sentence_and_harms_nothing(tmp_path: Path, ranks: Ranks, name: str) -> None:
    nets = Nets()
    nets.step()
    first = nets.save(tmp_path, ranks)
    nets.step()
    with no_file_above((first / name).stat().st_size - 1):
        with pytest.raises(UserError, match=r"step-00000002: the checkpoint cannot be written \(File too large\)"):
            nets.save(tmp_path, ranks)
    assert folders(tmp_path) == ["step-00000001"]
    assert find(tmp_path) == first
    assert verify(nets.save(tmp_path, ranks)) == []  # space was made


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path, ranks: Ranks) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(UserError, match=r"step-00000000: the checkpoint cannot be written \(.*\); free space"):
        Nets().save(tmp_path, ranks)


class Disk:
    """Stands in for the calls that make data last; `fail(k)` lets the k-th of them go wrong."""

    calls = ("fsync", "replace")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int = 0, error: BaseException | None = None):
        self.done: list[str] = []
        for name in self.calls:
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name), fail_at, error))

    def wrap(
        self, name: str, call: Callable[..., Any], fail_at: int, error: BaseException | None
    ) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            target = os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "fsync" else str(arguments[1])
            self.done.append(f"{name} {Path(target).name}")
            if len(self.done) == fail_at and error is not None:
                if name == "fsync" and os.path.isfile(target):
                    os.truncate(target, os.path.getsize(target) // 2)  # what was not synced may be lost
                raise error
            return call(*arguments)

        return wrapped


def test_every_file_is_on_the_disk_before_the_checkpoint_has_its_name(
    tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets = Nets()
    with monkeypatch.context() as m:
        disk = Disk(m)
        nets.save(tmp_path, ranks)
    *files, seal, folder, rename, parent = disk.done
    assert sorted(files) == [f"fsync {n}" for n in sorted(p.name for p in tmp_path.rglob("*.safetensors"))] + [
        "fsync rng.pt",
        "fsync state.pt",
    ]
    assert (seal, rename, parent) == ("fsync checkpoint.json", "replace step-00000000", "fsync checkpoints")
    assert folder.startswith("fsync .step-00000000.")


FAULT_POINTS = range(1, 9)  # as many as the test above lists


@pytest.mark.parametrize("same_step", [False, True], ids=["new", "over a damaged one"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), Killed()], ids=["full", "killed"])
@pytest.mark.parametrize("at", FAULT_POINTS)
def test_no_fault_costs_the_older_checkpoint_or_leaves_half_a_one(
    tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException, same_step: bool
) -> None:
    nets = Nets()
    nets.step()
    older = nets.save(tmp_path, ranks, keep=1)
    before = nets.everything()
    nets.step()
    if same_step:
        shutil.copytree(older, tmp_path / "checkpoints/step-00000002")
        flip(tmp_path / "checkpoints/step-00000002/rng.pt")
    renamed = at == max(FAULT_POINTS) and not same_step  # over a damaged one, that one is renamed first
    with monkeypatch.context() as m:
        Disk(m, at, error)
        with pytest.raises(Killed if isinstance(error, Killed) else UserError) as e:
            nets.save(tmp_path, ranks, keep=1)
    if isinstance(e.value, UserError):
        assert "step-00000002: the checkpoint cannot be written (No space left on device); free" in str(e.value)
    if not isinstance(error, Killed):
        assert not list(tmp_path.rglob("*.part"))
    after = nets.everything()
    found = find(tmp_path, lambda _: None)
    assert found is not None
    assert found.name == ("step-00000002" if renamed else older.name)
    assert verify(older) == []
    nets.load(found, ranks)
    assert nets.everything() == (after if renamed else before)
    # The next start tidies up and continues.
    nets.place["step"] = 3
    nets.save(tmp_path, ranks, keep=1)
    assert folders(tmp_path) == ["step-00000003"]


def test_a_process_killed_while_it_saves(tmp_path: Path) -> None:
    # The same with a real kill -9, when all is written and nothing renamed.
    script = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_checkpoint as t
nets, replace = t.Nets(), os.replace
def killing(old, new):
    if nets.place["step"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(old, new)
os.replace = killing
for _ in range(2):
    nets.step()
    nets.save(Path(sys.argv[1]), t.fake_ranks(0, 1))
"""
    arguments = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert find(tmp_path) == tmp_path / "checkpoints/step-00000001"
    half, older = folders(tmp_path)
    assert (half[:15], half[-5:], older) == (".step-00000002.", ".part", "step-00000001")


# What is loaded


def test_nothing_is_unpickled_but_plain_values(saved: Path, ranks: Ranks, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    folder = saved / "checkpoints/step-00000003"
    for name in ("state.pt", "rng.pt"):
        good = (folder / name).read_bytes()
        for write in (lambda f: torch.save(Trap(), f), lambda f: f.write_bytes(pickle.dumps(Trap(), protocol=2))):
            write(folder / name)
            with pytest.raises(
                UserError, match=rf"^{folder / name}: damaged, or holds more than plain values; nothing"
            ):
                Nets().load(folder, ranks)
            assert not (tmp_path / "sprung").exists()
        (folder / name).write_bytes(good)
    Nets().load(folder, ranks)


@pytest.mark.parametrize("name", ["state.pt", "rng.pt"])
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda p: p.write_bytes(b""), "damaged, or holds"),
        (lambda p: os.truncate(p, p.stat().st_size // 2), "damaged, or holds"),
        (lambda p: p.write_bytes(b"no pickle at all"), "damaged, or holds"),
        (Path.unlink, r"cannot be read \(No such file or directory\)"),
    ],
    ids=["emptied", "cut", "text", "gone"],
)
def test_what_cannot_be_unpickled_is_a_sentence(
    saved: Path, ranks: Ranks, name: str, damage: Callable[[Path], Any], sentence: str
) -> None:
    file = saved / "checkpoints/step-00000003" / name
    damage(file)
    with pytest.raises(UserError, match=rf"^{file}: {sentence}"):
        Nets().load(file.parent, ranks)


def test_weights_of_another_network_are_a_sentence(saved: Path) -> None:
    path = saved / "checkpoints/step-00000003/generator.safetensors"
    with pytest.raises(UserError, match=rf"^{path}: does not hold the weights of this network: "):
        load_weights(path, nn.Linear(2, 2))
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match=rf"^{path}: does not hold the weights of this network: "):
        load_weights(path, Nets().g)
    with pytest.raises(UserError, match=r"nowhere.safetensors: missing$"):
        load_weights(path.with_name("nowhere.safetensors"), Nets().g)


def test_the_folder_is_where_the_issue_says() -> None:
    assert checkpoint.FOLDER == "checkpoints"


@pytest.mark.parametrize("wrong", [None, 3, [3], [{"cpu": torch.zeros(3)}], [{"cpu": "x"}], [{}]])
def test_a_random_state_that_others_wrote_is_a_sentence(saved: Path, ranks: Ranks, wrong: Any) -> None:
    folder = saved / "checkpoints/step-00000003"
    torch.save(wrong, folder / "rng.pt")
    with pytest.raises(UserError, match=r"rng\.pt: has contents that a checkpoint never has .*Remove"):
        load(folder, Nets().modules, ranks)


@pytest.mark.parametrize("error", [KeyError("step"), TypeError("x"), RuntimeError("size mismatch"), IndexError()])
def test_contents_that_do_not_fit_are_a_sentence(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"state\.pt: has contents that a checkpoint never has"):
        with checkpoint.believed(tmp_path / "state.pt"):
            raise error


@pytest.mark.parametrize("content", [{}, {"step": -1}, {"step": "3"}, [3], {"step": 10**30}])
def test_a_foreign_best_step_is_a_sentence(content: Any, saved: Path) -> None:
    folder = saved / "checkpoints/step-00000003"
    (folder / "best.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"best\.json: "):
        read_best(folder)


def test_the_seal_tells_the_hash_of_the_weights_that_draw(saved: Path) -> None:
    folder = saved / "checkpoints/step-00000003"
    assert sealed_weights(folder) == sha256(folder / "generator.safetensors")
    assert sealed_weights(saved / "checkpoints/step-00000099") is None


@pytest.mark.parametrize("say", [find, chosen])
def test_a_seal_with_escapes_is_only_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], say: Callable[[Path], Path | None]
) -> None:
    folder = checkpoint.folder(tmp_path, 1)
    folder.mkdir(parents=True)
    files = {"\x1b[31mred\nerror: all is lost": {"bytes": 1, "sha256": "a"}}
    (folder / "checkpoint.json").write_text(json.dumps({"step": 1, "files": files}))
    assert say(tmp_path) is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(r"step-00000001/\x1b[31mred\nerror: all is lost: missing")
