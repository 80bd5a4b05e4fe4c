"""The app of `hf-it3 app` and of the Space: in a real browser, and its parts alone."""

import threading

import numpy as np
import pytest
import space_fixtures
import torch
from PIL import Image
from space_fixtures import adapt, soon, visit


pytest.importorskip("gradio", reason="the app needs the extra 'app'")

from hf_it3.app import launch
from hf_it3.app.answers import classify
from hf_it3.app.interface import Page
from hf_it3.app.rendering import distances_figure, losses_figure, picture, scores
from hf_it3.app.sample_images import SampleImages
from hf_it3.app.served_model import ServedModel
from hf_it3.app.visitor_images import MAX_IMAGES, MAX_PIXELS, is_blank, read_drawing, read_uploads
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


def spoil(page, suite, corruption=None):
    page.locator("#suite").get_by_label(suite, exact=True).click()
    if corruption is None:
        page.locator("#corruption").wait_for(state="hidden")
    else:
        page.locator("#corruption").get_by_label(corruption, exact=True).click()


def test_a_worked_example_is_on_the_screen_when_a_visitor_comes(browser, address):
    with visit(browser, address) as page:
        soon(page.locator("#result")).to_contain_text("Right before: ")
        after = page.locator("#after h2").inner_text()
        soon(page.locator("#before h2")).not_to_have_text(after)
        soon(page.locator("#truth")).to_have_text(f"The right answer is {after}.")
        for picture in ("#original img", "#spoiled img", "#distances img", "#losses img"):
            soon(page.locator(picture)).to_be_visible()
        soon(page.locator("#suite input:checked")).to_have_value("Digits")
        soon(page.locator("#corruption input:checked")).to_have_value("digits-shift/brightness")
        assert page.get_by_role("link", name="paper").get_attribute("href").startswith("https://arxiv.org/abs/")


def test_a_visitor_picks_a_digit_adds_noise_and_sees_the_scores_change(browser, address):
    with visit(browser, address) as page:
        page.locator("#samples button").nth(3).click()
        spoil(page, "Digits", "noise 2")
        scores = adapt(page)
        assert 5 <= len(scores) <= 10
        for column in (0, 1):
            values = [pair[column] for pair in scores.values() if pair[column] is not None]
            assert len(values) == 5
            assert 0.5 < sum(values) < 1.001
        soon(page.locator("#batch img")).to_have_count(32)
        soon(page.locator("#batch .caption-label")).to_have_count(32)
        page.get_by_label("MNIST-C").click()
        page.locator("#corruption").get_by_label("zigzag").wait_for()
        soon(page.locator("#severity")).to_be_visible()


def test_without_corruption_the_gate_stays_closed_and_scores_are_equal(browser, address):
    with visit(browser, address) as page:
        spoil(page, "Nothing")
        scores = adapt(page)
        assert all(before == after for before, after in scores.values())
        soon(page.locator("#result")).to_contain_text("Not adapted")
        soon(page.locator("#spoiled")).to_be_hidden()
        soon(page.locator("#losses")).to_be_hidden()
        soon(page.locator("body")).to_contain_text("No optimizer steps were taken.")


def test_a_drawing_is_classified_as_it_is(browser, address):
    with visit(browser, address) as page:
        page.get_by_role("tab", name="Draw").click()
        page.locator("#corruption").wait_for(state="hidden")
        soon(page.locator("#suite input:checked")).to_have_value("Nothing")
        adapt(page)
        soon(page.locator("[role=alert]")).to_contain_text("Draw a digit first")
        canvas = page.locator("#drawing canvas").first
        canvas.wait_for()
        soon(page.locator("[role=alert]")).to_be_visible()  # still, although the canvas reports that it is there
        box = canvas.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y - 60)
        page.mouse.down()
        page.mouse.move(x, y + 60, steps=4)
        page.mouse.up()
        assert len(adapt(page)) >= 5
        page.get_by_role("tab", name="Test image").click()
        page.locator("#corruption").wait_for()
        soon(page.locator("#corruption input:checked")).to_have_value("digits-shift/brightness")


def test_uploads_adapt_as_one_batch_and_what_was_wrong_with_a_file_goes_with_the_next(
    browser, address, digits, tmp_path
):
    paths = []
    for position in range(3):
        paths.append(tmp_path / f"digit{position}.png")
        digits["test"][position]["image"].save(paths[-1])
    with visit(browser, address) as page:
        page.get_by_role("tab", name="Upload").click()
        page.locator("#upload input[type=file]").set_input_files([str(path) for path in paths])
        page.get_by_text("digit2").wait_for()
        adapt(page)
        soon(page.locator("#batch img")).to_have_count(3)
        text = tmp_path / "notes.png"
        text.write_text("no image")
        page.get_by_label("Clear").first.click()
        page.locator("#upload input[type=file]").set_input_files(str(text))
        page.get_by_text("notes").wait_for()
        adapt(page)
        soon(page.locator("[role=alert]")).to_contain_text("notes.png is not an image")
        # Left out of the files, so that the next answer is about what can be read.
        soon(page.get_by_label("Clear")).to_have_count(0)
        page.locator("#upload input[type=file]").set_input_files(str(paths[0]))
        page.locator("[role=alert]").wait_for(state="hidden")
        assert len(adapt(page)) >= 5


