"""Files that are no images, in every tab of the app: a message for the visitor, and nothing raised on the server."""

import io

import pytest
from PIL import Image


pytest.importorskip("gradio", reason="the app needs the extra 'app'")

from gradio import FileData
from gradio.components.image_editor import EditorData

from hf_it3.app.interface import MESSAGES, Page, build_app
from hf_it3.app.served_model import ServedModel
from hf_it3.app.visitor_images import read_uploads


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><circle r="5"/></svg>'


def encoded(kind):
    buffer = io.BytesIO()
    Image.effect_noise((40, 40), 50).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


WRONG = {
    "circle.svg": SVG,
    "circle.png": SVG,
    "notes.txt": b"no image",
    "empty.png": b"",
    "half.png": encoded("PNG")[:300],
    "broken.webp": encoded("WEBP")[:40] + b"\xff" * 200,
    # Its reader raises IndexError.
    "short.qoi": b"qoif" + (5).to_bytes(4, "big") * 2 + b"\x03\x00",
}
# Reading it would start a program, which may be there.
EPS = {"page.eps": encoded("EPS")}


@pytest.fixture(scope="module")
def served(trained_directory):
    served = ServedModel(trained_directory)
    served.prepare()
    return served


@pytest.fixture(scope="module")
def sketchpad(served):
    return next(block for block in build_app(served).blocks.values() if getattr(block, "elem_id", None) == "drawing")


@pytest.fixture
def wrong_file(request, tmp_path):
    path = tmp_path / request.param
    path.write_bytes({**WRONG, **EPS}[request.param])
    return path


def answer(served, source, drawing=None, files=None):
    inputs = (source, 0, 4, drawing, files, "Nothing", None, 3)
    return Page(served).answer(None, *inputs, "batch", 1, 1e-3, 1, 0, True)


@pytest.mark.parametrize("wrong_file", WRONG, indirect=True)
@pytest.mark.parametrize("part", ["background", "composite"])
def test_in_the_drawing(served, sketchpad, wrong_file, part):
    payload = EditorData(**{part: FileData(path=str(wrong_file), orig_name=wrong_file.name)})
    drawing = sketchpad.preprocess(payload)
    with pytest.raises(MESSAGES):
        answer(served, "draw", drawing)
    # What lies on the canvas goes with every press of the button.
    answer(served, "sample", drawing)


@pytest.mark.parametrize("wrong_file", [*WRONG, *EPS], indirect=True)
def test_in_an_upload(served, wrong_file):
    with pytest.raises(ValueError, match=f"{wrong_file.name} is not an image that can be read"):
        answer(served, "upload", files=[str(wrong_file)])


def test_a_file_that_is_gone(served, tmp_path):
    with pytest.raises(ValueError, match="gone.png is not an image that can be read"):
        answer(served, "upload", files=[str(tmp_path / "gone.png")])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_what_cameras_and_screens_make_is_read(tmp_path, kind):
    path = tmp_path / f"picture.{kind.lower()}"
    path.write_bytes(encoded(kind))
    assert read_uploads([path])[0].size == (40, 40)
