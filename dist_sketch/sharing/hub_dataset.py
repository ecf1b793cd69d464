"""Packed shards as a data set on the Hugging Face Hub, from which `hf://datasets/USER/NAME` reads them."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from dist_sketch.core.errors import UserError
from dist_sketch.core.places import Address
from dist_sketch.data.manifest import MANIFEST, files_of, read_manifest
from dist_sketch.model.from_hub import hub_errors, may_upload

KIND = "dataset"


def check(name: str) -> None:
    """Looks before the work whether shards can be uploaded as `name`.

    Raises:
        UserError: the name is malformed or somebody else's, nobody is logged in, the Hub cannot be reached, or has such
            a data set with files, but without shards.
    """
    with hub_errors(name):
        validate_repo_id(name)
    if "/" not in name:
        raise UserError(f"{name}: the name of a data set is user/name, as in {name}/faces")
    with hub_errors(f"{name}: cannot be uploaded"):
        api = may_upload(name)
        try:
            there = set(api.list_repo_files(name, repo_type=KIND)) - {".gitattributes"}
        except RepositoryNotFoundError:
            return
    if there and MANIFEST not in there:
        raise UserError(
            f"{name}: the Hub has such a data set already, which holds other files ({', '.join(sorted(there)[:3])}); "
            "choose another name"
        )


def push(folder: Path, name: str, *, private: bool = False) -> str:
    """Uploads packed shards and what lies beside them in one commit, in place of shards that are there.

    Returns:
        The address of the data set's page.

    Raises:
        UserError: as `check`, or the upload fails.
    """
    check(name)
    with hub_errors(f"{name}: cannot be uploaded"):
        api = HfApi(library_name="dist_sketch")
        page = api.create_repo(name, repo_type=KIND, private=private or None, exist_ok=True)
        there = api.file_exists(name, MANIFEST, repo_type=KIND)
        old = files_of(read_manifest(Address(f"hf://datasets/{name}"))) if there else []
        api.upload_folder(
            repo_id=name,
            repo_type=KIND,
            folder_path=folder,
            commit_message="Upload with dist-sketch pack --push",
            ignore_patterns=[".*", "wandb/*"],
            delete_patterns=old,
        )
    return str(page)
