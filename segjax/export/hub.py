"""Uploads published folders to the Hugging Face Hub, by the package huggingface_hub."""

import re
from importlib import import_module
from pathlib import Path

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class NotPushed(Exception):
    """An upload failed; the folder is as it was."""


def check_push(repository: str) -> None:
    """Raises ValueError unless uploads can be tried: the name is whole, the package installed."""
    if not _REPOSITORY.fullmatch(repository):
        raise ValueError(f"{repository}: expected a repository on the Hub, as in USER/NAME")
    try:
        import_module("huggingface_hub")
    except ImportError as error:
        raise ValueError(
            "uploads need the package huggingface_hub: pip install 'segjax[hub]'"
        ) from error


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Uploads the files of a folder as one commit, and creates the repository if it is new.

    The token is that of `hf auth login`, or of the environment variable HF_TOKEN.

    Args:
      folder: a published folder.
      repository: "USER/NAME".
      private: whether a new repository is private. An existing one stays as it is.

    Returns:
      The address of the repository.

    Raises:
      NotPushed: the Hub cannot be reached, or refuses; the message has its reason.
    """
    api = import_module("huggingface_hub").HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Publish a model with segjax"
        )
    # The package and the HTTP library below it have errors of many kinds.
    except Exception as error:
        reason = " ".join((str(error) or type(error).__name__).split())
        raise NotPushed(reason) from error
    return str(address)
