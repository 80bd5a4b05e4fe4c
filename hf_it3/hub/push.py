"""Pushes models to the Hub: one atomic commit, and no card lost."""

import json
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    ModelInfo,
    get_token,
)
from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from ..it3.config_checks_it3 import check_values
from ..it3.loading_it3 import DELTA_NAME, check_kind, is_delta
from ..it3.remote_code_it3 import write_code
from ..utils import noting
from .card_merging import CARD_NAME, is_edited, load_card, merge_cards, rename_card
from .model_card import write_model_card


logger = logging.get_logger(__name__)

# What belongs to a model; the rest of a training directory (checkpoints, optimizer, pickled arguments) stays.
PUSHED = ("*.safetensors", "*.json", "*.md", "*.png", "*.svg", "*.jpg", "*_it3.py")
LEFT_OUT = ("trainer_state.json",)
PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def push_model(
    model: Any,
    repo_id: str,
    *,
    image_processor: Any = None,
    delta: bool = False,
    include_code: bool = False,
    data_description: str | None = None,
    max_shard_size: int | str = "50GB",
    tags: Any = None,
    card: dict[str, Any] | None = None,
    **kwargs: Any,
) -> CommitInfo:
    """Saves a model with processor and card into a temporary directory and pushes that; see [`push_directory`].

    Args:
        model ([`IT3ForImageClassification`]): the model.
        repo_id (`str`): `"user/name"`.
        image_processor (*optional*): by default the one that the model was trained or loaded with.
        delta (`bool`): push only what adaptation changed.
        include_code (`bool`): push the code as well, for those who load the model without this package.
        data_description (`str`, *optional*): the images that an adapted model was adapted to.
        max_shard_size (`int` or `str`), tags: as in `PreTrainedModel.push_to_hub`.
        card (`dict`, *optional*): arguments of [`~hf_it3.hub.model_card.build_model_card`], `results` above all.
        kwargs: arguments of [`push_directory`].
    """
    from ..data import image_processor_for

    if data_description is not None and model.config.base_model:
        model.config.base_model["data"] = data_description
    processor = image_processor or getattr(model, "_image_processor", None) or image_processor_for(model.config)
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory, delta=delta, max_shard_size=max_shard_size)
        processor.save_pretrained(directory)
        if include_code:
            write_code(directory)
        write_model_card(directory, model, **{"model_id": repo_id, "tags": _list(tags), **(card or {})})
        return push_directory(directory, repo_id, **kwargs)


def push_directory(
    directory: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    include_code: bool = False,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
) -> CommitInfo:
    """Pushes the directory of a saved model in one commit: the branch has the old files or the new ones.

    Args:
        directory (`str` or `PathLike`): holds `config.json` and the weights. It is not changed.
        repo_id (`str`): `"user/name"`; created if it does not exist.
        private, token, create_pr, commit_message, commit_description: as in `PreTrainedModel.push_to_hub`.
        revision (`str`, *optional*): branch to push to; created if it does not exist.
        include_code (`bool`): push the code as well, for those who load the model without this package.

    Raises:
        ValueError: if the directory holds no complete model, or one in pickle files, or if the card cannot be read.
        HfHubHTTPError: the client's own exceptions, for access and connection, with a note of what they stopped.
    """
    directory = Path(directory)
    files = model_files(directory)
    api = HfApi()
    _check_no_token(files, token)
    repo_id = create_repository(repo_id, private, token)
    if revision is not None and not revision.startswith("refs/"):
        with noting(f"creating the branch {revision!r} of {repo_id}"):
            api.create_branch(repo_id, branch=revision, token=token, exist_ok=True)
    with noting(f"reading what {repo_id} holds"):
        before = _model_info(api, repo_id, revision, token)
    with tempfile.TemporaryDirectory() as staging:
        contents = {path.name: path for path in files}
        if include_code:
            contents.update(_with_code(contents, Path(staging)))
        card = _card_to_push(api, contents.get(CARD_NAME), repo_id, before.sha, token, Path(staging))
        if card is not None:
            contents[CARD_NAME] = Path(staging, "card.md")
            card.save(contents[CARD_NAME])
        stale = [entry.rfilename for entry in before.siblings or [] if _is_stale(entry.rfilename, contents)]
        with noting(f"uploading and committing the files to {repo_id}"):
            return api.create_commit(
                repo_id,
                operations=[
                    *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in contents.items()),
                    *(CommitOperationDelete(path_in_repo=name) for name in stale),
                ],
                commit_message=commit_message or "Upload model",
                commit_description=commit_description,
                token=token,
                create_pr=create_pr,
                revision=revision,
                # Whoever pushes in between is not overwritten: the commit fails instead.
                parent_commit=None if create_pr else before.sha,
            )


