"""The figures of a robustness evaluation are those of the plain computation, whatever the way they are come by."""

import json

import datasets
import numpy as np
import pytest
import torch
from clean_statistics import with_clean_statistics
from PIL import Image
from transformers import EfficientNetImageProcessor
from transformers.utils import logging

from hf_it3 import AdaptationConfig, TestTimeAdapter
from hf_it3.corruptions import corrupt, list_corruptions, missing_corruptions
from hf_it3.evaluation import evaluate_robustness, model_index_entries, parse_corruptions, parse_severities
from hf_it3.evaluation.answers import ClassAnswers
from hf_it3.evaluation.conditions import is_benchmark, left_out_corruptions, make_conditions
from hf_it3.evaluation.images import ImageSource
from hf_it3.evaluation.pixels import Normalization, PixelCollator
from hf_it3.evaluation.runner import Runner


NOISE = "digits-shift/noise_1"
CONTRAST = "digits-shift/contrast"


@pytest.fixture
def evaluate(model, processor, digits):
    """Evaluates on 96 test images in batches of 32, unless told otherwise."""

    def run(models=None, dataset=None, **options):
        ours = {"num_samples": 96, "batch_size": 32, "corruptions": [NOISE, CONTRAST], "methods": "batch"}
        options = {**ours, "image_processor": processor, "show_progress": False, **options}
        models, dataset = model if models is None else models, digits if dataset is None else dataset
        return evaluate_robustness(models, dataset, **options)

    return run


def predictions(results, condition, method):
    number = [one.name for one in results.conditions].index(condition)
    return results.outcomes[0][number].methods[method].prediction


def test_figures_are_those_of_the_plain_computation(evaluate, model, processor, digits):
    rows = digits["test"].select(range(80))
    results = evaluate(dataset=rows, num_samples=None, corruptions=NOISE, methods={"own": AdaptationConfig(gate=None)})

    order = ImageSource(rows, processor, model.config).order("iid", seed=0)
    pixels = processor(images=rows["image"][:], do_normalize=False, return_tensors="pt").pixel_values
    noisy = (corrupt(pixels, NOISE, seed=0) - 0.3) / 0.35
    labels = torch.tensor(rows["label"])
    adapter = TestTimeAdapter(model, gate=None)
    expected, distances = torch.zeros(80, dtype=torch.long), torch.zeros(80)
    for start in range(0, 80, 32):
        batch = torch.from_numpy(order[start : start + 32])
        output = adapter(noisy[batch])
        expected[batch], distances[batch] = output.logits.argmax(-1), output.idempotence
    plain = model(noisy).logits.argmax(-1)

    assert predictions(results, NOISE, "own").tolist() == expected.tolist()
    assert predictions(results, NOISE, "none").tolist() == plain.tolist()
    assert results.accuracy(NOISE, "own") == pytest.approx((expected == labels).double().mean().item())
    assert results.accuracy(NOISE, "none") == pytest.approx((plain == labels).double().mean().item())
    np.testing.assert_allclose(results.outcomes[0][1].distance, distances, atol=1e-5)


def test_clean_images_come_first_and_are_what_the_processor_makes_of_them(evaluate, model, processor, digits):
    results = evaluate(num_samples=None, corruptions="none", methods="none")
    assert [condition.name for condition in results.conditions] == ["clean"]
    pixel_values = processor(images=digits["test"]["image"][:], return_tensors="pt").pixel_values
    correct = model(pixel_values).logits.argmax(-1) == torch.tensor(digits["test"]["label"])
    assert results.accuracy("clean", "none") == pytest.approx(correct.double().mean().item())


def test_normalisation_as_a_step_of_its_own_is_that_of_the_processor(processor, digits):
    images = digits["test"]["image"][:5]
    pixels = processor(images=images, do_normalize=False, return_tensors="pt").pixel_values
    whole = processor(images=images, return_tensors="pt").pixel_values
    normalization = Normalization(processor)
    torch.testing.assert_close(normalization(pixels), whole)
    torch.testing.assert_close(normalization.undo(whole), pixels, atol=1e-6, rtol=0)


