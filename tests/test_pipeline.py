"""IT3Pipeline: what it accepts, who adapts with whom, what it returns, and what it says about bad input."""

import base64
import copy
import http.server
import io
import pickle
import threading
import warnings

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset
from transformers import ViTImageProcessor, pipeline
from transformers.pipelines.pt_utils import KeyDataset
from transformers.utils.logging import warning_once
from untouched import untouched

from hf_it3 import IT3Pipeline, TestTimeAdapter
from hf_it3.it3.shift_test_it3 import idempotence_distances


SHOWN = {"label", "score", "unadapted_score", "idempotence", "adapted", "averaged", "distance_shift", "feature_shift"}


TASK = "it3-image-classification"
COUNT = 7


@pytest.fixture
def classifier(trained_directory):
    return pipeline(TASK, model=trained_directory)


@pytest.fixture(scope="session")
def pictures(digits):
    """Seven test digits, brightened so that adaptation is called for."""
    return [
        Image.fromarray((np.asarray(image) * 0.6 + 100).astype(np.uint8)) for image in digits["test"]["image"][:COUNT]
    ]


@pytest.fixture
def pixels(classifier, pictures):
    return classifier.image_processor(images=pictures, return_tensors="pt").pixel_values


@pytest.fixture(scope="session")
def files(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for position, picture in enumerate(pictures):
        picture.save(folder / f"{position}.png")
    return [str(folder / f"{position}.png") for position in range(COUNT)]


@pytest.fixture(scope="session")
def urls(files):
    """The pictures on a loopback HTTP server."""
    folder = files[0].rpartition("/")[0]

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=folder, **kwargs)

        def log_message(self, *args):
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield [f"http://127.0.0.1:{server.server_port}/{position}.png" for position in range(COUNT)]
        server.shutdown()


def expected_scores(model, pixels, **settings) -> list[dict[str, float]]:
    """Scores by label, as an adapter of the model's gives them for these images together."""
    logits = TestTimeAdapter(model, **settings)(pixels).logits
    return [dict(zip(model.config.id2label.values(), row.softmax(-1).tolist(), strict=True)) for row in logits]


def assert_scores(results, expected):
    results = list(results)
    assert len(results) == len(expected)
    for result, scores in zip(results, expected, strict=True):
        assert [entry["score"] for entry in result] == sorted((entry["score"] for entry in result), reverse=True)
        for entry in result:
            assert entry["score"] == pytest.approx(scores[entry["label"]], abs=1e-5)


def encoded(path):
    with open(path, "rb") as file:
        return base64.b64encode(file.read()).decode()


class Rows(Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class Streamed(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


INPUTS = {
    "PIL images": lambda pictures, files, urls: pictures,
    "a tuple": lambda pictures, files, urls: tuple(pictures),
    "paths": lambda pictures, files, urls: files,
    "path objects": lambda pictures, files, urls: [__import__("pathlib").Path(file) for file in files],
    "URLs": lambda pictures, files, urls: urls,
    "base64": lambda pictures, files, urls: [encoded(file) for file in files],
    "arrays": lambda pictures, files, urls: [np.asarray(picture) for picture in pictures],
    "tensors": lambda pictures, files, urls: [torch.tensor(np.asarray(picture))[None] for picture in pictures],
    "one array": lambda pictures, files, urls: np.stack([np.asarray(picture)[..., None] for picture in pictures]),
    "one tensor": lambda pictures, files, urls: torch.tensor(np.stack([np.asarray(p)[None] for p in pictures])),
    "a mixture": lambda pictures, files, urls: [pictures[0], files[1], urls[2], np.asarray(pictures[3]), *files[4:]],
    "a data set": lambda pictures, files, urls: datasets.Dataset.from_dict(
        {"image": pictures, "label": list(range(COUNT))}, features=FEATURES
    ),
    "a data set with another column": lambda pictures, files, urls: datasets.Dataset.from_dict(
        {"picture": pictures}, features=datasets.Features({"picture": datasets.Image()})
    ),
    "a streamed data set": lambda pictures, files, urls: datasets.Dataset.from_dict(
        {"image": pictures, "label": list(range(COUNT))}, features=FEATURES
    ).to_iterable_dataset(),
    "a torch data set": lambda pictures, files, urls: Rows(pictures),
    "a torch data set of rows": lambda pictures, files, urls: Rows([{"image": picture} for picture in pictures]),
    "a streamed torch data set": lambda pictures, files, urls: Streamed(pictures),
    "a KeyDataset": lambda pictures, files, urls: KeyDataset(Rows([{"x": picture} for picture in pictures]), "x"),
    "a generator": lambda pictures, files, urls: (picture for picture in pictures),
    "an iterator": lambda pictures, files, urls: iter(pictures),
}
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})


