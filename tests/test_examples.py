"""Every example runs in a small setting, prints what it promises, and says what is wrong in one line."""

import ast
import concurrent.futures
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import pipeline

import hf_it3  # noqa: F401 - registers the pipeline's task


EXAMPLES = Path(__file__).parent.parent / "examples"
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1"}
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py"))


def run(script, *arguments, cwd, check=True, **environment):
    """Runs a script in a directory of the test's own; returns what it printed."""
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    process = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=OFFLINE | environment)
    if check:
        assert process.returncode == 0, process.stderr[-2000:]
    return process


def percentages(line):
    return [float(value) for value in re.findall(r"([\d.]+)%", line)]


def line_of(output, start):
    return next(line for line in output.splitlines() if line.strip().startswith(start))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_each_example_declares_its_dependencies_and_says_what_it_shows(path):
    text = path.read_text(encoding="utf-8")
    header = re.match(r"# /// script\n((?:#.*\n)+?)# ///\n", text)
    assert header, "no PEP 723 header"
    assert "requires-python" in header[1]
    assert "hf-it3" in header[1]
    docstring = ast.get_docstring(ast.parse(text))
    assert f"examples/{path.name}" in docstring
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    entry = next(line for line in index.splitlines() if f"]({path.name})" in line)
    assert re.search(r"second|minute|depends", entry), "the index does not say how long it takes"


def test_mnist_tells_the_whole_story(tmp_path):
    output = run(
        "mnist.py", "--num_epochs", 2, "--max_train_images", 600, "--max_test_images", 250, cwd=tmp_path
    ).stdout
    assert "600 training and 250 test images" in output
    clean, noisy = (percentages(line_of(output, name)) for name in ("clean", "noisy"))
    assert len(clean) == len(noisy) == 2
    assert clean[0] > noisy[0]
    assert {path.name for path in (tmp_path / "runs/mnist").glob("*.png")} == {"digits.png", "accuracy.png"}


def test_the_stream_adapts_and_its_model_is_kept(trained_directory, tmp_path):
    (tmp_path / "runs/stream").mkdir(parents=True)
    output = run("stream.py", "--model", trained_directory, cwd=tmp_path).stdout
    parts = [percentages(line) for line in output.splitlines() if line.strip().startswith("+")]
    assert len(parts) == 4
    assert parts[-1][1] > parts[-1][0]
    assert int(re.search(r"took (\d+) steps", output)[1]) > 0
    assert "the weights are the same" in output
    assert (tmp_path / "runs/stream/adapted/model.safetensors").is_file()


def test_processes_share_a_folder_without_losing_or_repeating_images(trained_directory, digits, tmp_path):
    for position, row in enumerate(digits["test"].select(range(30))):
        path = tmp_path / "images" / str(row["label"]) / f"{position}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(path)
    run(
        *("batch_inference.py", "--model", trained_directory, "--images", "images", "--processes", 2),
        *("--batch_size", 8, "--output", "answers.jsonl"),
        cwd=tmp_path,
    )
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    written = sorted(path.relative_to(tmp_path / "images") for path in tmp_path.glob("images/*/*.png"))
    assert sorted(Path(answer["file"]) for answer in answers) == written
    assert set(answers[0]) == {"file", "label", "score", "idempotence", "adapted"}


def test_rejecting_uncertain_predictions_lowers_the_error_rate(trained_directory, tmp_path):
    output = run("uncertainty.py", "--model", trained_directory, "--max_images", 200, cwd=tmp_path).stdout
    for line in output.splitlines():
        if line.startswith("idempotence distance"):
            half, *_, everything = percentages(line)
            assert half < everything
    assert (tmp_path / "runs/uncertainty/risk_coverage.png").is_file()


def test_torch_ttt_and_ours_give_the_same_answers(tmp_path):
    output = run("from_torch_ttt.py", "--num_epochs", 2, "--max_images", 100, cwd=tmp_path).stdout
    for name in ("clean", "bright"):
        difference = re.search(r"(\d\.\de[+-]\d+)", line_of(output, name))[1]
        assert float(difference) < 1e-4


def test_without_torch_ttt_the_migration_example_says_what_to_install(tmp_path):
    # Found before the installed one.
    (tmp_path / "torch_ttt.py").write_text("raise ModuleNotFoundError(\"No module named 'torch_ttt'\")")
    process = run("from_torch_ttt.py", cwd=tmp_path, check=False, PYTHONPATH=str(tmp_path))
    assert process.returncode == 1
    assert "No module named 'torch_ttt'; this example needs: pip install torch-ttt==0.0.2 einops" in process.stderr
    assert len(process.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stream.py", "--model", "nowhere"), "stream.py: "),
        (("mnist.py", "--dataset", "./nowhere"), "cannot load './nowhere'"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(arguments, message, tmp_path):
    process = run(*arguments, cwd=tmp_path, check=False)
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert message in process.stderr.strip().splitlines()[-1]


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
    import socket
    import threading

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
    import threading

    gate, batches = threading.Event(), []

    def classifier(images, batch_size, return_idempotence):
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
