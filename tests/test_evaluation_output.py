"""Interrupted evaluations, streamed data sets, files and reports."""

import copy
import csv
import json
import sys
import weakref

import numpy as np
import pytest
import torch
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from hf_it3 import AdaptationConfig
from hf_it3.evaluation import EvaluationInterrupted, evaluate_robustness, images, model_index_entries
from hf_it3.evaluation.runner import Runner
from hf_it3.evaluation.storage import ResultsFolder, as_csv
from hf_it3.utils import write_atomically


CONDITIONS = ["clean", "digits-shift/noise_1", "digits-shift/contrast"]
METHODS = {
    "batch": AdaptationConfig(gate=None),
    "stream": AdaptationConfig(scope="stream", gate=None, learning_rate=1e-2),
}


@pytest.fixture
def evaluate(trained_directory, digits):
    """Evaluates on 64 test images in batches of 24, unless told otherwise."""

    def run(models=trained_directory, dataset=None, **options):
        options = {"num_samples": 64, "batch_size": 24, "corruptions": CONDITIONS[1:], "methods": METHODS, **options}
        dataset = digits if dataset is None else dataset
        return evaluate_robustness(models, dataset, **{"show_progress": False, "plots": False, **options})

    return run


@pytest.fixture
def interrupt(monkeypatch):
    """Presses Ctrl-C in the n-th pass from now; gives back the list of passes that were finished."""
    original = Runner.run

    def at(number=None):
        finished = []

        def run(self, sweep):
            if len(finished) == number:
                raise KeyboardInterrupt
            outcomes = original(self, sweep)
            finished.append(sweep.number)
            return outcomes

        monkeypatch.setattr(Runner, "run", run)
        return finished

    return at


def test_printed_results_are_the_table(evaluate, capsys):
    results = evaluate()
    print(results)
    printed = capsys.readouterr().out
    assert printed == results.table() + "\n"
    assert printed.startswith("Accuracy in percent, 64 images in batches of 24")


@pytest.mark.parametrize("order", ["iid", "continual", "mixed"])
def test_interrupted_and_resumed_equals_uninterrupted(evaluate, interrupt, tmp_path, order):
    options = {"order": order, "seeds": [0, 1]}
    evaluate(output_dir=tmp_path / "whole", **options)

    finished = interrupt(4)
    with pytest.raises(EvaluationInterrupted) as interruption:
        evaluate(output_dir=tmp_path / "parts", **options)
    assert finished == [0, 1, 2, 0]
    partial = json.loads((tmp_path / "parts" / "results.json").read_text())
    assert partial["complete"] is False
    assert [score["name"] for score in partial["conditions"]] == CONDITIONS
    done = {"iid": [2, 1, 1], "continual": [2, 1, 1], "mixed": [1, 1, 1]}[order]
    assert [len(score["methods"]["none"]["accuracy_by_run"]) for score in partial["conditions"]] == done
    assert "interrupted" in interruption.value.results.table()

    finished = interrupt()
    resumed = evaluate(output_dir=tmp_path / "parts", resume=True, **options)
    assert finished == [1, 2]
    assert resumed.complete
    for name in ("results.json", "results.csv"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_resuming_a_finished_evaluation_runs_nothing(evaluate, interrupt, tmp_path):
    first = evaluate(output_dir=tmp_path)
    finished = interrupt()
    assert evaluate(output_dir=tmp_path, resume=True).to_dict() == first.to_dict()
    assert finished == []


def test_results_are_neither_mixed_nor_lost(evaluate, tmp_path):
    evaluate(output_dir=tmp_path, methods="none", corruptions="none")
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(ValueError, match=r"results\.json exists; pass resume=True"):
        evaluate(output_dir=tmp_path, methods="none", corruptions="none")
    with pytest.raises(ValueError, match="has batch_size=24, but 8 is asked for"):
        evaluate(output_dir=tmp_path, methods="none", corruptions="none", batch_size=8, resume=True)
    assert (tmp_path / "results.json").read_bytes() == before
    evaluate(output_dir=tmp_path, methods="none", corruptions="none", batch_size=8, overwrite=True)
    assert json.loads((tmp_path / "results.json").read_text())["settings"]["batch_size"] == 8


def test_another_model_of_the_same_name_is_not_resumed_with(evaluate, random_model, tmp_path, processor):
    options = {"methods": "none", "corruptions": "none", "image_processor": processor, "output_dir": tmp_path}
    evaluate(models=random_model, **options)
    next(random_model.parameters()).data += 1
    with pytest.raises(ValueError, match="weights_sha256"):
        evaluate(models=random_model, resume=True, **options)


def test_outcomes_of_unknown_settings_are_not_used(evaluate, tmp_path, random_model, processor):
    options = {"methods": "none", "corruptions": "none", "image_processor": processor}
    evaluate(output_dir=tmp_path, **options)
    (tmp_path / "results.json").unlink()
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"outcomes exists without the results\.json.*pass overwrite=True"):
            evaluate(models=random_model, output_dir=tmp_path, resume=resume, **options)
    replaced = evaluate(models=random_model, output_dir=tmp_path, overwrite=True, **options)
    assert replaced.accuracy("clean", "none") == evaluate(models=random_model, **options).accuracy("clean", "none")