class TestInputs:
    @pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)
    def test_every_collection_of_images_adapts_together_in_order(
        self, classifier, pictures, files, urls, pixels, make
    ):
        expected = expected_scores(classifier.model, pixels, gate=None)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_scores(classifier(make(pictures, files, urls), gate=None), expected)

    @pytest.mark.parametrize("kind", ["PIL", "path", "URL", "base64", "array", "tensor"])
    def test_every_kind_of_image_can_come_alone(self, classifier, pictures, files, urls, pixels, kind):
        array = np.asarray(pictures[0])
        given = {
            "PIL": pictures[0],
            "path": files[0],
            "URL": urls[0],
            "base64": encoded(files[0]),
            "array": array,
            "tensor": torch.tensor(array)[None],
        }[kind]
        result = classifier(given, gate=None)
        assert_scores([result], expected_scores(classifier.model, pixels[:1], gate=None))

    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "LA", "I;16", "I", "F"])
    def test_images_of_every_mode_are_read_as_grey(self, classifier, mode):
        grey = np.zeros((16, 16), np.uint8)
        grey[4:12, 6:9] = 255
        image = Image.fromarray(grey)
        if mode.startswith("I"):
            image = Image.fromarray(grey.astype(np.uint16 if mode == "I;16" else np.int32) * 257)
        else:
            image = image.convert(mode)
        scores = classifier(image, top_k=10, adapt=False)
        plain = classifier(Image.fromarray(grey), top_k=10, adapt=False)
        assert [entry["label"] for entry in scores][:3] == [entry["label"] for entry in plain][:3]
        assert scores[0]["score"] == pytest.approx(plain[0]["score"], abs=0.05)

    def test_tensors_may_need_gradients_or_be_of_half_precision(self, classifier, pictures):
        floats = torch.tensor(np.asarray(pictures[0]), dtype=torch.float32)[None]
        expected = classifier(floats, adapt=False)
        assert classifier(floats.clone().requires_grad_(), adapt=False) == expected
        assert classifier(floats.bfloat16(), adapt=False)[0]["label"] == expected[0]["label"]

    @pytest.mark.parametrize("stock", [False, True])
    def test_tensors_in_0_to_1_are_pictures_and_normalised_ones_are_refused(self, classifier, pictures, stock):
        if stock:
            size = {"height": 16, "width": 16}
            processor = ViTImageProcessor(size=size, image_mean=[0.3], image_std=[0.35])
            classifier = IT3Pipeline(model=classifier.model, image_processor=processor)
        tensors = [torch.tensor(np.asarray(picture))[None] for picture in pictures]
        expected = classifier(tensors, adapt=False)
        assert classifier([tensor / 255 for tensor in tensors], adapt=False) == expected
        normalised = [(tensor / 255 - 0.3) / 0.35 for tensor in tensors]
        with pytest.raises(ValueError, match=r"image 0 .* cannot be classified: values from .* before any normal"):
            classifier(normalised)

    def test_integers_of_0_and_1_are_said_to_be_nearly_black(self, classifier, pictures, caplog):
        warning_once.cache_clear()
        array = (np.asarray(pictures[0]) > 127).astype(np.uint8)
        assert classifier(array, adapt=False) == classifier(Image.fromarray(array), adapt=False)
        assert "nothing but 0 and 1" in caplog.text

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"batch_size": 0}, "batch_size=0 must be at least 1"),
            ({"top_k": 0}, "top_k=0 must be at least 1"),
            ({"adapt": "yes"}, "adapt='yes' must be True or False"),
        ],
    )
    def test_arguments_without_a_meaning_are_refused(self, classifier, pictures, arguments, message):
        with pytest.raises(ValueError, match=message):
            classifier(pictures, **arguments)
        with pytest.raises(ValueError, match=message):
            IT3Pipeline(model=classifier.model, image_processor=classifier.image_processor, **arguments)

    def test_images_keyword_is_understood_as_in_the_stock_pipeline(self, classifier, pictures):
        assert classifier(images=pictures[0]) == classifier(pictures[0])