def create_repository(repo_id: str, private: bool | None, token: Any) -> str:
    """Creates a repository if it does not exist, and returns its full name.

    Raises:
        HfHubHTTPError: the client's own exceptions, with a note.
    """
    api = HfApi()
    with noting(f"creating the repository {repo_id}"):
        try:
            return api.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        except KeyError:
            # "409 Conflict" without the repository's address, which the client expects, as servers in between answer.
            # Whether it exists is seen at once.
            return repo_id if "/" in repo_id else f"{api.whoami(token=token)['name']}/{repo_id}"


def _model_info(api: HfApi, repo_id: str, revision: str | None, token: Any) -> ModelInfo:
    try:
        return api.model_info(repo_id, revision=revision, token=token)
    except RevisionNotFoundError as error:
        # The client takes every conflict for a branch that exists, also that of "a/b" with a branch "a".
        error.append_to_message(f"\nThe branch {revision!r} could not be created (409 Conflict); choose another name.")
        raise


def model_files(directory: Path) -> list[Path]:
    """Lists the files of a saved model to push, after checking that it is complete.

    Raises:
        ValueError: if the configuration or the weights are missing, corrupt or pickled, or of a model of another kind.
    """
    config_file = directory / "config.json"
    if not config_file.is_file():
        raise ValueError(f"{directory} holds no saved model: it has no config.json")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{config_file} is not valid JSON: {error}") from error
    check_values(config, f"{config_file}: ")
    check_kind(directory, config, "IT3ForImageClassification")
    expected = _expected_weights(directory, is_delta(config.get("base_model")))
    for name in expected:
        try:
            with safe_open(directory / name, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{directory / name} is missing, corrupt or truncated: {error}") from error
    found = {path for pattern in PUSHED for path in directory.glob(pattern) if path.is_file()}
    return sorted(
        path
        for path in found
        if path.name not in LEFT_OUT and (path.suffix != ".safetensors" or path.name in expected)
    )


def _expected_weights(directory: Path, delta: bool) -> list[str]:
    index = directory / "model.safetensors.index.json"
    if delta:
        return [DELTA_NAME]
    if (directory / "model.safetensors").is_file():
        return ["model.safetensors"]
    if index.is_file():
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    if pickled := sorted(path.name for pattern in PICKLED for path in directory.glob(pattern)):
        raise ValueError(
            f"{directory} has its weights in a pickle file ({pickled[0]}), which can run code when it is loaded; save "
            "them with save_pretrained, as model.safetensors"
        )
    raise ValueError(f"{directory} holds no weights: it has no model.safetensors")


def _with_code(contents: dict[str, Path], staging: Path) -> dict[str, Path]:
    for name in ("config.json", "preprocessor_config.json"):
        if name in contents:
            (staging / name).write_bytes(contents[name].read_bytes())
    return {path.name: path for path in write_code(staging)}


def _card_to_push(
    api: HfApi, local: Path | None, repo_id: str, revision: str | None, token: Any, staging: Path
) -> ModelCard | None:
    """The local card under the repository's name, merged with the one that is there.

    Only "there is none" is taken for a missing card; any other failure to read it is raised.
    """
    ours = None if local is None else rename_card(load_card(local), repo_id)
    try:
        # Into a directory of its own: an old card in the cache must not stand in for one that cannot be reached.
        with noting(f"reading the {CARD_NAME} of {repo_id}, which must not be lost"):
            path = api.hf_hub_download(
                repo_id, CARD_NAME, revision=revision, token=token, local_dir=staging / "existing card"
            )
    except RemoteEntryNotFoundError:
        return ours
    theirs = load_card(path)
    if ours is None:
        return None
    if is_edited(ours) and is_edited(theirs) and ours.text != theirs.text:
        logger.warning(
            f"The card of {repo_id} was edited on the Hub, so its text stays; to replace it by yours, upload your "
            f"{CARD_NAME} by itself: hf upload {repo_id} {CARD_NAME}"
        )
    return _merge_with_local_edits(theirs, ours)


def _merge_with_local_edits(theirs: ModelCard, ours: ModelCard) -> ModelCard:
    merged = merge_cards(theirs, ours)
    if is_edited(ours) and not is_edited(theirs):
        merged.text = ours.text
    return merged


def _is_stale(name: str, contents: dict[str, Path]) -> bool:
    """Whether a file in the repository holds weights that the new ones replace."""
    is_weights = name.startswith(("model", "pytorch_model", "delta")) and "/" not in name
    return (
        is_weights and name not in contents and (".safetensors" in name or name.endswith((".bin", ".bin.index.json")))
    )


def _check_no_token(files: list[Path], token: Any) -> None:
    secrets = {value for value in (token, get_token()) if isinstance(value, str) and value}
    for path in files:
        if path.suffix in (".json", ".md", ".svg", ".py"):
            text = path.read_text(encoding="utf-8", errors="ignore")
            if any(secret in text for secret in secrets):
                raise ValueError(f"{path} contains your access token; remove it, nothing was pushed")


def _list(tags: Any) -> list[str]:
    return [tags] if isinstance(tags, str) else list(tags or ())
