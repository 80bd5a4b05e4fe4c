"""The folder that is uploaded as a Space: it starts as Spaces start it, and asks for what it needs."""

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from importlib.metadata import metadata, requires
from pathlib import Path

import pytest
from huggingface_hub import metadata_load
from packaging.requirements import Requirement


pytest.importorskip("gradio", reason="the app needs the extra 'app'")

ROOT = Path(__file__).parent.parent
SPACE = ROOT / "examples" / "space"
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
TIMEOUT = 120


@pytest.fixture(scope="module")
def header():
    return metadata_load(SPACE / "README.md")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def test_the_entry_point_serves_the_model_that_the_variable_names(trained_directory, header, tmp_path):
    folder, home, port = tmp_path / "space", tmp_path / "home", free_port()
    shutil.copytree(SPACE, folder)
    own = {"IT3_MODEL": trained_directory, "GRADIO_SERVER_PORT": str(port), "HF_HOME": str(home)}
    environment = {**os.environ, **own, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("GRADIO_SERVER_NAME", None)
    with open(tmp_path / "errors.txt", "w+") as errors:
        process = subprocess.Popen(
            [sys.executable, header["app_file"]],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        deadline = threading.Timer(TIMEOUT, process.kill)
        deadline.start()
        try:
            address = next((line.split()[-1] for line in process.stdout if "Running on" in line), None)
            errors.seek(0)
            assert address == f"http://127.0.0.1:{port}", errors.read()
            direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with direct.open(address, timeout=TIMEOUT) as reply:
                assert reply.status == 200
                assert '"title":"Idempotent test-time training"' in reply.read().decode()
        finally:
            deadline.cancel()
            process.terminate()
            process.wait(TIMEOUT)
            process.stdout.close()
    assert not (home / "hf-it3").exists(), "it trained a model of its own"


def test_the_header_asks_for_versions_that_the_package_supports(header):
    assert header["sdk"] == "gradio"
    bound = next(Requirement(line) for line in requires("hf-it3") if Requirement(line).name == "gradio")
    assert header["sdk_version"] in bound.specifier
    tested = re.search(r"^gradio==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert header["sdk_version"] == tested
    assert header["python_version"] in Requirement(f"python{metadata('hf-it3')['Requires-Python']}").specifier


def test_the_header_is_one_that_the_hub_accepts(header):
    assert (SPACE / header["app_file"]).is_file()
    assert {header["colorFrom"], header["colorTo"]} <= COLOURS
    assert len(header["short_description"]) <= 60
    assert header["title"]
    assert header["license"] == "apache-2.0"


def test_the_requirements_bring_the_app_and_its_corruptions():
    lines = [line for line in (SPACE / "requirements.txt").read_text().splitlines() if line.strip()]
    requirements = {requirement.name: requirement for requirement in map(Requirement, lines)}
    assert requirements.keys() == {"hf-it3"}
    extras = requirements["hf-it3"].extras
    assert {"app", "eval"} <= extras <= set(metadata("hf-it3").get_all("Provides-Extra"))
