"""The app of `hf-it3 app` and of the Space: in a real browser, and its parts alone."""

import threading

import numpy as np
import pytest
import space_fixtures
import torch
from PIL import Image
from space_fixtures import adapt, visit


pytest.importorskip("gradio", reason="the app needs the extra 'app'")

from hf_it3.app import launch
from hf_it3.app.answers import classify
from hf_it3.app.rendering import render_result
from hf_it3.app.sample_images import SampleImages
from hf_it3.app.served_model import ServedModel
from hf_it3.app.visitor_images import MAX_IMAGES, MAX_PIXELS, read_drawing, read_uploads
from hf_it3.cli import main


browser = space_fixtures.browser


@pytest.fixture(scope="module")
def served(trained_directory):
    served = ServedModel(trained_directory)
    served.prepare()
    return served


@pytest.fixture
def bright(served, digits):
    return (served.read(digits["test"]["image"][:32]) + 0.4).clamp(0, 1)


@pytest.fixture(scope="module")
def address(trained_directory):
    app = launch(trained_directory, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    yield app.local_url.rstrip("/")
    app.close()


def choose(page, corruption):
    box = page.locator("#corruption input")
    box.fill(corruption)
    page.get_by_role("option", name=corruption, exact=True).click()


def test_a_visitor_picks_a_digit_adds_noise_and_sees_the_bars_change(browser, address):
    with visit(browser, address) as page:
        page.locator("#samples button").nth(3).click()
        choose(page, "digits-shift/noise_2")
        bars = adapt(page)
        assert len(bars) == 10
        assert sum(before for before, _ in bars.values()) == pytest.approx(1, abs=0.01)
        assert sum(after for _, after in bars.values()) == pytest.approx(1, abs=0.01)
        assert max(abs(before - after) for before, after in bars.values()) > 0.001
        widths = page.locator(".bar .after").evaluate_all("all => all.map(bar => parseFloat(bar.style.width))")
        assert widths == pytest.approx([100 * after for _, after in bars.values()], abs=0.1)
        assert "gate" in page.locator("svg[aria-label='idempotence distances']").text_content()
        assert page.locator("svg[aria-label='loss per step'] circle").count() == 5


def test_without_corruption_the_gate_stays_closed_and_bars_are_equal(browser, address):
    with visit(browser, address) as page:
        choose(page, "none")
        bars = adapt(page)
        assert all(before == after for before, after in bars.values())
        assert "Not adapted" in page.locator("#result").inner_text()


def test_a_drawing_is_classified(browser, address):
    with visit(browser, address) as page:
        page.get_by_role("tab", name="Draw").click()
        adapt(page)
        assert "Draw a digit first" in page.locator("[role=alert]").inner_text()
        canvas = page.locator("#drawing canvas").first
        canvas.wait_for()
        box = canvas.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y - 60)
        page.mouse.down()
        page.mouse.move(x, y + 60, steps=10)
        page.mouse.up()
        choose(page, "none")
        bars = adapt(page)
        assert len(bars) == 10


