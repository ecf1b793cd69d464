"""The JavaScript packages that a page holds: from the user's cache, from npm, or from a folder.

None of their code is part of dist_sketch. Their versions are named here, and nowhere else; what npm sends must have the
hash that is named beside the version, so a page holds the same code wherever it is made.
"""

import base64
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from dist_sketch.core import fileio
from dist_sketch.core.errors import UserError

NPM_TIMEOUT_S = 300
MOST_BYTES = 100 * 2**20  # of an archive or a file in it


@dataclass(frozen=True)
class Package:
    """A package of npm: its version, its archive's hash ("sha512-" and base64), and the files that a page needs."""

    name: str
    version: str
    integrity: str
    files: tuple[str, ...]

    @property
    def archive(self) -> str:
        """The name of the file that `npm pack` writes."""
        return f"{self.name}-{self.version}.tgz"


ONNXRUNTIME = Package(
    "onnxruntime-web",
    "1.30.0",
    "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
    ("dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm"),
)
FREEHAND = Package(
    "perfect-freehand",
    "1.2.3",
    "sha512-bHZSfqDHGNlPpgH2yxXgPHlQSPpEbo+qg7li0M78J9vNAi2yjwLeA4x79BEQhX44lEWpCLSFCeRZwpw0niiXPA==",
    ("dist/cjs/index.js", "LICENSE"),
)


def cache_folder() -> Path:
    """Where the archives are kept that npm sent."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "dist_sketch" / "npm"


def files_of(package: Package, folder: Path | None = None) -> dict[str, bytes]:
    """The contents of the package's files, by their names.

    Args:
        folder: has the archive that `npm pack` writes, or the package in a folder of its name, or a node_modules with
            it. None: the user's cache, which npm fills when it is needed for the first time.

    Raises:
        UserError: the package is not there, is another version or damaged, or npm is missing or fails.
    """
    if folder is None:
        folder = cache_folder()
        if not _is_whole(folder / package.archive, package):
            _fetch(package, folder)
    if (archive := folder / package.archive).is_file():
        if not _is_whole(archive, package):
            raise UserError(f"{archive}: is not what npm has as {package.name} {package.version}; fetch it again")
        return _unpacked(archive.read_bytes(), package)
    homes = (folder / package.name, folder / "node_modules" / package.name)
    home = next((h for h in homes if (h / "package.json").is_file()), None)
    if home is None:
        raise UserError(
            f"--runtime {folder}: has neither {package.archive} nor a folder {package.name}; in that folder, type "
            f"`npm pack {package.name}@{package.version}` on a machine that reaches npm's registry"
        )
    contents = fileio.read_json(home / "package.json", most=fileio.SMALL)
    version = contents.get("version") if isinstance(contents, dict) else None
    if version != package.version:
        raise UserError(f"{home}: is version {version} of {package.name}; a page needs {package.version}")
    try:
        return {name: fileio.read_regular(home / name, MOST_BYTES) for name in package.files}
    except OSError as e:
        raise UserError(f"{e.filename}: cannot be read ({e.strerror}), so {home} is no whole package") from e


def _fetch(package: Package, folder: Path) -> None:
    """Lets npm write the archive into the cache; npm knows the user's registry and proxy."""
    spec = f"{package.name}@{package.version}"
    instead = (
        f"give --runtime FOLDER with what `npm pack {spec}` writes elsewhere, or, for the runtime alone, --runtime-url"
    )
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"a page holds {spec}, and npm, which fetches it, is not installed; install it, or {instead}")
    with tempfile.TemporaryDirectory() as scratch:
        command = [npm, "pack", spec, "--ignore-scripts", "--loglevel=error", "--pack-destination", scratch]
        try:
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=NPM_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as e:
            raise UserError(f"`npm pack {spec}` did not end well ({e}); {instead}") from e
        archive = Path(scratch) / package.archive
        if done.returncode or not archive.is_file():
            why = next((line for line in done.stderr.splitlines() if line.strip()), "it wrote nothing")
            raise UserError(f"`npm pack {spec}` failed ({why.strip()}); {instead}")
        if not _is_whole(archive, package):
            raise UserError(f"`npm pack {spec}` brought a file with another hash than {package.integrity}; {instead}")
        fileio.write_atomic(folder / package.archive, archive.read_bytes())


def _is_whole(archive: Path, package: Package) -> bool:
    try:
        data = fileio.read_regular(archive, MOST_BYTES)
    except OSError:
        return False
    return package.integrity == "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()


def _unpacked(archive: bytes, package: Package) -> dict[str, bytes]:
    """The files of an archive whose hash was compared, so nothing in it has to be doubted."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        members = {name: tar.extractfile(f"package/{name}") for name in package.files}
        return {name: member.read() for name, member in members.items() if member is not None}