class TestBatches:
    @pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
    @pytest.mark.parametrize("as_generator", [False, True])
    def test_images_adapt_in_groups_of_the_given_size(self, classifier, pictures, pixels, batch_size, as_generator):
        inputs = (picture for picture in pictures) if as_generator else pictures
        expected = [
            scores
            for part in pixels.split(batch_size)
            for scores in expected_scores(classifier.model, part, gate=None)
        ]
        assert_scores(classifier(inputs, adaptation_batch_size=batch_size, gate=None), expected)

    def test_the_default_size_is_the_models_own(self, trained_directory, pictures, pixels):
        classifier = pipeline(TASK, model=trained_directory)
        classifier.model.config.adaptation.batch_size = 4
        expected = [
            scores for part in pixels.split(4) for scores in expected_scores(classifier.model, part, gate=None)
        ]
        assert_scores(classifier(pictures, gate=None), expected)

    def test_the_size_can_be_given_with_the_pipeline(self, trained_directory, pictures, pixels):
        classifier = pipeline(TASK, model=trained_directory, adaptation_batch_size=2, gate=None)
        expected = [
            scores for part in pixels.split(2) for scores in expected_scores(classifier.model, part, gate=None)
        ]
        assert_scores(classifier(pictures), expected)

    @pytest.mark.parametrize("batch_size", [1, 2, 100])
    @pytest.mark.parametrize("settings", [{}, {"scope": "stream"}, {"scope": "image"}, {"adapt": False}])
    def test_batch_size_changes_no_answer(self, trained_directory, pictures, batch_size, settings):
        settings = settings if "adapt" in settings else {"gate": None, **settings}
        one, other, third = (pipeline(TASK, model=trained_directory) for _ in range(3))
        expected = [{entry["label"]: entry["score"] for entry in entries} for entries in one(pictures, **settings)]
        assert_scores(other(pictures, batch_size=batch_size, **settings), expected)
        assert_scores(third((picture for picture in pictures), batch_size=batch_size, **settings), expected)

    def test_a_list_of_one_image_is_answered_with_a_list(self, classifier, pictures):
        assert classifier(pictures[:1], gate=None) == [classifier(pictures[0], gate=None)]

    def test_a_call_does_not_remember_the_one_before(self, classifier, pictures):
        first = classifier(pictures, gate=None)
        classifier(pictures[:2], gate=None)
        assert classifier(pictures, gate=None) == first


