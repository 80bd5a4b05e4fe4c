"""Calibration chooses what measures best, leaves weights alone, and turns adaptation off where it does not help."""

import copy
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from untouched import differences, snapshot, untouched

import hf_it3.evaluation.calibration.search as search_module
from hf_it3 import AdaptationConfig, IT3ForImageClassification, IT3Trainer, IT3TrainingArguments, TestTimeAdapter, cli
from hf_it3.calibration import calibrate
from hf_it3.evaluation import evaluate_robustness
from hf_it3.evaluation.calibration.grid import Stage, do_nothing, leave_open, make_stages, resolve_for_search
from hf_it3.evaluation.calibration.images import ImagePart
from hf_it3.evaluation.calibration.report import Comparison, Trial
from hf_it3.evaluation.calibration.search import Search
from hf_it3.evaluation.conditions import Condition
from hf_it3.it3.agreement_it3 import depth_of_copies
from hf_it3.it3.backbone_defaults_it3 import resolve_defaults
from hf_it3.it3.shift_test_it3 import idempotence_distances


# The package shows the function of the same name.
calibrate_module = sys.modules["hf_it3.evaluation.calibration.calibrate"]
OPTIONS = {"corruptions": "digits-shift/brightness", "num_samples": 128, "batch_size": 32, "show_progress": False}


@pytest.fixture(scope="module")
def calibrated(_trained_model, processor, digits):
    """A calibrated copy of the trained model, and the result."""
    model = copy.deepcopy(_trained_model)
    return model, calibrate(model, processor, digits["test"], **OPTIONS)


@pytest.fixture
def only(monkeypatch):
    """Makes the grid consist of these settings alone."""

    def install(*settings: AdaptationConfig) -> None:
        stages = [Stage("only", lambda best: list(settings))]
        monkeypatch.setattr(search_module, "make_stages", lambda model, own: stages)

    return install


@pytest.fixture
def all_choose(monkeypatch):
    """All images choose, and all compare."""

    def everything(images):
        return (ImagePart(images, 0, images.num_batches),) * 2

    monkeypatch.setattr(calibrate_module, "split", everything)


@pytest.fixture
def accepted(monkeypatch):
    """What is chosen counts as better than what was there."""
    monkeypatch.setattr(Comparison, "is_better", True)


# What is chosen


@pytest.mark.usefixtures("all_choose")
@pytest.mark.parametrize("scope", ["batch", "stream", "image"])
def test_the_figures_are_those_that_an_evaluation_of_the_same_images_gives(model, processor, digits, scope, only):
    settings = AdaptationConfig(scope=scope, batch_size=32, augmentations=4, learning_rate=1e-3)
    only(settings, settings.replace(num_steps=2))
    result = calibrate(model, processor, digits["test"], **OPTIONS, scope=scope, max_clean_loss=100)
    (trial,) = [trial for trial in result.trials if trial.stage == "final" and trial.settings == settings]
    result.reference.store_in(model)  # as in the trials, whether that was better or not
    results = evaluate_robustness(
        model,
        digits["test"],
        corruptions="digits-shift/brightness",
        methods={"tried": settings},
        num_samples=128,
        batch_size=32,
        image_processor=processor,
        show_progress=False,
    )
    assert len(results.condition_scores) == 2
    for score in results.condition_scores:
        for ours, method in ((result.baseline, "none"), (trial, "tried")):
            assert ours.accuracy[score["name"]] == pytest.approx(score["methods"][method]["accuracy"]), method


def test_the_chosen_settings_are_the_best_admissible_ones_on_all_images(calibrated):
    model, result = calibrated
    finals = [trial for trial in result.trials if trial.stage == "final" and trial.admissible]
    assert result.improves
    assert result.chosen.mean_accuracy == max(trial.mean_accuracy for trial in finals)
    assert result.chosen.mean_accuracy > result.baseline.mean_accuracy
    assert {trial.num_images for trial in finals} == {96}
    assert result.comparison.chosen.num_images == 32
    assert result.comparison.is_better
    assert resolve_defaults(model.config.adaptation, model) == result.chosen.settings
    assert model.config.calibration_corruptions == ["digits-shift/brightness"]


