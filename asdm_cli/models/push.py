"""A folder of files sent to the hub: what would be sent, and the sending."""

from __future__ import annotations

from pathlib import Path

from asdm_cli.errors import ModelError, RunError
from asdm_cli.models.write import MARK


def check_push(repo: str, dry_run: bool) -> None:
    """ModelError unless `repo` is a name that the hub takes, and, where it is to be sent, somebody is known there."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ModelError(f"--push {repo}: is no name of a repository ({error}); give ORG/NAME") from None
    if repo.count("/") != 1:
        raise ModelError(f"--push {repo}: names nobody that it would belong to; give ORG/NAME")
    if dry_run:
        return
    if constants.HF_HUB_OFFLINE:
        raise ModelError("--push: HF_HUB_OFFLINE is set, so nothing is sent; unset it, or leave --push out")
    if get_token() is None:
        raise ModelError("--push: you are not known to the hub; set HF_TOKEN, or type `hf auth login` once")


def described(repo: str, private: bool) -> str:
    """Where a push would go, in words."""
    from huggingface_hub import constants

    kind = "private" if private else "public"
    return f"Sent to {constants.ENDPOINT}/{repo}: a {kind} repository of models, made if it is not there."


def push(folder: Path, repo: str, private: bool) -> str:
    """Send the folder's files to a repository, which is made if it is not there; its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, ignore_patterns=[MARK], commit_message="Written by asdm")
    except Exception as error:  # of the hub's library and of the network's, of many kinds
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(
            f"--push {repo}: was not sent ({why}); {folder} is written. Once that is mended, "
            f"`hf upload {repo} {folder}` sends it"
        ) from error
    return str(address)