class TestSettings:
    def test_without_adaptation_the_plain_model_answers(self, classifier, pictures, pixels):
        with torch.no_grad():
            probabilities = classifier.model(pixels).logits.softmax(-1)
        results = classifier(pictures, adapt=False, top_k=1)
        for result, row in zip(results, probabilities, strict=True):
            assert result[0]["score"] == pytest.approx(row.max().item(), abs=1e-6)
        assert (
            pipeline(TASK, model=classifier.model, image_processor=classifier.image_processor, adapt=False)(
                pictures, top_k=1
            )
            == results
        )

    def test_without_adaptation_a_model_in_training_answers_as_in_eval(self, batch_norm_model, processor, pictures):
        classifier = IT3Pipeline(model=batch_norm_model, image_processor=processor)
        expected = classifier(pictures, adapt=False)
        batch_norm_model.train()
        with untouched(batch_norm_model):
            assert classifier(pictures, adapt=False) == expected
            apart = classifier(pictures, adapt=False, batch_size=1)
        for ours, theirs in zip(apart, expected, strict=True):
            assert [entry["label"] for entry in ours] == [entry["label"] for entry in theirs]
            assert ours[0]["score"] == pytest.approx(theirs[0]["score"], abs=1e-5)
        with torch.no_grad():
            for parameter in batch_norm_model.parameters():
                parameter.mul_(1.1)
        changed = classifier(pictures, adapt=False)
        assert changed != expected
        batch_norm_model.double().eval()
        batch_norm_model.float()
        assert classifier(pictures, adapt=False) == changed

    def test_a_configuration_that_asks_for_tuples_changes_no_answer(self, classifier, pictures, pixels):
        settings = [{"adapt": False}, {"gate": None}]
        expected = [classifier(pictures, **setting) for setting in settings]
        distances = idempotence_distances(classifier.model, pixels)
        classifier.model.config.return_dict = False
        assert [classifier(pictures, **setting) for setting in settings] == expected
        assert torch.equal(idempotence_distances(classifier.model, pixels), distances)

    def test_classes_of_the_same_name_keep_their_own_unadapted_scores(self, classifier, pictures, pixels):
        classifier.model.config.id2label = {index: "crane" if index < 3 else str(index) for index in range(10)}
        for entry in classifier(pictures[0], adapt=False, return_unadapted=True, top_k=None):
            assert entry["unadapted_score"] == entry["score"]
        output = TestTimeAdapter(classifier.model, gate=None, learning_rate=3e-3)(pixels)
        pairs = torch.stack([output.logits.softmax(-1), output.initial_logits.softmax(-1)], -1)
        results = classifier(pictures, gate=None, learning_rate=3e-3, return_unadapted=True, top_k=None)
        for result, expected in zip(results, pairs.tolist(), strict=True):
            ours = [[entry["score"], entry["unadapted_score"]] for entry in result]
            torch.testing.assert_close(torch.tensor(sorted(ours)), torch.tensor(sorted(expected)))

    def test_overrides_hold_for_one_call_or_for_the_pipeline(self, trained_directory, pictures, pixels):
        classifier = pipeline(TASK, model=trained_directory, num_steps=2, gate=None)
        model = classifier.model
        expected = expected_scores(model, pixels, gate=None, num_steps=2)
        assert_scores(classifier(pictures), expected)
        assert_scores(
            classifier(pictures, learning_rate=1e-2),
            expected_scores(model, pixels, gate=None, num_steps=2, learning_rate=1e-2),
        )
        assert_scores(classifier(pictures), expected)

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ({"num_step": 3}, "no field 'num_step'.*did you mean 'num_steps'"),
            ({"adaptation_batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
            ({"num_steps": -3}, "num_steps must be an integer >= 0 or None, got -3"),
            ({"scope": "all"}, "scope must be one of .* got 'all'"),
        ],
    )
    def test_wrong_overrides_are_refused_before_any_image_is_read(self, classifier, override, message):
        with pytest.raises(ValueError, match=message):
            classifier(["no-such-file.png"], **override)

    def test_a_single_image_says_that_it_was_averaged_and_not_adapted_to(self, classifier, pictures):
        entry = classifier(pictures[0], return_idempotence=True)[0]
        assert (entry["adapted"], entry["averaged"]) == (False, True)

    def test_settings_of_a_call_act_beside_those_of_the_pipeline(self, classifier, pictures):
        stream = IT3Pipeline(
            model=classifier.model, image_processor=classifier.image_processor, scope="stream", gate_window=8
        )
        assert len(stream(pictures, gate_window=4)) == len(pictures)
        with pytest.raises(ValueError, match="single_image='batch' cannot act in scope 'stream'"):
            stream(pictures, single_image="batch")

    def test_a_stream_goes_on_whatever_number_of_images_adapts_together(self, classifier, pictures):
        for size in (2, 3):
            classifier(pictures[:6], scope="stream", gate=None, adaptation_batch_size=size)
        assert classifier.adapter(scope="stream", gate=None).stream.num_images == 12

    @pytest.mark.parametrize(("top_k", "count"), [(1, 1), (3, 3), (None, 10), (99, 10)])
    def test_top_k_limits_the_classes(self, classifier, pictures, top_k, count):
        assert len(classifier(pictures[0], top_k=top_k)) == count

    def test_by_default_the_best_five_classes_are_returned(self, classifier, pictures):
        assert len(classifier(pictures[0])) == 5

    @pytest.mark.parametrize(
        ("function", "apply"),
        [("softmax", lambda x: x.softmax(-1)), ("sigmoid", torch.sigmoid), ("none", lambda x: x)],
    )
    def test_the_function_that_makes_scores_can_be_chosen(self, classifier, pictures, pixels, function, apply):
        with torch.no_grad():
            expected = apply(classifier.model(pixels[:1]).logits[0]).max().item()
        result = classifier(pictures[0], adapt=False, function_to_apply=function)
        assert result[0]["score"] == pytest.approx(expected, abs=1e-5)

    def test_distances_and_unadapted_scores_are_returned_on_request(self, classifier, pictures, pixels):
        output = TestTimeAdapter(classifier.model, gate=None)(pixels)
        before = output.initial_logits.softmax(-1)
        results = classifier(pictures, gate=None, return_idempotence=True, return_unadapted=True)
        for position, result in enumerate(results):
            for entry in result:
                assert entry.keys() == SHOWN
                assert entry["adapted"] is True
                assert entry["idempotence"] == pytest.approx(output.idempotence[position].item(), abs=1e-5)
                label = classifier.model.config.label2id[entry["label"]]
                assert entry["unadapted_score"] == pytest.approx(before[position, label].item(), abs=1e-5)
        assert classifier(pictures, gate=1e6, return_idempotence=True)[0][0]["adapted"] is False
        assert classifier(pictures[0])[0].keys() == {"label", "score"}

    def test_the_loss_before_each_step_is_returned_on_request(self, classifier, pictures, pixels):
        settings = {"gate": None, "num_steps": 3}
        together = classifier(pictures, return_loss_history=True, **settings)
        expected = TestTimeAdapter(classifier.model, **settings)(pixels).loss_history.tolist()
        assert len(expected) == 3
        for result in together:
            assert all(entry["loss_history"] == pytest.approx(expected, abs=1e-5) for entry in result)
        settings |= {"scope": "image"}
        apart = classifier(pictures, return_loss_history=True, **settings)
        expected = TestTimeAdapter(classifier.model, **settings)(pixels).loss_history
        for position, result in enumerate(apart):
            assert result[0]["loss_history"] == pytest.approx(expected[:, position].tolist(), abs=1e-5)
        assert "loss_history" not in classifier(pictures, **settings)[0][0]
        assert "loss_history" not in classifier(pictures, adapt=False, return_loss_history=True)[0][0]

    def test_images_that_take_no_step_have_an_empty_loss_history(self, classifier, pictures, pixels):
        for settings in ({"gate": 1e6}, {"scope": "average", "augmentations": 4}):
            results = classifier(pictures, return_loss_history=True, **settings)
            assert [result[0]["loss_history"] for result in results] == [[]] * len(pictures)
        # Where each image adapts alone, some pass the gate and others do not.
        seen = TestTimeAdapter(classifier.model, scope="image", gate=1e6)(pixels)
        gate = seen.distance_shift.maximum(seen.feature_shift).median().item()
        alone = {"scope": "image", "num_steps": 2, "gate": gate}
        results = classifier(pictures, return_loss_history=True, return_idempotence=True, **alone)
        steps = [(result[0]["adapted"], len(result[0]["loss_history"])) for result in results]
        assert set(steps) == {(True, 2), (False, 0)}

    def test_flags_can_be_given_with_the_pipeline(self, trained_directory, pictures):
        classifier = pipeline(TASK, model=trained_directory, return_unadapted=True, top_k=2)
        assert [entry.keys() for entry in classifier(pictures[0])] == [{"label", "score", "unadapted_score"}] * 2