def test_the_models_own_settings_are_measured_on_all_images_too(calibrated):
    _, result = calibrated
    assert result.own in [trial.settings for trial in result.trials if trial.stage == "final"]


def test_nothing_that_was_screened_is_tried_twice(calibrated):
    _, result = calibrated
    screened = [repr(trial.settings) for trial in result.trials if trial.stage != "final"]
    assert len(screened) == len(set(screened)) > 10


@dataclass
class CountedImages:
    """A thousand images in two batches; a "pixel" is the number of an image, and all labels are 0."""

    conditions = (Condition(), Condition("mnist-c/fog", 3))
    num_images: int = 1000
    num_batches: int = 2

    def batches(self, condition, count):
        for number in range(count):
            images = torch.arange(number * 500, number * 500 + 500)
            yield (images, condition), torch.zeros(500, dtype=torch.long)


def counting_adapter(right: dict[int, tuple[int, int]]):
    """An adapter that answers so many clean and corrupted images right, by its number of steps."""

    class Adapter:
        def __init__(self, model, settings):
            self.right = right[settings.num_steps]

        def reset(self):
            pass

        def __call__(self, batch):
            images, condition = batch
            wrong = images >= self.right[not condition.is_clean]
            return type("Output", (), {"logits": torch.nn.functional.one_hot(wrong.long(), 2)})

    return Adapter


@pytest.mark.parametrize(
    ("right", "chosen"),
    [
        ({0: (990, 500), 1: (987, 700), 2: (986, 900)}, 1),  # 0.3 points are allowed, 0.4 are not
        ({0: (990, 500), 1: (990, 500), 2: (995, 499)}, 0),  # as good as nothing is not better
        ({0: (990, 500), 1: (900, 900), 2: (900, 900)}, 0),
        ({0: (990, 500), 1: (990, 600), 2: (990, 601)}, 2),
        ({0: (990, 500), 1: (990, 600), 2: (990, 600)}, 1),  # the first among equals
    ],
)
def test_the_best_of_those_that_lose_no_more_than_allowed_on_clean_images_wins(
    right, chosen, only, monkeypatch, random_model
):
    own = AdaptationConfig(batch_size=500)
    only(own.replace(num_steps=1), own.replace(num_steps=2))
    monkeypatch.setattr(search_module, "TestTimeAdapter", counting_adapter(right))
    baseline, best = Search(random_model, own, CountedImages(), 0.3, False).run()
    assert best.settings.num_steps == chosen
    assert (best is baseline) == (chosen == 0)


def test_where_settings_lose_on_clean_images_no_corruption_is_measured(model, processor, digits, only):
    ruinous = AdaptationConfig(learning_rate=1.0, gate=None, batch_size=32)
    only(ruinous)
    result = calibrate(model, processor, digits["test"], **OPTIONS)
    assert [(trial.admissible, list(trial.correct)) for trial in result.trials] == [(False, ["clean"])]


@pytest.mark.usefixtures("accepted")
def test_where_nothing_helps_adaptation_is_turned_off_and_the_result_says_so(model, processor, digits, images, only):
    model.config.adaptation = AdaptationConfig(norm_statistics="mixed", batch_size=32)
    only(AdaptationConfig(learning_rate=1.0, gate=None, batch_size=32))
    result = calibrate(model, processor, digits["test"], **OPTIONS)
    settings = model.config.adaptation
    assert not result.improves
    assert (settings.num_steps, settings.single_image, settings.norm_statistics) == (0, "batch", "source")
    assert "beats doing nothing" in result.table()
    output = TestTimeAdapter(model)(images + 1)
    assert torch.equal(output.logits, output.initial_logits)
    assert torch.equal(TestTimeAdapter(model)(images[:1]).logits, model(images[:1]).logits)


def test_the_same_seed_gives_the_same_result(model, processor, digits, calibrated):
    again = calibrate(model, processor, digits["test"], **OPTIONS)
    assert again.to_dict() == calibrated[1].to_dict()


@pytest.mark.usefixtures("all_choose")
def test_another_seed_draws_other_noise(model, processor, digits, only):
    only(AdaptationConfig(batch_size=32))
    results = [
        calibrate(model, processor, digits["test"], **{**OPTIONS, "corruptions": "digits-shift/noise_2"}, seed=seed)
        for seed in (0, 1)
    ]
    clean, noisy = ([result.baseline.accuracy[name] for result in results] for name in results[0].baseline.accuracy)
    assert clean[0] == clean[1]
    assert noisy[0] != noisy[1]