def test_an_answer_is_not_taken_for_that_to_what_is_chosen_after_it(browser, address):
    with visit(browser, address) as page:
        adapt(page)
        soon(page.locator("#message")).to_be_hidden()
        page.get_by_label("blur", exact=True).click()
        soon(page.locator("#message")).to_have_text("Press Adapt for the answer to what you chose.")
        adapt(page)
        soon(page.locator("#message")).to_be_hidden()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_width_in_light_and_dark_and_the_answer_stands_under_the_button(browser, address, width):
    for theme in ("light", "dark"):
        with visit(browser, address, width=width, color_scheme=theme) as page:
            adapt(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            soon(page.locator("#batch .caption-label")).to_have_count(32)
            right = "all => Math.max(...all.map(one => one.getBoundingClientRect().right))"
            assert page.locator("#batch .caption-label").evaluate_all(right) <= width, "images are cut off"
            cut = "all => all.filter(one => one.scrollWidth > one.clientWidth).map(one => one.textContent)"
            assert page.locator("#batch .caption-label").evaluate_all(cut) == []
            colour = page.evaluate("getComputedStyle(document.querySelector('.it3 h3')).color")
            brightness = sum(int(part) for part in colour.strip("rgb()").split(",")[:3])
            assert (brightness > 384) == (theme == "dark")
            if width == 390:
                # Both at once, because the page scrolls to the answer.
                bottom, top = page.evaluate(
                    "[document.querySelector('#adapt').getBoundingClientRect().bottom,"
                    " document.querySelector('[data-testid=result]').getBoundingClientRect().top]"
                )
                assert 0 <= top - bottom < 40


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
    shown = scores(result.answers[0], result.answers[0].before)
    assert len(shown) == 10
    assert {"crane", "crane (2)", "crane (3)"} <= shown.keys()
    assert sum(shown.values()) == pytest.approx(1)


def test_the_gate_that_is_drawn_is_the_one_that_decides(served, bright, digits):
    clean = classify(served.classifier(), served.read(digits["test"]["image"][:32]))
    shifted = classify(served.classifier(), bright)
    lower = classify(served.classifier(), bright, gate=2.0)
    assert clean.looked_at <= clean.gate
    assert lower.looked_at > lower.gate
    for result in (clean, shifted, lower):
        assert (result.looked_at > result.gate) == (result.shifts["idempotence distance"] > result.limit)
    assert not any(answer.adapted for answer in clean.answers)
    assert all(answer.adapted for answer in shifted.answers)
    assert len(shifted.losses) == 5


def test_the_figures_show_the_gate_the_distances_and_the_loss_of_each_step(served, bright):
    result = classify(served.classifier(), bright)
    (axis,) = distances_figure(result, served.clean).axes
    told = [text.get_text() for text in axis.get_legend().get_texts()]
    assert told == [
        "500 clean test images",
        f"mean of the images: {result.looked_at:.3f}",
        f"gate: {result.gate:.3f}",
    ]
    ticks = axis.lines[0].get_xdata()
    assert list(ticks) == [answer.distance for answer in result.answers]
    (axis,) = losses_figure(result).axes
    assert list(axis.lines[0].get_ydata()) == result.losses


def test_the_example_is_one_that_adaptation_put_right_and_is_worked_once(served):
    page = Page(served)
    result, originals, picked = page.example()
    first = result.answers[0]
    assert first.truth == served.samples.truths[picked]
    assert first.top_before != first.truth == first.top_after
    assert not torch.equal(first.pixels, originals[0])
    assert len(result.answers) == 32
    assert page.example()[0] is result


@pytest.mark.parametrize(("side", "shown"), [(8, 112), (28, 112), (100, 100), (300, 112)])
def test_small_pictures_are_enlarged_and_large_ones_shrunk(side, shown):
    pixels = torch.rand(1, side, side)
    image = picture(pixels, 112)
    assert image.size == (shown, shown)
    if side < 100:
        factor = shown // side
        assert np.array_equal(np.asarray(image)[::factor, ::factor], (255 * pixels[0]).round().byte().numpy())


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
    assert not is_blank({"composite": canvas})


@pytest.mark.parametrize("drawing", [None, {"composite": None}, {"composite": Image.new("RGB", (280, 280), "white")}])
def test_a_blank_drawing_is_not_read(drawing):
    assert is_blank(drawing)
    with pytest.raises(ValueError, match="Draw a digit"):
        read_drawing(drawing)


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