@pytest.mark.parametrize("changes", [{}, {"include_top": False}, {"do_normalize": False}])
def test_normalisation_is_that_of_efficientnet_processors_too(changes):
    processor = EfficientNetImageProcessor(size={"height": 16, "width": 16}, **changes)
    image = Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3))
    pixels = PixelCollator(processor)([{"image": image}])["pixel_values"]
    whole = processor(image, return_tensors="pt").pixel_values
    torch.testing.assert_close(Normalization(processor)(pixels), whole)
    torch.testing.assert_close(Normalization(processor).undo(whole), pixels, atol=1e-6, rtol=0)


@pytest.mark.parametrize("changes", [{"rescale_offset": True}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}])
def test_a_processor_that_does_something_else_between_pixels_and_input_is_refused(changes):
    processor = EfficientNetImageProcessor(size={"height": 16, "width": 16}, **changes)
    image = Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3))
    with pytest.raises(ValueError, match=r"EfficientNetImageProcessor\w* does not give \(pixels - mean\) / std"):
        PixelCollator(processor)([{"image": image}])


def test_rows_of_tensors_give_the_figures_of_their_images(evaluate, processor, digits):
    rows = digits["test"].select(range(40))
    tensors = processor(images=rows["image"][:], return_tensors="pt").pixel_values
    as_rows = [{"pixel_values": image, "label": label} for image, label in zip(tensors, rows["label"], strict=True)]
    from_images, from_tensors = evaluate(dataset=rows), evaluate(dataset=as_rows)
    assert predictions(from_images, NOISE, "none").tolist() == predictions(from_tensors, NOISE, "none").tolist()


def test_corruptions_do_not_depend_on_the_batch_size(evaluate):
    large, small = evaluate(methods="none"), evaluate(methods="none", batch_size=7)
    for number in range(3):
        np.testing.assert_allclose(large.outcomes[0][number].distance, small.outcomes[0][number].distance, atol=1e-5)


def test_class_sorted_batches_hold_few_classes(model, processor, digits):
    source = ImageSource(digits["test"], processor, model.config)
    batches = list(source.batches("class-sorted", 0, 50))
    labels = torch.cat([batch.labels for batch in batches])
    assert torch.equal(labels, labels.sort().values)
    assert sorted(np.concatenate([batch.index for batch in batches])) == list(range(500))


def test_mixed_batches_hold_all_conditions_and_each_image_meets_each_once(evaluate, monkeypatch):
    batches = []
    original = Runner._conditions_of

    def spy(self, batch, sweep):
        conditions = original(self, batch, sweep)
        batches.append((batch.index, conditions))
        return conditions

    monkeypatch.setattr(Runner, "_conditions_of", spy)
    results = evaluate(order="mixed", methods="none")
    assert all(set(conditions) == {0, 1, 2} for _, conditions in batches)
    for outcomes in results.outcomes[0].values():
        assert len(set(outcomes.index)) == len(outcomes) == 96
    iid = evaluate(order="iid", methods="none")
    for number in range(3):
        np.testing.assert_allclose(iid.outcomes[0][number].distance, results.outcomes[0][number].distance, atol=1e-5)


def test_a_stream_crosses_conditions_in_continual_order_only(evaluate):
    always = {"stream": AdaptationConfig(scope="stream", gate=None, learning_rate=1e-2), "batch": AdaptationConfig()}
    iid, continual = evaluate(methods=always), evaluate(methods=always, order="continual")

    def confidence(results, number, method):
        return results.outcomes[0][number].methods[method].confidence

    assert np.array_equal(confidence(iid, 0, "stream"), confidence(continual, 0, "stream"))
    assert not np.allclose(confidence(iid, 2, "stream"), confidence(continual, 2, "stream"), atol=1e-3)
    for number in range(3):
        assert np.array_equal(confidence(iid, number, "batch"), confidence(continual, number, "batch"))