# What is written


def trial_of(clean: int, corrupted: int) -> Trial:
    """So many of a thousand clean and corrupted images right."""
    right = {"clean": clean, "mnist-c/fog:3": corrupted}
    return Trial("comparison", AdaptationConfig(), {name: torch.arange(1000) < count for name, count in right.items()})


@pytest.mark.parametrize(
    ("own", "chosen", "is_better"),
    [
        ((990, 600), (990, 605), True),
        ((990, 600), (990, 601), False),  # less than a standard error
        ((990, 600), (990, 600), False),
        ((990, 601), (990, 600), False),
        ((990, 600), (987, 700), True),  # 0.3 points are allowed against the plain model
        ((990, 600), (986, 700), False),
        ((900, 700), (990, 600), True),  # what was there loses more than is allowed
        ((900, 700), (980, 650), False),
    ],
)
def test_what_is_chosen_is_better_only_where_it_gains_and_keeps_clean_images(own, chosen, is_better):
    comparison = Comparison(trial_of(990, 500), trial_of(*own), trial_of(*chosen), 0.3)
    assert comparison.is_better == is_better


def test_settings_that_are_no_better_on_other_images_are_not_written(model, processor, digits, only, monkeypatch):
    only(AdaptationConfig(learning_rate=1e-3, batch_size=32))
    monkeypatch.setattr(Comparison, "is_better", False)
    with untouched(model):
        result = calibrate(model, processor, digits["test"], **OPTIONS)
    assert result.chosen.settings.learning_rate == 1e-3
    assert result.settings == model.config.adaptation
    assert "the settings stay as they were" in result.verdict()


def test_what_was_there_is_compared_with_the_reference_that_was_there_on_images_that_did_not_choose(
    model, processor, digits, only
):
    only(AdaptationConfig(learning_rate=1e-3, batch_size=32))
    # Ten thousand standard errors above any distance: the gate that is there never opens.
    model.config.reference_distance = {"mean": 1e3, "std": 0.1, "num_images": 1000, "distance": "neg_dot"}
    model.shift_reference.forget()
    result = calibrate(model, processor, digits["test"], **OPTIONS)
    assert result.comparison.own.answers_as(result.comparison.without)
    assert result.comparison.is_better
    assert result.comparison.chosen.num_images == 32
    results = evaluate_robustness(
        model,
        digits["test"],
        corruptions="digits-shift/brightness",
        methods={"chosen": result.settings},
        num_samples=128,
        batch_size=32,
        image_processor=processor,
        show_progress=False,
    )
    chosen = (result.chosen.correct, result.comparison.chosen.correct)
    for score in results.condition_scores:
        correct = torch.cat([part[score["name"]] for part in chosen])
        assert correct.double().mean().item() == pytest.approx(score["methods"]["chosen"]["accuracy"])


def test_one_batch_cannot_both_choose_and_compare(random_model, processor, digits):
    with (
        untouched(random_model),
        pytest.raises(ValueError, match="calibration needs two batches.*128 images make one"),
    ):
        calibrate(random_model, processor, digits["test"], **{**OPTIONS, "batch_size": 128})


def test_the_command_leaves_the_configuration_alone_where_nothing_is_better(calibrate_command, tmp_path, monkeypatch):
    monkeypatch.setattr(Comparison, "is_better", False)
    before = files_of(tmp_path / "model")
    status, output, folder = calibrate_command()
    assert status == 0, output.err
    after = files_of(folder)
    assert after["config.json"] == before["config.json"]
    assert "config.json is as it was" in output.out
    assert "calibration.json" in after


# What changes, and what does not


@pytest.mark.usefixtures("accepted")
def test_three_fields_of_the_configuration_change_and_nothing_else(model, processor, digits, only):
    only(AdaptationConfig(learning_rate=1e-3, batch_size=32))
    before, config = snapshot(model), model.config.to_dict()
    calibrate(model, processor, digits["test"], **OPTIONS)
    known = ("buffer shift_reference.", "buffer feature_statistics.")  # of clean images
    changes = [name for name in differences(before, snapshot(model)) if not name.startswith(known)]
    assert changes == ["configuration"]
    after = model.config.to_dict()
    changed = {name for name in config if config[name] != after[name]}
    assert changed == {"adaptation", "reference_distance", "calibration_corruptions"}