class TestStream:
    def test_the_stream_lives_on_from_call_to_call_until_it_is_reset(self, classifier, pictures, pixels):
        settings = {"scope": "stream", "gate": None, "learning_rate": 1e-3}
        first = classifier(pictures, **settings)
        second = classifier(pictures, **settings)
        assert first != second
        adapter = TestTimeAdapter(classifier.model, **settings)
        adapter(pixels)
        torch.testing.assert_close(
            adapter(pixels).logits, classifier.adapter(**settings).adapted_model()(pixels).logits
        )
        classifier.adapter(**settings).reset()
        assert classifier(pictures, **settings) == first

    def test_calls_with_other_settings_in_between_do_not_end_it(self, trained_directory, pictures):
        settings = {"scope": "stream", "gate": None, "learning_rate": 1e-3}
        undisturbed, classifier = (pipeline(TASK, model=trained_directory) for _ in range(2))
        expected = [undisturbed(pictures, **settings) for _ in range(2)]
        results = [classifier(pictures, **settings)]
        for steps in range(8):
            classifier(pictures, num_steps=steps, gate=None)
        results.append(classifier(pictures, **settings))
        assert results == expected

    def test_the_streams_of_the_settings_used_last_are_kept(self, classifier, pictures):
        settings = [{"scope": "stream", "gate": None, "learning_rate": rate * 1e-4} for rate in range(1, 7)]
        adapters = [classifier.adapter(**setting) for setting in settings[:4]]
        assert classifier.adapter(**settings[0]) is adapters[0]
        classifier.adapter(**settings[4])
        assert [classifier.adapter(**settings[index]) is adapters[index] for index in (0, 2, 3)] == [True] * 3
        assert classifier.adapter(**settings[1]) is not adapters[1]
        for setting in settings:
            classifier.adapter(**setting)
            classifier.adapter(**setting, num_steps=1)
        assert len(classifier._adapters) == 4

    def test_the_models_own_settings_may_say_stream(self, classifier, pictures):
        classifier.model.config.adaptation = classifier.model.config.adaptation.replace(scope="stream", gate=None)
        assert classifier(pictures) != classifier(pictures)


