"""Generators of others on the Hugging Face Hub: their download, and what the Hub says, as sentences."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dist_sketch.core.errors import UserError

NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
# Whose errors huggingface_hub lets through; which of them it uses depends on its version.
CLIENTS = ("requests", "httpx", "httpx2", "httpcore")
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
REASONS = {
    401: f"the Hub does not know who asks: {LOG_IN}",
    403: f"this user may not do that there: use a name of your own, or {LOG_IN} with a token that may write",
    409: "the Hub has this name already",
    429: "the Hub has had too many requests from here: wait, and start the same command again",
}


def is_name(run: Path) -> bool:
    """Whether this is meant as the name user/name of a repository.

    With a folder of the user's name it is a path: who mistypes runs/first wants no answer from the Hub.
    """
    return bool(NAME.fullmatch(run.as_posix())) and not run.is_absolute() and not run.parent.exists()


def download(name: str, files: list[str], **options: Any) -> Path:
    """The folder of the Hub's cache that holds the newest of these files of a repository; offline, the last ones.

    Args:
        files: their names; without the first one it is no such repository.
        options: of `huggingface_hub.snapshot_download`: revision, token, cache_dir, local_files_only, force_download.

    Raises:
        UserError: there is no such folder, and the Hub has no such repository, or cannot be reached.
    """
    with hub_errors(f"{name}: there is no such folder; as a repository of the Hub"):
        folder = Path(snapshot_download(name, allow_patterns=files, **options))
    if not (folder / files[0]).is_file():
        raise UserError(f"{name}: the Hub's repository holds no generator of dist_sketch (no {files[0]})")
    return folder


def may_upload(name: str) -> HfApi:
    """The way to the Hub for an upload as `name`; to be called within `hub_errors`.

    Raises:
        UserError: the name is not of this user, or of an organisation of theirs.
    """
    api = HfApi(library_name="dist_sketch")
    me = api.whoami()
    mine = [me["name"], *(group["name"] for group in me.get("orgs", []))]
    if name.split("/")[0] not in mine:
        places = ", ".join(f"{user}/..." for user in mine)
        raise UserError(f"{name}: {me['name']}, who is logged in, can upload to {places}")
    return api


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turns what the Hub and the way to it raise into a UserError that begins with `what`."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        if (why := _reason(e)) is None:
            raise
        raise UserError(f"{what}: {why}") from e


def _reason(error: Exception) -> str | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, HFValidationError):
        return "a repository is named user/name, of letters, digits, single - and . between them, and _"
    if isinstance(error, LocalTokenNotFoundError):
        return REASONS[401]
    if isinstance(error, GatedRepoError):
        return f"its owner gives it only to those who asked on its page: ask there, then {LOG_IN}"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no such repository or user; if it is private, {LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision"
    if isinstance(error, HfHubHTTPError):
        told = getattr(error, "server_message", None) or str(error).splitlines()[0]
        return f"{REASONS.get(status or 0, 'the Hub refuses this')} ({told})"
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError) or _of_connection(error):
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the network or the Hub is down"
        return f"{constants.ENDPOINT} cannot be reached: {offline}"
    return None


def _of_connection(error: Exception) -> bool:
    return type(error).__module__.split(".")[0] in CLIENTS or isinstance(error, ConnectionError)