def test_an_interruption_leaves_the_model_as_it_was(model, processor, digits, monkeypatch):
    def interrupt(self):
        assert self.model.config.reference_distance["num_images"] == 128
        raise KeyboardInterrupt

    monkeypatch.setattr(Search, "run", interrupt)
    model.train()
    model.backbone.eval()
    with untouched(model), pytest.raises(KeyboardInterrupt):
        calibrate(model, processor, digits["test"], **OPTIONS)


def test_the_choice_travels_with_the_model(calibrated, tmp_path):
    model, result = calibrated
    model.save_pretrained(tmp_path)
    config = IT3ForImageClassification.from_pretrained(tmp_path).config
    assert config.adaptation == result.settings
    assert config.reference_distance == result.reference_distance
    assert config.calibration_corruptions == result.corruptions


@pytest.mark.usefixtures("accepted")
def test_the_clean_reference_is_that_of_the_held_out_images(model, processor, digits, only):
    only(AdaptationConfig(batch_size=32))
    result = calibrate(model, processor, digits["test"], **{**OPTIONS, "num_samples": 500})
    images = processor(images=digits["test"]["image"][:], return_tensors="pt").pixel_values
    distances = idempotence_distances(model, images).double()
    assert result.reference_distance["num_images"] == 500
    assert result.reference_distance["mean"] == pytest.approx(distances.mean().item(), abs=1e-5)
    assert result.reference_distance["std"] == pytest.approx(distances.std().item(), abs=1e-5)


@pytest.mark.usefixtures("accepted")
def test_the_clean_reference_is_that_of_the_model_in_eval_mode(batch_norm_model, processor, digits, only):
    only(AdaptationConfig(batch_size=32))
    rows = digits["test"].select(range(64))
    result = calibrate(batch_norm_model.train(), processor, rows, **{**OPTIONS, "num_samples": 64})
    assert batch_norm_model.training
    images = processor(images=rows["image"][:], return_tensors="pt").pixel_values
    distances = idempotence_distances(batch_norm_model.eval(), images).double()
    assert result.reference_distance["num_images"] == 64
    assert result.reference_distance["mean"] == pytest.approx(distances.mean().item(), abs=1e-5)


@pytest.mark.usefixtures("all_choose")
def test_training_images_can_be_the_clean_reference(model, processor, digits, train_rows, only):
    only(AdaptationConfig(batch_size=32))
    result = calibrate(model, processor, digits["test"], **OPTIONS, reference_dataset=train_rows)
    assert result.reference_distance["num_images"] == len(train_rows)
    assert result.baseline.num_images == 128


@pytest.mark.usefixtures("accepted")
def test_a_distance_of_the_settings_own_gets_its_own_reference(model, processor, digits, only):
    only(AdaptationConfig(distance="js", batch_size=32))
    model.config.adaptation = AdaptationConfig(distance="js")
    result = calibrate(model, processor, digits["test"], **OPTIONS)
    assert result.reference_distance["distance"] == "js"
    assert TestTimeAdapter(model, gate=3.0).shift_test.gate == 3.0


@pytest.mark.usefixtures("accepted")
def test_scope_and_batch_size_that_were_asked_for_are_written(model, processor, digits, only):
    only(AdaptationConfig(scope="stream", batch_size=16, learning_rate=1e-3))
    calibrate(model, processor, digits["test"], **{**OPTIONS, "batch_size": 16}, scope="stream")
    assert (model.config.adaptation.scope, model.config.adaptation.batch_size) == ("stream", 16)


@pytest.mark.usefixtures("accepted")
def test_single_images_keep_their_defaults_where_batches_were_calibrated(
    batch_norm_model, processor, digits, monkeypatch
):
    def find_the_defaults_best(self):
        return (self._measure("final", self.own, self.images.num_batches),) * 2

    monkeypatch.setattr(Search, "run", find_the_defaults_best)
    before = TestTimeAdapter(batch_norm_model, scope="average", batch_size=32).config
    calibrate(batch_norm_model, processor, digits["test"], **OPTIONS)
    assert batch_norm_model.config.adaptation == AdaptationConfig(batch_size=32)
    depth = depth_of_copies(batch_norm_model.config.reference_distance)  # was not measured before
    assert TestTimeAdapter(batch_norm_model, scope="average").config == before.replace(norm_depth=depth)