def test_methods_without_layers_to_work_on_are_reported(evaluate):
    results = evaluate(methods="none,statistics,tent,batch", corruptions=CONTRAST)
    assert results.methods == ["none", "batch"]
    assert results.not_applicable == {
        "statistics": "no batch normalisation layers",
        "tent": "no normalisation layers",
    }
    assert "tent: n/a: no normalisation layers" in results.table()


@pytest.mark.parametrize("is_measured", [True, False])
def test_statistics_alone_are_a_method_where_clean_images_have_been_measured(evaluate, model, train_rows, is_measured):
    if is_measured:
        with_clean_statistics(model, torch.stack([row["pixel_values"] for row in train_rows[:200]]))
    results = evaluate(models=model, methods={"alone": {"num_steps": 0, "gate": None}}, corruptions=CONTRAST)
    if is_measured:
        outcomes = results.outcomes[0][1].methods
        assert not np.allclose(outcomes["none"].confidence, outcomes["alone"].confidence, atol=1e-3)
    else:
        assert results.not_applicable == {"alone": "no statistics of clean images to correct features with"}


def test_methods_on_batch_norm_models_are_those_of_their_presets(evaluate, batch_norm_model):
    results = evaluate(models=batch_norm_model, methods="statistics,tent", corruptions=CONTRAST)
    assert results.methods == ["none", "statistics", "tent"]
    confidences = [results.outcomes[0][1].methods[name].confidence for name in results.methods]
    assert not np.allclose(confidences[0], confidences[1])
    assert not np.allclose(confidences[1], confidences[2])


