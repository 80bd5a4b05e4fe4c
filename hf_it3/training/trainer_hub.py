"""Gives the trainer its model card and its push."""

from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.utils import logging
from transformers.utils.hub import hf_api

from ..it3.interface_it3 import idempotent_model
from ..utils import load_room


logger = logging.get_logger(__name__)


class PushingTrainer(Trainer):
    """What [`IT3Trainer`] adds to the model card and the push of `Trainer`."""

    hub_model_id: Any  # transformers declares its first value, None, and no type

    def create_model_card(
        self,
        language: Any = None,
        license: str | None = None,
        tags: Any = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: Any = None,
        dataset_tags: Any = None,
        dataset: Any = None,
        dataset_args: Any = None,
        results: Any = None,
        **kwargs: Any,
    ) -> None:
        """Writes `README.md` into the output directory, on the main process only.

        A card that a person edited keeps its text, and one that cannot be read is left alone, with a warning.

        Args:
            language, license, tags, model_name, finetuned_from, dataset: as in `Trainer`.
            tasks, dataset_tags, dataset_args: accepted as in `Trainer`; the card does not use them.
            results (*optional*): of [`~hf_it3.evaluation.evaluate_robustness`], or as in
                [`~hf_it3.hub.model_card.build_model_card`]; by default the latest accuracies of `evaluate`.
            kwargs: other arguments of [`~hf_it3.hub.model_card.build_model_card`].
        """
        if not self.is_world_process_zero():
            return
        names = [dataset] if isinstance(dataset, str) else list(dataset or ())
        given: dict[str, Any] = {
            "language": language,
            "license": license,
            "base_model": finetuned_from,
            "model_id": model_name,
            "dataset": names[0] if names else _dataset_of(self.train_dataset),
            "tags": [tags] if isinstance(tags, str) else list(tags or ()),
            "results": _latest_results(self.state.log_history) if results is None else results,
            "training": load_room("hub.card_facts").training_facts(self),
            **kwargs,
        }
        given = {name: value for name, value in given.items() if value is not None}
        try:
            load_room("hub.model_card").write_model_card(self.args.output_dir, idempotent_model(self.model), **given)
        except ValueError as error:
            logger.warning(f"No model card was written: {error}")

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        include_code: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Pushes model, image processor and card, in one commit, from the main process.

        Args:
            commit_message, blocking, token, revision, private: as in `Trainer`.
            include_code (`bool`): push the code as well, for those who load the model without this package.
            kwargs: arguments of [`~IT3Trainer.create_model_card`].

        Returns:
            The `CommitInfo`, or with `blocking=False` a future of it; `None` on other processes.

        Raises:
            HfHubHTTPError: the client's own exceptions, for access and connection, with a note of what they stopped.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token if token is not None else self.args.hub_token
        private = self.args.hub_private_repo if private is None else private
        if self.hub_model_id is None and self.is_world_process_zero():
            name = self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name
            self.hub_model_id = load_room("hub.push").create_repository(name, private, token)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**{"model_name": self.hub_model_id, **kwargs})
        self._finish_current_push()
        arguments: dict[str, Any] = {
            "private": private,
            "token": token,
            "revision": revision or self.args.hub_revision,
            "include_code": include_code,
            "commit_message": commit_message,
        }
        push_directory = load_room("hub.push").push_directory
        if blocking:
            return push_directory(self.args.output_dir, self.hub_model_id, **arguments)
        return hf_api().run_as_future(push_directory, self.args.output_dir, self.hub_model_id, **arguments)


def _dataset_of(dataset: Any) -> str | None:
    """The repository of a `datasets.Dataset`, where its description tells."""
    info = getattr(dataset, "info", None)
    name = getattr(info, "dataset_name", None)
    for checksum in getattr(info, "download_checksums", None) or {}:
        # "hf://datasets/user/name@revision/file"
        if checksum.startswith("hf://datasets/"):
            return load_room("hub.card_facts").public_id(checksum.removeprefix("hf://datasets/").split("@")[0])
    return name if name not in ("parquet", "imagefolder", "generator") else None


def _latest_results(log_history: list[dict[str, float]]) -> list[dict[str, Any]]:
    """The scores of the last evaluation, without and with adaptation."""
    latest: dict[str, float] = {}
    for entry in log_history:
        latest.update(entry)
    return [
        {
            "name": "evaluation set",
            "metric": metric,
            "score_unadapted": latest[f"eval_{metric}"],
            "score_adapted": latest.get(f"eval_adapted_{metric}"),
        }
        for metric in load_room("hub.card_results").METRICS
        if f"eval_{metric}" in latest
    ]