@pytest.mark.parametrize("step", ["add", "write"])
def test_an_evaluation_that_is_killed_while_it_saves_can_be_resumed(evaluate, tmp_path, monkeypatch, step):
    options = {"methods": "none", "corruptions": "none", "output_dir": tmp_path}
    with monkeypatch.context() as patch:
        patch.setattr(ResultsFolder, step, lambda *arguments: sys.exit())
        with pytest.raises(SystemExit):
            evaluate(**options)
    assert evaluate(resume=True, **options).complete


def test_images_labels_and_processing_are_those_of_what_is_resumed(evaluate, digits, tmp_path, processor):
    rows = [{**row, "other": 9 - row["label"]} for row in digits["test"].select(range(32))]
    options = {"dataset": rows, "methods": "none", "corruptions": "none", "output_dir": tmp_path}
    first = evaluate(image_processor=processor, **options)
    with pytest.raises(ValueError, match="has label_column=None, but 'other' is asked for"):
        evaluate(image_processor=processor, label_column="other", resume=True, **options)
    brighter = copy.deepcopy(processor)
    brighter.image_mean = [0.1]
    with pytest.raises(ValueError, match=r"has image_processors={'image_mean': .*0\.3.*, but {'image_mean': .*0\.1"):
        evaluate(image_processor=brighter, resume=True, **options)

    results = json.loads((tmp_path / "results.json").read_text())
    for name in ("image_column", "label_column", "image_processors"):
        del results["settings"][name]
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert evaluate(image_processor=processor, resume=True, **options).to_dict() == first.to_dict()


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_atomically(path, b"old")
    monkeypatch.setattr("os.replace", lambda *names: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_hold_every_figure(evaluate, tmp_path, trained_directory):
    results = evaluate(output_dir=tmp_path, dataset="digits")
    content = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert content["complete"] is True
    assert content["runs"] == [{"model": trained_directory, "seed": 0}]
    assert content["settings"]["dataset"] == "digits"
    assert content["settings"]["models"][0]["methods"]["stream"]["learning_rate"] == 1e-2
    assert set(content["versions"]) >= {"python", "torch", "hf-it3", "transformers"}
    assert list(content["overall"]["stream"]["gain_over"]) == ["none", "batch"]
    with open(tmp_path / "results.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["condition"], line["method"]) for line in lines] == [
        (condition, method) for condition in CONDITIONS for method in ("none", "batch", "stream")
    ]
    for line in lines:
        assert float(line["accuracy"]) == results.accuracy(line["condition"], line["method"])


class Row(dict):
    """A row that can be counted."""


class Stream:
    """A data set without a length that counts how many of its rows are alive at once."""

    def __init__(self, rows):
        self.rows = list(rows)
        self.column_names = list(self.rows[0])
        self.alive = weakref.WeakSet()
        self.most_alive = 0

    def __iter__(self):
        for row in self.rows:
            fresh = Row(row)
            fresh_id = _Handle(fresh)
            self.alive.add(fresh_id)
            self.most_alive = max(self.most_alive, len(self.alive))
            yield fresh


class _Handle:
    """Lives as long as the row that holds it."""

    def __init__(self, row):
        row.handle = self


def test_streamed_images_give_the_figures_of_loaded_ones_and_are_not_held(evaluate, digits, monkeypatch):
    monkeypatch.setattr(images, "_SHUFFLE_BUFFER", 16)
    stream = Stream(digits["test"].select(range(200)))
    options = {"methods": "none", "num_samples": None, "corruptions": CONDITIONS[1]}
    streamed = evaluate(dataset=stream, **options)
    assert stream.most_alive < 16 + 2 * 24 + 5
    loaded = evaluate(dataset=digits["test"].select(range(200)), **options)
    for number in (0, 1):
        ours, theirs = streamed.outcomes[0][number], loaded.outcomes[0][number]
        assert np.array_equal(ours.index, theirs.index)
        np.testing.assert_allclose(ours.distance, theirs.distance, atol=1e-5)


def test_streamed_images_are_shuffled_by_the_seed_and_know_their_places(model, processor, digits, monkeypatch):
    monkeypatch.setattr(images, "_SHUFFLE_BUFFER", 16)
    loaded = images.ImageSource(digits["test"].select(range(50)), processor, model.config)
    streamed = images.ImageSource(Stream(digits["test"].select(range(50))), processor, model.config)
    orders = {}
    for seed in (0, 1, 0):
        batches = list(streamed.batches("iid", seed, batch_size=8))
        order = np.concatenate([batch.index for batch in batches])
        assert sorted(order.tolist()) == list(range(50)) != order.tolist()
        assert orders.setdefault(seed, order.tolist()) == order.tolist()
        in_order = next(loaded.batches("iid", 0, batch_size=50))
        places = np.argsort(in_order.index)[order]
        assert torch.equal(torch.cat([batch.pixels for batch in batches]), in_order.pixels[places])
        assert torch.equal(torch.cat([batch.labels for batch in batches]), in_order.labels[places])
    assert orders[0] != orders[1]


def test_datasets_of_the_library_stream_too(evaluate, digits):
    results = evaluate(dataset=digits["test"].to_iterable_dataset(), num_samples=30)
    assert [score["num_images"] for score in results.condition_scores] == [30, 30, 30]
    assert results.outcomes[0][0].index.tolist() == list(range(30))
    with pytest.raises(ValueError, match="order='class-sorted' needs a data set of known length"):
        evaluate(dataset=digits["test"].to_iterable_dataset(), order="class-sorted")


def test_plots_are_drawn_for_what_there_is(evaluate, tmp_path):
    pytest.importorskip("matplotlib")
    evaluate(output_dir=tmp_path / "grid", corruptions="mnist-c/shot_noise", severities="1,5", plots=True)
    drawn = {path.name for path in (tmp_path / "grid" / "plots").iterdir()}
    assert drawn == {"gains.png", "severities.png", "scores.png", "distances.png", "risk_coverage.png"}
    evaluate(output_dir=tmp_path / "clean", corruptions="none", methods="none", plots=True)
    assert {path.name for path in (tmp_path / "clean" / "plots").iterdir()} == {"distances.png", "risk_coverage.png"}


class Recorder(TrainerCallback):
    """A tracker that keeps what it is sent."""

    events: list = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.events.append(("begin", args.run_name))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.events.append((state.global_step, logs))

    def on_train_end(self, args, state, control, **kwargs):
        self.events.append(("end", state.global_step))


def test_trackers_get_every_condition_as_from_trainer(evaluate, monkeypatch, tmp_path):
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "recorder", Recorder)
    monkeypatch.setattr(Recorder, "events", [])
    results = evaluate(report_to="recorder", run_name="mine", output_dir=tmp_path, seeds=[0, 1])
    (begin, *logged, end) = Recorder.events
    assert begin == ("begin", "mine")
    assert [step for step, _ in logged] == [1, 2, 3, 4]
    assert logged[1][1][f"eval_{CONDITIONS[1]}/batch/accuracy"] == results.accuracy(CONDITIONS[1], "batch")
    assert logged[3][1]["eval_mean/stream/gain_over_batch"] == results.overall["stream"]["gain_over"]["batch"]["gain"]
    assert end == ("end", 4)
    with pytest.raises(ValueError, match="nowhere is not supported"):
        evaluate(report_to="nowhere")