def test_what_differs_from_the_defaults_is_written(batch_norm_model):
    asked = AdaptationConfig(num_steps=1, gate=1.0)
    chosen = resolve_defaults(asked, batch_norm_model).replace(norm_statistics="mixed", learning_rate=3e-4)
    expected = AdaptationConfig(num_steps=1, gate=1.0, norm_statistics="mixed", learning_rate=3e-4)
    assert leave_open(chosen, asked, batch_norm_model) == expected
    # 64 images are what the statistics of training weigh by default, but their caller has named them.
    named = asked.replace(prior_count=64)
    assert leave_open(chosen, named, batch_norm_model) == expected.replace(prior_count=64)


@pytest.mark.usefixtures("all_choose")
def test_a_streamed_data_set_is_calibrated_on(model, processor, digits, only):
    only(AdaptationConfig(batch_size=32))
    streamed = digits["test"].to_iterable_dataset()
    result = calibrate(model, processor, streamed, **{**OPTIONS, "num_samples": 70})
    assert result.baseline.num_images == 70


# The grid


def names_of(stages) -> list[str]:
    return [stage.name for stage in stages]


def test_statistics_are_tried_where_the_model_has_batch_norm_only(model, batch_norm_model):
    own = AdaptationConfig(num_steps=5)
    assert "statistics" not in names_of(make_stages(model, own))
    (stage,) = [stage for stage in make_stages(batch_norm_model, own) if stage.name == "statistics"]
    tried = {(settings.norm_statistics, settings.num_steps) for settings in stage.candidates(own)}
    assert tried == {("mixed", 5), ("batch", 5), ("mixed", 0), ("batch", 0)}


def test_copies_are_tried_where_answers_are_averaged(model, batch_norm_model):
    own = AdaptationConfig()
    assert "copies" not in names_of(make_stages(model, own))
    (stage,) = [stage for stage in make_stages(batch_norm_model, own) if stage.name == "copies"]
    tried = [(settings.average_answers, settings.augmentation_kinds) for settings in stage.candidates(own)]
    assert tried == [("never", None), (None, ("warp",)), (None, ("crop",)), (None, ("crop", "flip"))]


def test_norm_parameters_are_tried_where_the_model_has_norm_layers_only(model, batch_norm_model):
    own = AdaptationConfig(num_steps=5, learning_rate=3e-4, parameters="all")
    for one, expected in ((model, {"all", "bias"}), (batch_norm_model, {"all", "bias", "norm"})):
        (stage,) = [stage for stage in make_stages(one, own) if stage.name == "parameters"]
        assert {settings.parameters for settings in stage.candidates(own)} == expected


@pytest.mark.parametrize("changes", [{"scope": "image"}, {"scope": "batch", "batch_size": 1}])
def test_images_on_their_own_try_augmentations_and_no_diversity(model, changes):
    own = AdaptationConfig(**changes)
    stages = make_stages(model, own)
    assert "augmentations" in names_of(stages)
    assert "diversity" not in names_of(stages)
    assert {settings.diversity_weight for stage in stages for settings in stage.candidates(own)} == {1.0}


@pytest.mark.parametrize("changes", [{"scope": "image"}, {"scope": "average"}, {"scope": "batch", "batch_size": 1}])
def test_images_on_their_own_stay_so_and_their_copies_are_corrected_by_default(batch_norm_model, changes):
    own = AdaptationConfig(**changes)
    asked = resolve_for_search(own, batch_norm_model)
    copies = TestTimeAdapter(batch_norm_model, scope="average").config
    stages = make_stages(batch_norm_model, own)
    tried = [settings for stage in stages for settings in stage.candidates(asked)]
    assert {settings.scope_of(settings.batch_size) for settings in tried} == {"image", "average"}
    names = ("norm_statistics", "prior_count", "norm_depth")
    (stage,) = [stage for stage in stages if stage.name == "augmentations"]
    for settings in stage.candidates(asked):
        resolved = TestTimeAdapter(batch_norm_model, settings).config
        assert [getattr(resolved, name) for name in names] == [getattr(copies, name) for name in names]