class TestBadInput:
    @pytest.fixture
    def broken(self, files, tmp_path):
        """Files that are no images, by name."""
        with open(files[0], "rb") as file:
            whole = file.read()
        contents = {
            "corrupt.png": whole[:40] + bytes(40) + whole[80:],
            "truncated.png": whole[: len(whole) - 30],
            "text.png": b"this is text\n" * 20,
            "empty.png": b"",
        }
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
        large = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(large, "JPEG")
        (tmp_path / "truncated.jpg").write_bytes(large.getvalue()[:700])
        return tmp_path

    @pytest.mark.parametrize(
        "name", ["corrupt.png", "truncated.png", "truncated.jpg", "text.png", "empty.png", "missing.png"]
    )
    def test_a_file_that_is_no_image_is_named_with_its_position(self, classifier, pictures, broken, name):
        for inputs, where in (([*pictures[:2], str(broken / name)], "image 2"), (str(broken / name), "image")):
            with pytest.raises(ValueError) as error:
                classifier(inputs)
            assert str(error.value).startswith(f"{where} (")
            assert name in str(error.value)
            assert "\n" not in str(error.value)

    def test_in_a_generator_the_images_before_it_are_answered(self, classifier, pictures):
        results = iter(classifier((image for image in [*pictures[:4], "missing.png"]), adaptation_batch_size=2))
        assert len([next(results) for _ in range(4)]) == 4
        with pytest.raises(ValueError, match=r"^image 4 \('missing.png'\) cannot be classified"):
            next(results)

    def test_paths_that_are_no_files_are_called_that(self, classifier, pictures, tmp_path):
        with pytest.raises(ValueError, match=r"^image 1 \(.*missing\.JPEG'\) cannot be .*: there is no such file"):
            classifier([pictures[0], str(tmp_path / "missing.JPEG")])
        with pytest.raises(ValueError, match="cannot be classified: it is a folder; give the files in it"):
            classifier(str(tmp_path))

    @pytest.mark.parametrize("path", ["missing.png", "../nowhere"])
    def test_a_url_that_leads_nowhere_is_named(self, classifier, urls, path):
        url = urls[0].rpartition("/")[0] + "/" + path
        with pytest.raises(ValueError, match=rf"^image 1 \('{url}'\) cannot be classified"):
            classifier([urls[0], url])

    def test_a_server_that_does_not_answer_is_named(self, classifier):
        with http.server.HTTPServer(("127.0.0.1", 0), None) as server:
            url = f"http://127.0.0.1:{server.server_port}/x.png"
        with pytest.raises(ValueError, match=rf"^image 0 \('{url}'\) cannot be classified"):
            classifier([url], timeout=5)

    @pytest.mark.parametrize(
        ("image", "given"),
        [
            (np.zeros((5, 16, 16), np.uint8), r"ndarray of shape \(5, 16, 16\)"),
            (np.zeros(16, np.uint8), r"ndarray of shape \(16,\)"),
            (torch.zeros(2, 3, 16, 16), r"Tensor of shape \(2, 3, 16, 16\)"),
            (None, "NoneType"),
            (7, "int"),
            (b"bytes", "bytes"),
            ({"text": "no image"}, "dict"),
            ("file:///tmp/x.png", "'file:///tmp/x.png'"),
        ],
    )
    def test_anything_that_is_no_image_is_described_with_its_position(self, classifier, pictures, image, given):
        with pytest.raises(ValueError, match=rf"^image 1 \({given}\) cannot be classified: "):
            classifier([pictures[0], image])

    @pytest.mark.parametrize("nothing", [[], (), np.zeros((0, 16, 16, 1), np.uint8)])
    def test_an_empty_list_is_refused(self, classifier, nothing):
        with pytest.raises(ValueError, match="the list of images is empty"):
            classifier(nothing)

    def test_no_input_is_refused(self, classifier):
        with pytest.raises(ValueError, match="the pipeline needs images"):
            classifier()

    def test_without_an_image_processor_it_asks_for_one(self, model, pictures):
        with pytest.raises(ValueError, match="the pipeline has no image processor; pass image_processor="):
            IT3Pipeline(model=model)(pictures[0])

    def test_a_data_set_with_splits_is_refused(self, classifier, digits):
        with pytest.raises(ValueError, match="the data set has the splits train, test; pass one of them"):
            classifier(digits)

    def test_a_model_that_takes_no_signal_is_refused(self, model, classifier):
        with pytest.raises(
            ValueError, match="IT3CNNForImageClassification takes no label signal; .* or use the stock"
        ):
            IT3Pipeline(model=model.backbone, image_processor=classifier.image_processor)


