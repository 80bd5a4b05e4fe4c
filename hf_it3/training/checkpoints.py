"""Tells whole checkpoints from those that were cut off while they were written."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging


logger = logging.get_logger(__name__)


def last_whole_checkpoint(args: TrainingArguments) -> str:
    """The last checkpoint in the output folder that was written to its end; a warning names those that it skips.

    Raises:
        ValueError: if there is none.
    """
    folder = Path(str(args.output_dir))
    broken: list[str] = []
    numbered: dict[int, Path] = {}
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.rpartition("-")[2]
        if number.isdecimal() and path.is_dir():
            numbered[int(number)] = path
    for _, path in sorted(numbered.items(), reverse=True):
        defect = next(_defects(path, args), None)
        if defect is None:
            if broken:
                logger.warning(f"Training goes on from {path.name}, the last whole one, because {'; '.join(broken)}")
            return str(path)
        broken.append(f"{path.name} was not written to its end: {defect}")
    raise ValueError(f"there is no whole checkpoint in {folder}{': ' if broken else ''}{'; '.join(broken)}")


def check_whole(checkpoint: str, args: TrainingArguments) -> None:
    """Raises a ValueError for a checkpoint that is not there, or was not written to its end."""
    if not Path(checkpoint).is_dir():
        raise ValueError(f"resume_from_checkpoint={checkpoint!r} is no folder")
    defect = next(_defects(Path(checkpoint), args), None)
    if defect is not None:
        raise ValueError(
            f"{checkpoint} was not written to its end: {defect}; resume from another one, or with "
            "resume_from_checkpoint=True from the last whole one"
        )


def _defects(checkpoint: Path, args: TrainingArguments) -> Iterator[str]:
    # The state is written last, the optimizer's where it is not in parts.
    expected = [TRAINER_STATE_NAME]
    if not (args.save_only_model or args.fsdp or args.deepspeed):
        expected += [OPTIMIZER_NAME, SCHEDULER_NAME]
    if not (args.fsdp or args.deepspeed):
        expected += _weights(checkpoint)
    yield from (f"it has no {name}" for name in expected if not (checkpoint / name).is_file())
    for path in sorted(checkpoint.iterdir()):
        if path.is_file() and not _is_whole(path):
            yield f"{path.name} is empty or cut off"


def _weights(checkpoint: Path) -> list[str]:
    try:
        index = json.loads((checkpoint / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
        return sorted(set(index["weight_map"].values()))
    except FileNotFoundError:
        return [SAFE_WEIGHTS_NAME]
    except (ValueError, KeyError):
        return []  # the index itself is found to be cut off


def _is_whole(path: Path) -> bool:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                return True
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8")) is not None
        if path.suffix in (".pt", ".pth", ".bin"):
            return zipfile.is_zipfile(path)
    except (SafetensorError, OSError, ValueError):
        return False
    return path.stat().st_size > 0