def test_batches_of_one_are_gated_unless_they_are_averaged_over_augmentations_alone(model):
    own = AdaptationConfig(batch_size=1, num_steps=0, norm_statistics="mixed", augmentation_steps=0)
    (gates,) = [stage for stage in make_stages(model, own) if stage.name == "gate"]
    assert gates.candidates(own.replace(augmentations=4)) == []
    assert len(gates.candidates(own.replace(augmentations=0))) > 1


def test_an_optimizer_of_the_callers_own_keeps_its_learning_rate(model):
    own = AdaptationConfig(optimizer=torch.optim.SGD)
    (stage,) = [stage for stage in make_stages(model, own) if stage.name == "steps x rate"]
    assert {settings.learning_rate for settings in stage.candidates(own)} == {own.learning_rate}
    assert len({settings.num_steps for settings in stage.candidates(own)}) > 1


@pytest.mark.usefixtures("accepted")
@pytest.mark.parametrize("scope", ["batch", "stream", "image"])
def test_a_whole_search_runs_on_a_batch_norm_model(batch_norm_model, processor, digits, scope):
    result = calibrate(
        batch_norm_model, processor, digits["test"], **{**OPTIONS, "num_samples": 24, "batch_size": 12}, scope=scope
    )
    assert {"start", "statistics", "steps x rate"} <= {trial.stage for trial in result.trials}
    assert result.settings.scope == scope


# The report


def test_the_table_has_every_condition_every_row_of_the_grid_and_the_verdict(calibrated):
    _, result = calibrated
    lines = str(result).splitlines()
    accuracy = {name: f"{100 * value:.1f}" for name, value in result.comparison.chosen.accuracy.items()}
    for name, value in accuracy.items():
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert line.split()[-1] == value
    assert sum(line.startswith(tuple(trial.stage for trial in result.trials)) for line in lines) == len(result.trials)
    assert lines[-1] == result.verdict()


def test_the_report_is_json_and_a_plot_of_both_accuracies(calibrated, tmp_path):
    _, result = calibrated
    assert result.save(tmp_path) == ["calibration.json", "calibration.png"]
    content = json.loads((tmp_path / "calibration.json").read_text(), parse_constant=pytest.fail)
    assert content["with"]["accuracy"] == result.chosen.accuracy
    assert len(content["trials"]) == len(result.trials)
    assert AdaptationConfig.from_dict(content["adaptation"]) == result.settings
    assert (tmp_path / "calibration.png").read_bytes().startswith(b"\x89PNG")
    (axis,) = result.plot().axes
    assert content["comparison"]["is_better"]
    compared = (result.comparison.without, result.comparison.own, result.comparison.chosen)
    heights = [[bar.get_height() for bar in bars] for bars in axis.containers if hasattr(bars, "patches")]
    for drawn, trial in zip(heights, compared, strict=True):
        assert drawn == pytest.approx([100 * value for value in trial.accuracy.values()])


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "epoch"}, r"scope='epoch' must be one of 'batch', 'image', 'stream'"),
        ({"num_samples": 1}, r"num_samples=1 must be an integer >= 2"),
        ({"corruptions": "none"}, r"corruptions='none' names none"),
        ({"corruptions": "foggy"}, r"corruption 'foggy' is unknown"),
        ({"severity": 6}, r"severity=6 must be one of"),
        ({"batch_size": 0}, r"batch_size must be an integer >= 1, got 0"),
        ({"max_clean_loss": -1}, r"max_clean_loss=-1 must be"),
    ],
)
def test_a_bad_argument_is_named_and_the_model_stays_as_it_was(random_model, processor, digits, options, message):
    with untouched(random_model), pytest.raises(ValueError, match=message):
        calibrate(random_model, processor, digits["test"], **{**OPTIONS, **options})


def test_a_name_instead_of_a_model_is_refused(processor, digits):
    with pytest.raises(TypeError, match="from_pretrained"):
        calibrate("some/model", processor, digits["test"])


# The trainer