def test_the_model_stays_as_it_is(classifier, pictures):
    with untouched(classifier.model):
        for scope in ("batch", "image", "stream"):
            classifier(pictures, scope=scope, gate=None)
        classifier(pictures[0], gate=None)


def test_it_can_be_called_from_several_threads(classifier, pictures):
    from concurrent.futures import ThreadPoolExecutor

    jobs = [{"gate": None, "num_steps": steps} for steps in (1, 2, 3)] * 2 + [{"adapt": False}]
    expected = [classifier(pictures, top_k=None, **settings) for settings in jobs]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda settings: classifier(pictures, top_k=None, **settings), jobs))
    # Threads of one's own compute with another number of threads, so in another order.
    for ours, theirs in zip(answers, expected, strict=True):
        torch.testing.assert_close(_scores(ours), _scores(theirs), rtol=1e-4, atol=1e-5)


def _scores(answers):
    return torch.tensor([[classes["score"] for classes in sorted(image, key=str)] for image in answers])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda classifier: pickle.loads(pickle.dumps(classifier))])
def test_it_can_be_copied_and_pickled_without_its_streams(classifier, pictures, copied):
    settings = {"scope": "stream", "gate": None}
    first = classifier(pictures, **settings)
    again = copied(classifier)
    assert again(pictures, **settings) == first
    assert again.adapter(**settings).model is again.model