def test_a_model_is_left_as_it_was(evaluate, model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    model.backbone.eval()
    modes = [module.training for module in model.modules()]
    evaluate(methods="torch-ttt,stream,image")
    assert model.training
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_several_models_and_seeds_give_means(evaluate, model, random_model):
    both = evaluate(models=[model, random_model], seeds=[0, 5], methods="none", corruptions=NOISE)
    single = [
        evaluate(models=one, seeds=seed, methods="none", corruptions=NOISE).accuracy(NOISE, "none")
        for one in (model, random_model)
        for seed in (0, 5)
    ]
    score = both.condition_scores[1]["methods"]["none"]
    assert score["accuracy_by_run"] == pytest.approx(single)
    assert score["accuracy"] == pytest.approx(np.mean(single))
    assert len(set(single)) > 1
    assert str(both).count("mean of shifted") == 5


def test_settings_of_methods_may_be_given_as_fields_or_none(evaluate):
    fields = {"learning_rate": 1e-2, "gate": None}
    results = evaluate(methods={"fields": fields, "config": AdaptationConfig(**fields), "nothing": None})
    assert predictions(results, NOISE, "fields").tolist() == predictions(results, NOISE, "config").tolist()
    assert predictions(results, NOISE, "nothing").tolist() == predictions(results, NOISE, "none").tolist()
    assert predictions(results, NOISE, "fields").tolist() != predictions(results, NOISE, "none").tolist()
    with pytest.raises(TypeError, match=r"methods\['mine'\]='batch' must be an AdaptationConfig, a mapping"):
        evaluate(methods={"mine": "batch"})


def test_numbers_may_be_numpys(evaluate, tmp_path):
    options = {"methods": "none", "corruptions": "mnist-c/shot_noise"}
    numpys = {"seeds": np.int64(1), "severities": np.int64(2), "batch_size": np.int64(16), "num_samples": np.int64(32)}
    plain = {name: int(value) for name, value in numpys.items()}
    results = evaluate(**options, **numpys, output_dir=tmp_path, plots=False)
    assert results.to_dict() == evaluate(**options, **plain).to_dict()


def test_gains_are_paired_and_losses_are_named(evaluate):
    harmful = AdaptationConfig(learning_rate=1.0, gate=None, diversity_weight=0.0)
    results = evaluate(methods={"harmful": harmful, "again": harmful})
    summary = results.overall["harmful"]
    gain = summary["gain_over"]["none"]
    expected = np.mean([results.accuracy(n, "harmful") - results.accuracy(n, "none") for n in (NOISE, CONTRAST)])
    assert gain["gain"] == pytest.approx(expected)
    assert gain["lower"] <= gain["gain"] <= gain["upper"] < 0
    assert summary["does_not_help"] == summary["harms"] == ["clean", NOISE, CONTRAST]
    assert results.overall["again"]["gain_over"]["harmful"] == {"gain": 0.0, "lower": 0.0, "upper": 0.0}
    assert "does not help on clean" in results.table()


def test_errors_are_relative_to_a_reference(evaluate, random_model):
    reference = evaluate(models=random_model, methods="none")
    results = evaluate(methods="none", reference=json.loads(json.dumps(reference.to_dict())))
    ratios = [(1 - results.accuracy(n, "none")) / (1 - reference.accuracy(n, "none")) for n in (NOISE, CONTRAST)]
    assert results.overall["none"]["mean_error_ratio"] == pytest.approx(np.mean(ratios))
    assert "with IT3ForImageClassification as 100%" in results.table()
    with pytest.raises(ValueError, match="reference_errors has no corruption 'digits-shift/blur'"):
        evaluate(corruptions="digits-shift/blur", methods="none", reference=reference)


def test_severities_are_rows_of_one_group(evaluate):
    results = evaluate(corruptions="mnist-c/shot_noise", severities="1,5", methods="none")
    assert [one.name for one in results.conditions] == ["clean", "mnist-c/shot_noise:1", "mnist-c/shot_noise:5"]
    assert results.accuracy("mnist-c/shot_noise:5", "none") <= results.accuracy("mnist-c/shot_noise:1", "none")
    assert sum("shot_noise" in line for line in results.table().splitlines()) == 1


def test_published_sets_are_conditions_of_their_own(evaluate, digits):
    sets = {"clean": digits["test"].select(range(40)), "other": digits["train"].select(range(60))}
    results = evaluate(dataset=sets, corruptions="none")
    assert [score["num_images"] for score in results.condition_scores] == [40, 60]
    assert [condition.is_clean for condition in results.conditions] == [True, False]
    assert results.condition_scores[1]["idempotence_distance"]["shift_detection_auroc"] is not None
    by_split = evaluate(split="test,train", corruptions="none", methods="none")
    assert [condition.name for condition in by_split.conditions] == ["test", "train"]


def test_labels_are_translated_where_the_data_set_orders_classes_differently(evaluate, model, digits):
    model.config.id2label = {number: str(number) for number in range(10)}
    rows = digits["test"].select(range(50))
    backwards = [str(9 - number) for number in range(10)]
    features = rows.features.copy()
    features["label"] = type(features["label"])(names=backwards)
    flipped = rows.map(lambda row: {"label": 9 - row["label"]}).cast(features)
    assert evaluate(dataset=flipped).accuracy("clean", "none") == evaluate(dataset=rows).accuracy("clean", "none")


def test_model_index_entries_hold_both_accuracies(evaluate):
    results = evaluate(methods="batch,image")
    entries = model_index_entries(results)
    assert [entry["name"] for entry in entries] == ["clean", NOISE, CONTRAST]
    assert entries[1]["score_unadapted"] == results.accuracy(NOISE, "none")
    assert entries[1]["score_adapted"] == results.accuracy(NOISE, "batch")
    assert model_index_entries(results, "image")[2]["score_adapted"] == results.accuracy(CONTRAST, "image")
    with pytest.raises(ValueError, match="'tent' is not among the results; choose from batch, image"):
        model_index_entries(results, "tent")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruptions": "fogg"}, "corruption 'fogg' is unknown"),
        ({"severities": "0-3"}, "severities='0-3' must be one or more of 1, 2, 3, 4, 5"),
        ({"severities": "low"}, "severities='low' is not understood"),
        ({"methods": "batchwise"}, "methods has 'batchwise'; choose from it3"),
        ({"methods": {"none": AdaptationConfig()}}, "choose another name"),
        ({"order": "random"}, "order='random' must be one of iid"),
        ({"batch_size": 0}, "batch_size=0 must be an integer >= 1"),
        ({"batch_size": True}, "batch_size=True must be an integer >= 1"),
        ({"severities": None}, "severities=None must be one or more of 1, 2, 3, 4, 5"),
        ({"seeds": None}, "seeds=None must be one or more different"),
        ({"methods": {"mine": {"steps": 3}}}, "AdaptationConfig has no field 'steps'"),
        ({"num_samples": 0}, "num_samples=0 must be an integer >= 1"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\] must be one or more different"),
        ({"split": "validation"}, "no split 'validation'; its splits are train, test"),
        ({"label_column": "digit"}, "no label column 'digit'"),
        ({"split": "test,train", "order": "mixed"}, "evaluate one split or configuration"),
        ({"resume": True}, "need output_dir"),
    ],
)
def test_errors_say_what_was_given(evaluate, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(**options)


def test_plain_classifiers_and_empty_sets_are_refused(evaluate, model, digits):
    with pytest.raises(TypeError, match="takes no label signal"):
        evaluate(models=model.backbone)
    with pytest.raises(ValueError, match="the data set is empty"):
        evaluate(dataset=digits["test"].select([]))


def test_iterators_and_empty_streams_are_refused(evaluate, digits):
    rows = list(digits["test"].select(range(32)))
    with pytest.raises(ValueError, match="the data set is a generator, which can be read once only.*pass a list"):
        evaluate(dataset=(row for row in rows))

    class Empty:
        def __iter__(self):
            return iter(())

    with pytest.raises(ValueError, match="the data set is empty"):
        evaluate(dataset=Empty())


def test_rows_without_names_are_refused_unless_they_are_pairs(evaluate, train_rows):
    match = r"must be dictionaries, or pairs \(image, label\), got a tuple; name its parts"
    with pytest.raises(ValueError, match=match):
        evaluate(dataset=[(*row.values(), "more") for row in train_rows[:4]])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_labels_may_be_of_any_type_that_counts(evaluate, train_rows, dtype):
    rows = [{**row, "label": row["label"] % 2} for row in train_rows[:32]]
    typed = [{**row, "label": torch.tensor(row["label"], dtype=dtype)} for row in rows]
    assert evaluate(dataset=typed).accuracy(NOISE, "batch") == evaluate(dataset=rows).accuracy(NOISE, "batch")


def test_corruptions_that_calibration_has_seen_can_be_left_out(evaluate, model):
    def names(**options):
        return [condition.name for condition in evaluate(num_samples=8, methods="none", **options).conditions]

    model.config.calibration_corruptions = [NOISE]
    assert names() == ["clean", NOISE, CONTRAST]
    assert names(exclude="calibrated") == ["clean", CONTRAST]
    assert names(exclude=["calibrated", CONTRAST]) == ["clean"]
    with pytest.raises(ValueError, match="'snowfall'"):
        names(exclude="snowfall")


def test_all_corruptions_are_those_that_suit_the_channels():
    assert set(parse_corruptions("all", 1)) == set(parse_corruptions("mnist-c", 3))
    assert set(parse_corruptions("all", 3)) == set(parse_corruptions("imagenet-c", 1))
    # Without the photographs that an extra installs, ImageNet-C lacks frost, and says so.
    assert len(parse_corruptions("all", 1)) == 15
    assert len(parse_corruptions("all", 3)) + len(left_out_corruptions("all", 3)) == 15
    assert parse_corruptions("none", 1) == []
    assert parse_severities("1-3,5") == (1, 2, 3, 5)
    assert parse_severities("published") == "published"


def test_a_benchmark_is_evaluated_at_its_published_severities(evaluate):
    def severities(**options):
        corruptions = "mnist-c/shot_noise,mnist-c/stripe,imagenet-c/contrast,digits-shift/blur"
        results = evaluate(corruptions=corruptions, methods="none", num_samples=4, **options)
        return [condition.severity for condition in results.conditions[1:]]

    assert severities() == [5, None, 1, 2, 3, 4, 5, None]
    assert severities(severities="one") == [5, None, 3, None]
    assert severities(severities="2,4") == [2, 4, None, 2, 4, None]


@pytest.fixture
def without_photographs(monkeypatch):
    monkeypatch.setattr("hf_it3.evaluation.corruptions.frost._paths", lambda: [])


@pytest.mark.usefixtures("without_photographs")
def test_what_a_suite_lacks_is_said_and_there_is_no_mean_corruption_error(evaluate, random_model, tmp_path):
    options = {
        "corruptions": "imagenet-c",
        "exclude": ["imagenet-c/glass_blur", "imagenet-c/shot_noise"],
        "severities": 1,
    }
    options.update(methods="none", num_samples=8)
    reference = evaluate(models=random_model, **options)
    results = evaluate(**options, reference=reference, output_dir=tmp_path, plots=False)
    assert list(results.left_out) == ["imagenet-c/frost"]
    assert not {"mean_corruption_error", "relative_mean_corruption_error"} & set(results.overall["none"])
    assert results.overall["none"]["mean_error_ratio"] > 0
    assert "imagenet-c/frost: left out: " in results.table()
    assert "no mCE, which would need imagenet-c/frost" in results.table()
    saved = json.loads((tmp_path / "results.json").read_text())
    assert "hf-it3[frost]" in saved["left_out"]["imagenet-c/frost"]
    options["exclude"] = [*options["exclude"], "imagenet-c/frost"]
    assert "left out" not in evaluate(**options).table()
    with pytest.raises(ImportError, match=r"hf-it3\[frost\]"):
        evaluate(corruptions="imagenet-c/frost", methods="none")


def test_only_all_of_imagenet_c_makes_an_mce(evaluate, random_model):
    names = [*list_corruptions("imagenet-c"), *missing_corruptions("imagenet-c")]
    everything = make_conditions(names, "published")
    assert is_benchmark(everything)
    assert not is_benchmark(everything[:-1])
    assert not is_benchmark([*everything, *make_conditions(["mnist-c/shear"], "published")])
    assert not is_benchmark(make_conditions(names, [1, 2, 3, 4]))
    assert not is_benchmark(make_conditions([f"graded/{one.partition('/')[2]}" for one in names], "1-5"))
    some = evaluate(methods="none", reference=evaluate(models=random_model, methods="none"))
    assert "mean error over these corruptions, not the mCE," in some.table()
    assert not {"mean_corruption_error", "relative_mean_corruption_error"} & set(some.overall["none"])


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_that_are_no_class_are_refused_whatever_the_order_of_the_classes(model, processor, digits, label):
    features = digits["test"].features.copy()
    features["label"] = datasets.ClassLabel(names=[str(9 - number) for number in range(10)])
    rows = {"image": digits["test"]["image"][:3], "label": [0, 9, 0]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    model.config.id2label = {number: str(number) for number in range(10)}
    source = ImageSource(dataset, processor, model.config, cache_bytes=0)
    assert source.label_map == list(range(9, -1, -1))
    assert sorted(next(iter(source.batches("iid", 0, 3))).labels.tolist()) == [0, 9, 9]
    source.dataset = [{**row, "label": label if position == 1 else 0} for position, row in enumerate(dataset)]
    with pytest.raises(ValueError, match=f"label {label} of image . in the batch is out of range"):
        list(source.batches("iid", 0, 3))


class TestClassesOfOtherNames:
    def renamed(self, digits, names):
        labels = [label % len(names) for label in digits["test"]["label"][:16]]
        rows = {"image": digits["test"]["image"][:16], "label": labels}
        features = digits["test"].features.copy()
        features["label"] = datasets.ClassLabel(names=names)
        return datasets.Dataset.from_dict(rows, features=features)

    @pytest.fixture
    def named(self, model):
        model.config.id2label = {number: str(number) for number in range(10)}
        return model

    def test_as_many_are_matched_by_position_which_is_said(self, named, processor, digits, caplog):
        logging.get_logger("hf_it3").warning_once.cache_clear()
        source = ImageSource(self.renamed(digits, list("abcdefghij")), processor, named.config)
        assert source.label_map is None
        assert "have other names than those of the model and are matched by position: 'a' as '0'" in caplog.text

    def test_another_number_is_refused(self, named, processor, digits):
        with pytest.raises(ValueError, match=r"has 8 classes \(a, b, c, ...\), and the model 10 of other names"):
            ImageSource(self.renamed(digits, list("abcdefgh")), processor, named.config)

    def test_models_without_names_take_any(self, model, processor, digits, caplog):
        model.config.id2label = {number: f"LABEL_{number}" for number in range(10)}
        assert ImageSource(self.renamed(digits, list("abcdefgh")), processor, model.config).label_map is None
        assert "matched by position" not in caplog.text

    def test_one_unknown_name_beside_known_ones_leaves_their_order(self, named, processor, digits):
        names = [str(number) for number in range(10)]
        source = ImageSource(self.renamed(digits, [*names[:9], "nine"]), processor, named.config)
        assert source.label_map is None
        with pytest.raises(ValueError, match="names of the model's in another order, but 'nine' is none of them"):
            ImageSource(self.renamed(digits, ["1", "0", *names[2:9], "nine"]), processor, named.config)

    def test_names_of_pairs_are_those_of_their_data_set(self, named, processor, digits):
        class Pairs(list):
            classes = tuple(str(9 - number) for number in range(10))

        pairs = Pairs([(row["image"], 9 - row["label"]) for row in digits["test"].select(range(6))])
        source = ImageSource(pairs, processor, named.config)
        batch = next(iter(source.batches("iid", 0, 6)))
        assert batch.labels.tolist() == [digits["test"]["label"][position] for position in batch.index]


class TestSeveralSplits:
    def test_their_images_as_they_are_count_as_clean(self, evaluate, digits):
        splits = {"train": digits["train"], "test": digits["test"]}
        together = evaluate(dataset=splits)
        alone = {name: evaluate(dataset=rows) for name, rows in splits.items()}
        assert [one.is_clean for one in together.conditions] == [True, False, False] * 2
        for method in ("none", "batch"):
            mean = np.mean([results.overall[method]["mean_accuracy"] for results in alone.values()])
            assert together.overall[method]["mean_accuracy"] == pytest.approx(mean)
        for position, score in enumerate(together.condition_scores):
            expected = alone[score["subset"]].condition_scores[position % 3]["idempotence_distance"]
            assert score["idempotence_distance"]["shift_detection_auroc"] == pytest.approx(
                expected["shift_detection_auroc"]
            )

    def test_without_corruptions_their_names_tell(self):
        conditions = make_conditions([], (3,), ["clean", "foggy"])
        assert [one.is_clean for one in conditions] == [True, False]
        assert not any(one.is_clean for one in make_conditions(["digits-shift/clean"], (3,), ["snow", "foggy"]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_without_finite_logits_count_as_wrong(value, caplog):
    logits = torch.tensor([[5.0, 0.0, 0.0, 0.0]] * 4)
    logits[1, 2] = value
    logits[3] = float("nan")
    labels = torch.tensor([0, 0, 1, 3])
    answers = ClassAnswers.of(logits, labels, 255)
    assert (answers["prediction"] == labels.numpy()).tolist() == [True, False, False, False]
    assert answers["confidence"][[1, 3]] == pytest.approx(0.25)
    assert answers["loss"][[1, 3]] == pytest.approx(np.log(4))
    assert answers["brier"][[1, 3]] == pytest.approx(0.75)
    assert "2 of 4 images have no finite logits" in caplog.text
    # A class that is ruled out is no such case.
    ruled_out = ClassAnswers.of(torch.tensor([[0.0, float("-inf")]]), torch.tensor([0]), 255)
    assert ruled_out["confidence"].tolist() == [1.0]