def test_evaluate_knows_the_task(trained_directory, digits, model, processor):
    import evaluate as library
    from transformers import pipeline

    import hf_it3.evaluation.evaluate_task  # noqa: F401
    from hf_it3 import IT3Pipeline

    rows = digits["test"].select(range(40))
    model.config.id2label = {number: str(number) for number in range(10)}
    evaluator = library.evaluator("it3-image-classification")
    for adapt in (False, True):
        ours = pipeline("it3-image-classification", model=model, image_processor=processor, adapt=adapt)
        stock = pipeline(
            "image-classification", model=model, image_processor=processor, pipeline_class=IT3Pipeline, adapt=adapt
        )
        answers = [max(classes, key=lambda entry: entry["score"])["label"] for classes in ours(rows["image"][:])]
        expected = np.mean([answer == str(label) for answer, label in zip(answers, rows["label"], strict=True)])
        assert evaluator.compute(ours, rows)["accuracy"] == pytest.approx(expected)
        assert evaluator.compute(stock, rows)["accuracy"] == pytest.approx(expected)
    assert evaluator.compute(trained_directory, rows)["accuracy"] > 0.5
    with pytest.raises(ValueError, match="model_or_pipeline is a function"):
        evaluator.compute(lambda image: [], rows)


def test_a_run_without_a_method_leaves_its_place_empty(model, batch_norm_model, processor, digits):
    """Methods that only the second model can use stand in the second model's column."""
    options = {"corruptions": "none", "methods": "none,statistics", "num_samples": 20, "batch_size": 10}
    results = evaluate_robustness(
        [model, batch_norm_model], digits, image_processor=processor, show_progress=False, **options
    )
    header, none, statistics = csv.reader(as_csv(results).splitlines())
    assert len(header) == len(none) == len(statistics)
    assert statistics[header.index("accuracy_run_0")] == ""
    assert float(statistics[header.index("accuracy_run_1")]) == pytest.approx(
        results.condition_scores[0]["methods"]["statistics"]["accuracy"]
    )


def test_no_split_is_told_where_none_was_chosen(model, processor, digits):
    options = {"corruptions": "none", "num_samples": 8, "image_processor": processor, "show_progress": False}
    given = evaluate_robustness(model, digits["train"], **options)
    chosen = evaluate_robustness(model, digits, **options)
    assert [model_index_entries(one)[0]["split"] for one in (given, chosen)] == [None, "test"]
