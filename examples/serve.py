# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-it3[demo]", "fastapi>=0.115", "uvicorn>=0.30", "python-multipart>=0.0.9"]
#
# [tool.uv.sources]
# hf-it3 = { path = "..", editable = true }
# ///
"""Serves models over HTTP: one worker per model, and requests that wait together adapt together.

Every model has a worker thread of its own. It takes what waits in its queue, up to --batch_size images, and runs the
pipeline once: images of one moment share adapted weights, which adapts better than each alone and costs less.

    python examples/serve.py --model digits=DIR --model other=user/name          # starts in seconds
    curl -F images=@digit.png -F images=@another.png http://127.0.0.1:8000/models/digits

POST /models/NAME takes files named "images" and answers {"predictions": [...], "batch": images that adapted together};
GET /models lists the models. Without --model it trains one on the bundled digits first, a minute.
"""

import argparse
import asyncio
import concurrent.futures
import contextlib
import io
import queue
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, UploadFile
from PIL import Image
from transformers import pipeline

import hf_it3  # registers the pipeline's task


MAX_IMAGES = 64
MAX_BYTES = 20 * 2**20
MAX_PIXELS = 40_000_000
MAX_WAITING = 256


@dataclass
class Job:
    """The images of one request, and where their predictions are put."""

    images: list[Image.Image]
    done: concurrent.futures.Future = field(default_factory=concurrent.futures.Future)


class Worker:
    """A model with its queue and the one thread that runs it."""

    def __init__(self, classifier: Any, batch_size: int = 64, patience: float = 0.01):
        self.classifier, self.batch_size, self.patience = classifier, batch_size, patience
        self.jobs: queue.Queue[Job | None] = queue.Queue(MAX_WAITING)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def submit(self, images: list[Image.Image]) -> concurrent.futures.Future:
        """Queues the images of a request; raises `queue.Full` where too many wait already."""
        job = Job(images)
        self.jobs.put_nowait(job)
        return job.done

    def stop(self) -> None:
        """Answers what waits, then ends the thread."""
        self.jobs.put(None)
        self.thread.join()

    def _run(self) -> None:
        while (job := self.jobs.get()) is not None:
            jobs, count, ends = [job], len(job.images), False
            # A short wait lets those join who come at the same moment.
            with contextlib.suppress(queue.Empty):
                while count < self.batch_size and not ends:
                    other = self.jobs.get(timeout=self.patience)
                    ends = other is None
                    if not ends:
                        jobs.append(other)
                        count += len(other.images)
            self._answer(jobs, count)
            if ends:
                break

    def _answer(self, jobs: list[Job], count: int) -> None:
        images = [image for job in jobs for image in job.images]
        try:
            answers = iter(self.classifier(images, adaptation_batch_size=count, return_idempotence=True))
            for job in jobs:
                job.done.set_result(([next(answers) for _ in job.images], count))
        except Exception as error:  # whatever it is, those who wait must hear of it, and the worker goes on
            for job in jobs:
                if not job.done.done():
                    job.done.set_exception(error)


def read_image(name: str, content: bytes) -> Image.Image:
    """Decodes a file; errors become answers with status 400 or 413 that name it."""
    if len(content) > MAX_BYTES:
        raise HTTPException(413, f"{name} is larger than {MAX_BYTES // 2**20} MB")
    try:
        image = Image.open(io.BytesIO(content))
        if image.width * image.height > MAX_PIXELS:
            raise HTTPException(413, f"{name} has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,}")
        image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise HTTPException(400, f"{name} is not an image that can be read") from error
    return image


def create_app(classifiers: dict[str, Any], batch_size: int = 64) -> FastAPI:
    """The service for these pipelines by name."""
    workers: dict[str, Worker] = {}

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        workers.update({name: Worker(classifier, batch_size) for name, classifier in classifiers.items()})
        yield
        for worker in workers.values():
            worker.stop()

    app = FastAPI(title="hf-it3", lifespan=lifespan)

    @app.get("/models")
    def models() -> dict[str, Any]:
        return {name: {"labels": list(c.model.config.id2label.values())} for name, c in classifiers.items()}

    @app.post("/models/{name}")
    async def predict(name: str, images: list[UploadFile]) -> dict[str, Any]:
        if name not in workers:
            raise HTTPException(404, f"there is no model {name!r}; there are {', '.join(workers)}")
        if len(images) > MAX_IMAGES:
            raise HTTPException(413, f"{len(images)} images in one request; at most {MAX_IMAGES}")
        loaded = [read_image(file.filename or "image", await file.read()) for file in images]
        try:
            answers, batch = await asyncio.wrap_future(workers[name].submit(loaded))
        except queue.Full:
            raise HTTPException(503, "too many requests wait; try again later") from None
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        return {"predictions": answers, "batch": batch}

    return app


def train_on_digits(directory: Path, num_epochs: int) -> Path:
    """The tutorial's network, for a try without a model of your own."""
    from hf_it3.data import DIGITS, load_digits
    from hf_it3.demo import RECIPES, train_network

    if not (directory / "config.json").is_file():
        recipe = RECIPES[DIGITS]
        processor = hf_it3.IT3ImageProcessor(num_channels=1, image_mean=[recipe.mean], image_std=[recipe.std])
        names = [str(digit) for digit in range(10)]
        train_network(load_digits()["train"], processor, names, directory, 0, recipe, num_epochs)
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", default=[], metavar="NAME=ID", help="Hub name or path; repeatable")
    parser.add_argument("--batch_size", type=int, default=64, help="most images that waiting requests are joined to")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--num_epochs", type=int, default=10, help="without --model: of the training")
    options = parser.parse_args()
    named = dict(model.split("=", 1) if "=" in model else (Path(model).name, model) for model in options.model)
    named = named or {"digits": str(train_on_digits(Path("runs/serve"), options.num_epochs))}
    classifiers = {name: pipeline("it3-image-classification", model=model, top_k=3) for name, model in named.items()}
    uvicorn.run(create_app(classifiers, options.batch_size), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"serve.py: {' '.join(str(error).split())}")