def trainer_for(model, rows, processor, folder, **options) -> IT3Trainer:
    arguments = IT3TrainingArguments(
        str(folder), max_steps=1, save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True
    )
    return IT3Trainer(model, arguments, train_dataset=rows[:64], processing_class=processor, calibrate=True, **options)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (None, "needs an eval_dataset"),
        ({"a": [], "b": []}, r"needs one eval_dataset, got 2"),
        ([{}] * 200, "calibration needs two batches.*200 images make one batch of 256"),
    ],
)
def test_training_does_not_start_without_images_to_calibrate_on(
    random_model, train_rows, processor, tmp_path, dataset, message
):
    trainer = trainer_for(random_model, train_rows, processor, tmp_path, eval_dataset=dataset)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.usefixtures("accepted")
def test_the_trainer_calibrates_on_its_eval_dataset(model, train_rows, processor, tmp_path, digits, only):
    only(AdaptationConfig(learning_rate=1e-3))
    trainer = trainer_for(model, train_rows, processor, tmp_path, eval_dataset=digits["test"])
    trainer.train()
    assert trainer.state.global_step == 1
    assert trainer.calibration.baseline.num_images == 256
    assert trainer.calibration.comparison.own.num_images == 244
    assert model.config.adaptation == trainer.calibration.settings
    assert model.config.reference_distance["num_images"] == 500
    assert len(model.config.calibration_corruptions) == 4
    assert (tmp_path / "calibration" / "calibration.json").exists()


# The command


@pytest.fixture
def calibrate_command(trained_directory, tmp_path, capsys):
    """Runs `hf-it3 calibrate` on a copy of the trained model; returns exit status, output, and the folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in Path(trained_directory).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "configuration_it3.IT3Config"}
    (folder / "config.json").write_text(json.dumps(config))

    def run(*options: str, model: str | None = None):
        fixed = ["--dataset", "digits", "--num_samples", "64", "--batch_size", "32", "--no_progress"]
        fixed += ["--corruptions", "digits-shift/brightness"]
        status = cli.main(["calibrate", model or str(folder), *fixed, *options])
        return status, capsys.readouterr(), folder

    return run


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.usefixtures("accepted")
def test_the_command_changes_three_keys_of_the_configuration_in_place(calibrate_command, tmp_path, only):
    only(AdaptationConfig(learning_rate=1e-3, batch_size=32))
    before = files_of(tmp_path / "model")
    # More than one batch of 32, which may lose a point by chance.
    status, output, folder = calibrate_command("--split", "test[:200]", "--num_samples", "192")
    assert status == 0, output.err
    after = files_of(folder)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"config.json", "calibration.json", "calibration.png", "model.safetensors"}
    old, new = json.loads(before["config.json"]), json.loads(after["config.json"])
    keys = {"adaptation", "reference_distance", "calibration_corruptions"}
    assert {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)} == keys
    assert IT3ForImageClassification.from_pretrained(folder).config.adaptation.learning_rate == 1e-3
    assert "Chosen from 1 settings" in output.out
    assert "test[:200]" in output.out


@pytest.mark.usefixtures("accepted")
def test_the_command_saves_a_copy_elsewhere_if_asked_to(calibrate_command, tmp_path, only):
    only(AdaptationConfig(learning_rate=1e-3, batch_size=32))
    before = files_of(tmp_path / "model")
    status, output, folder = calibrate_command("--output_dir", str(tmp_path / "copy"))
    assert status == 0, output.err
    assert files_of(folder) == before
    assert IT3ForImageClassification.from_pretrained(tmp_path / "copy").config.adaptation.learning_rate == 1e-3
    assert {"preprocessor_config.json", "calibration.json"} <= files_of(tmp_path / "copy").keys()


def test_the_command_wants_a_folder_for_what_comes_from_the_hub(calibrate_command):
    status, output, _ = calibrate_command(model="someone/some-model")
    assert status == 2
    assert "pass --output_dir" in output.err


def test_doing_nothing_keeps_what_is_no_adaptation():
    settings = do_nothing(AdaptationConfig(scope="stream", gate=2.0, num_steps=9, norm_statistics="batch"))
    assert settings == AdaptationConfig(
        scope="stream",
        gate=2.0,
        num_steps=0,
        single_image="batch",
        norm_statistics="source",
        average_answers="never",
    )