def test_uploads_adapt_as_one_batch_and_wrong_files_get_a_message(browser, address, digits, tmp_path):
    paths = []
    for position in range(3):
        paths.append(tmp_path / f"digit{position}.png")
        digits["test"][position]["image"].save(paths[-1])
    with visit(browser, address) as page:
        page.get_by_role("tab", name="Upload").click()
        page.locator("#upload input[type=file]").set_input_files([str(path) for path in paths])
        page.get_by_text("digit2").wait_for()
        adapt(page)
        assert page.locator(".card").count() == 3
        text = tmp_path / "notes.png"
        text.write_text("no image")
        page.get_by_label("Clear").first.click()
        page.locator("#upload input[type=file]").set_input_files(str(text))
        page.get_by_text("notes").wait_for()
        adapt(page)
        assert "notes.png is not an image" in page.locator("[role=alert]").inner_text()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_width_in_light_and_dark(browser, address, width):
    for theme in ("light", "dark"):
        with visit(browser, address, viewport={"width": width, "height": 844}, color_scheme=theme) as page:
            adapt(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            colour = page.evaluate("getComputedStyle(document.querySelector('.it3 h3')).color")
            brightness = sum(int(part) for part in colour.strip("rgb()").split(",")[:3])
            assert (brightness > 384) == (theme == "dark")


def test_visitors_do_not_disturb_each_other(served, bright):
    before = {name: value.clone() for name, value in served.model.state_dict().items()}
    settings = {"scope": "stream", "gate": None}
    alone = classify(served.classifier(), bright, **settings)

    ours, theirs = served.classifier(), served.classifier()
    answers = {}

    def visit_often():
        for _ in range(3):
            classify(theirs, 1 - bright, **settings)

    neighbour = threading.Thread(target=visit_often)
    neighbour.start()
    answers["ours"] = classify(ours, bright, **settings)
    neighbour.join()
    assert [a.after for a in answers["ours"].answers] == [a.after for a in alone.answers]
    assert all(torch.equal(value, before[name]) for name, value in served.model.state_dict().items())


def test_a_stream_remembers_within_one_visit(served, bright):
    classifier = served.classifier()
    first = classify(classifier, bright, scope="stream", gate=None)
    second = classify(classifier, bright, scope="stream", gate=None)
    assert first.answers[0].after != second.answers[0].after
    assert first.answers[0].before == second.answers[0].before


def test_classes_of_the_same_name_have_a_bar_each(trained_directory, bright):
    served = ServedModel(trained_directory)
    served.prepare()
    served.model.config.id2label = {index: "crane" if index < 3 else str(index) for index in range(10)}
    result = classify(served.classifier(), bright[:4], gate=None)
    for answer in result.answers:
        assert answer.labels.count("crane") == 3
        assert sum(answer.before) == pytest.approx(1)
        assert sum(answer.after) == pytest.approx(1)
    assert render_result(result, []).count('data-label="crane"') == 3


def test_the_gate_that_is_drawn_is_the_one_that_decides(served, bright, digits):
    clean = classify(served.classifier(), served.read(digits["test"]["image"][:32]))
    shifted = classify(served.classifier(), bright)
    assert clean.looked_at <= clean.gate
    assert not any(answer.adapted for answer in clean.answers)
    assert shifted.looked_at > shifted.gate
    assert all(answer.adapted for answer in shifted.answers)
    assert len(shifted.losses) == 5


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "huge.png"
    side = int(MAX_PIXELS**0.5) + 1000
    Image.new("1", (side, side)).save(path)
    with pytest.raises(ValueError, match=rf"huge.png has {side} x {side} pixels"):
        read_uploads([path])


def test_broken_and_too_many_files_are_refused_by_name(tmp_path):
    path = tmp_path / "half.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ValueError, match="half.jpg is not an image"):
        read_uploads([path])
    with pytest.raises(ValueError, match=f"at most {MAX_IMAGES}"):
        read_uploads([path] * (MAX_IMAGES + 1))
    with pytest.raises(ValueError, match="Upload an image first"):
        read_uploads([])


def test_a_drawing_is_turned_to_white_on_black_and_centred():
    canvas = Image.new("RGB", (280, 280), "white")
    canvas.paste("black", (10, 10, 30, 110))
    digit = np.asarray(read_drawing({"composite": canvas}), dtype=float)
    assert digit[0, 0] == 0
    assert digit[32, 32] == 255
    assert digit.sum(0).argmax() == pytest.approx(32, abs=6)
    with pytest.raises(ValueError, match="Draw a digit"):
        read_drawing({"composite": Image.new("RGB", (280, 280), "white")})


def test_a_drawing_gets_the_margin_of_the_test_images(served):
    assert served.samples.margin == pytest.approx(0, abs=0.1)
    framed = Image.new("L", (28, 28))
    framed.paste(255, (4, 8, 24, 18))
    samples = SampleImages([framed])
    assert samples.margin == pytest.approx(0.2)
    canvas = Image.new("RGB", (280, 280), "white")
    canvas.paste("black", (10, 10, 30, 110))
    rows = np.asarray(read_drawing(canvas, samples.margin)).max(1) > 128
    assert rows.sum() == pytest.approx(64 / 1.4, abs=2)


def test_the_default_model_is_trained_once_and_found_again(tmp_path):
    served = ServedModel(cache_dir=tmp_path / "model", num_epochs=1)
    served.prepare()
    assert served.error is None
    assert served.progress == 1
    again = ServedModel(cache_dir=tmp_path / "model", num_epochs=1)
    stamp = (tmp_path / "model" / "config.json").stat().st_mtime_ns
    again.prepare()
    assert (tmp_path / "model" / "config.json").stat().st_mtime_ns == stamp
    assert len(again.clean) == 500
    assert sorted(again.model.config.id2label.values()) == [str(digit) for digit in range(10)]


def test_a_model_that_is_not_there_is_an_error_of_one_line(capsys, tmp_path):
    assert main(["app", str(tmp_path / "nothing")]) == 2
    message = capsys.readouterr().err.strip()
    assert "nothing" in message
    assert len(message.splitlines()) == 1
