"""The server example: concurrent requests, what adapts together, and what is refused."""

import concurrent.futures
import importlib.util
import io
import socket
import sys
import threading
from pathlib import Path

import pytest
from transformers import pipeline


EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def serve():
    for name in ("fastapi", "uvicorn", "multipart", "httpx"):
        pytest.importorskip(name, reason="the server example needs fastapi, uvicorn, python-multipart and httpx")
    spec = importlib.util.spec_from_file_location("serve_example", EXAMPLES / "serve.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where FastAPI looks up the annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def service(serve, trained_directory):
    """Two models behind a real server on a free port of the loopback device, and a client."""
    import httpx
    import uvicorn

    classifiers = {
        name: pipeline("it3-image-classification", model=trained_directory, top_k=1, adapt=adapt)
        for name, adapt in (("adapting", True), ("plain", False))
    }
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(serve.create_app(classifiers, batch_size=64), log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        # The socket listens already: requests wait until the server takes them.
        with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def as_file(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return ("images", ("digit.png", buffer.getvalue(), "image/png"))


def test_concurrent_requests_each_get_their_own_answers(service, digits):
    rows = digits["test"].select(range(48))
    files = [as_file(image) for image in rows["image"]]

    def ask(position):
        part = files[3 * position : 3 * position + 3]
        return service.post("/models/plain", files=part).raise_for_status().json()["predictions"]

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        together = [answer for answers in pool.map(ask, range(16)) for answer in answers]
    alone = service.post("/models/plain", files=files).json()["predictions"]
    assert [answer[0]["label"] for answer in together] == [answer[0]["label"] for answer in alone]
    right = sum(answer[0]["label"] == f"LABEL_{label}" for answer, label in zip(together, rows["label"], strict=True))
    assert right > 30


def test_requests_that_wait_together_adapt_together(serve):
    gate, batches = threading.Event(), []

    def classifier(images, adaptation_batch_size, return_idempotence):
        gate.wait(30)
        batches.append(len(images))
        return [[{"label": image}] for image in images]

    worker = serve.Worker(classifier, batch_size=8)
    first = worker.submit(["a"])
    others = [worker.submit([name, name]) for name in "bcd"]
    gate.set()
    assert first.result(30)[0] == [[{"label": "a"}]]
    assert [other.result(30)[0][0][0]["label"] for other in others] == list("bcd")
    worker.stop()
    assert sum(batches) == 7
    assert max(batches) >= 6


def test_the_server_refuses_what_it_cannot_read_and_goes_on(service, digits):
    good = as_file(digits["test"][0]["image"])
    bad = service.post("/models/adapting", files=[good, ("images", ("notes.txt", b"no image", "text/plain"))])
    assert (bad.status_code, bad.json()["detail"]) == (400, "notes.txt is not an image that can be read")
    unknown = service.post("/models/unknown", files=[good])
    assert unknown.status_code == 404
    assert "adapting, plain" in unknown.json()["detail"]
    assert service.post("/models/adapting", files=[good]).status_code == 200
    assert list(service.get("/models").json()) == ["adapting", "plain"]
