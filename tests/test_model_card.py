"""Model cards: what they say, that they can be run, and that nobody's words are lost."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from hf_it3 import IT3Trainer, IT3TrainingArguments
from hf_it3.hub.card_facts import public_id
from hf_it3.hub.card_merging import is_edited, load_card, merge_cards, rename_card
from hf_it3.hub.card_results import ConditionResult
from hf_it3.hub.model_card import build_model_card, write_model_card


RESULTS = [
    {"name": "clean", "score_unadapted": 0.967, "score_adapted": 0.966, "num_images": 500, "other": 1},
    ConditionResult(
        "noise|2", 0.55, 0.786, unadapted_per_seed=[0.52, 0.58], adapted_per_seed=[0.77, 0.802],
        milliseconds_unadapted=0.1, milliseconds_adapted=1.25,
    ),
]  # fmt: skip


@pytest.fixture
def card(model):
    return build_model_card(
        model, model_id="user/mnist-it3", results=RESULTS, dataset="ylecun/mnist", license="apache-2.0"
    )


@pytest.fixture
def written(model, tmp_path):
    """The file of a card, written twice: the second time nothing changes."""
    path = write_model_card(tmp_path / "mnist", model, results=RESULTS, dataset="ylecun/mnist")
    first = path.read_bytes()
    assert write_model_card(tmp_path / "mnist", model, results=RESULTS, dataset="ylecun/mnist") == path
    assert path.read_bytes() == first
    return path


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


class TestContents:
    def test_metadata(self, card):
        data = card.data
        assert (data.library_name, data.pipeline_tag, data.license) == ("hf_it3", "image-classification", "apache-2.0")
        assert (data.datasets, data.metrics) == (["ylecun/mnist"], ["accuracy"])
        assert "test-time-training" in data.tags
        assert "adapted-at-test-time" not in data.tags

    def test_model_index_has_every_condition_unadapted_and_adapted(self, card):
        found = [(result.dataset_config, result.metric_name, result.metric_value) for result in card.data.eval_results]
        assert found == [
            ("clean", "Accuracy, unadapted", 0.967),
            ("clean", "Accuracy, adapted", 0.966),
            ("noise|2", "Accuracy, unadapted", 0.55),
            ("noise|2", "Accuracy, adapted", 0.786),
        ]
        assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()

    def test_settings_are_those_that_take_effect(self, card):
        assert "| `anchor` | frozen |" in card.text
        assert "| `distance` | neg_dot |" in card.text

    def test_robustness_table_and_cost(self, card):
        assert "| clean | 96.7 | 96.6 | -0.1 |" in card.text
        assert r"| noise\|2 | 55.0 (52.0 to 58.0) | 78.6 (77.0 to 80.2) | +23.6 |" in card.text
        assert "An image takes 12.5 times as long with adaptation as without" in card.text

    def test_what_the_base_model_reached_stands_beside_an_adapted_model(self, model):
        results = [
            {"name": "noise", "score_base": 0.5, "score_unadapted": 0.85, "score_adapted": 0.86},
            {"name": "clean", "score_unadapted": 0.97, "score_adapted": 0.97},
        ]
        card = build_model_card(model, model_id="user/adapted", results=results)
        assert "| condition | base model | unadapted | adapted | gain |\n|---|---|---|---|---|\n" in card.text
        assert "| noise | 50.0 | 85.0 | 86.0 | +1.0 |" in card.text
        assert "| clean | not measured | 97.0 | 97.0 | +0.0 |" in card.text
        values = [result.metric_value for result in card.data.eval_results]
        assert values == [0.85, 0.86, 0.97, 0.97]

    def test_body_has_all_sections(self, card):
        titles = re.findall(r"^## (.+)$", card.text, re.MULTILINE)
        assert titles == [
            "How to use it",
            "Intended use",
            "Adaptation settings",
            "Measured robustness",
            "Cost",
            "Limits",
            "Versions",
            "Citation",
        ]
        assert "Class-sorted streams" in card.text
        assert "Small batches" in card.text
        assert "| `num_steps` | 5 |" in card.text

    def test_without_results_there_is_no_table(self, model):
        card = build_model_card(model, model_id="user/new")
        assert "Measured robustness" not in card.text
        assert "model-index" not in str(card)

    def test_usage_snippet_runs(self, trained_directory, model, capsys):
        card = build_model_card(model, model_id=trained_directory)
        snippet = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1]
        exec(snippet, {})
        assert capsys.readouterr().out.count("'label'") == 1

    def test_usage_snippet_reads_the_picture_of_the_repository(
        self, trained_directory, model, digits, tmp_path, capsys
    ):
        directory = tmp_path / "model"
        shutil.copytree(trained_directory, directory)
        digits["test"][0]["image"].save(tmp_path / "example.png")
        path = write_model_card(directory, model, model_id=str(directory), example=tmp_path / "example.png")
        (tmp_path / "example.png").unlink()
        snippet = re.search(r"```python\n(.*?)```", path.read_text(), re.DOTALL)[1]
        assert "Image.new" not in snippet
        exec(snippet, {})
        assert capsys.readouterr().out.count("'label'") == 1

    def test_hyperparameters_stand_in_a_table(self, model):
        card = build_model_card(model, model_id="a/b", training={"learning rate": "0.001", "seed": 3})
        assert (
            "## Training\n\n| hyperparameter | value |\n|---|---|\n| learning rate | 0.001 |\n| seed | 3 |"
            in card.text
        )

    def test_a_comparison_with_torch_ttt_stands_beside_the_results(self, model):
        comparison = {"caption": "Accuracy | seeds", "columns": ["condition", "none"], "rows": [["blur", "97.0"]]}
        card = build_model_card(model, model_id="a/b", comparison=comparison).text
        assert "## Compared with torch-ttt\n\nAccuracy \\| seeds. Networks are trained with torch-ttt's loss" in card
        assert "\n\n| condition | none |\n|---|---|\n| blur | 97.0 |\n\n" in card
        assert "Compared" not in build_model_card(model, model_id="a/b").text

    def test_results_of_an_evaluation_are_taken_as_they_are(self, model):
        results = SimpleNamespace(model_index_entries=lambda: RESULTS)
        card = build_model_card(model, model_id="a/b", results=results).text
        assert "| clean | 96.7 |" in card
        assert "Left out" not in card

    def test_results_name_the_data_that_was_measured(self, model, tmp_path):
        (tmp_path / "photos").mkdir()
        measured = ["digits", "ylecun/mnist", str(tmp_path / "photos"), None, "user/street-photos"]
        results = [{**RESULTS[0], "name": str(n), "dataset": name} for n, name in enumerate(measured)]
        card = build_model_card(
            model, model_id="user/model", results=results, dataset="user/street-photos", dataset_name="Streets"
        )
        told = {one.dataset_config: (one.dataset_type, one.dataset_name) for one in card.data.eval_results}
        assert told == {
            "0": ("digits", "digits, 0"),
            "1": ("ylecun/mnist", "ylecun/mnist, 1"),
            "2": ("photos", "photos, 2"),
            "3": ("user/street-photos", "Streets, 3"),
            "4": ("user/street-photos", "Streets, 4"),
        }
        assert str(tmp_path) not in str(card)

    @pytest.mark.parametrize("single_image", ["average", "batch"])
    def test_what_is_said_of_single_images_is_what_settings_say(self, model, single_image):
        model.config.adaptation = model.config.adaptation.replace(single_image=single_image)
        card = str(build_model_card(model, model_id="user/model"))
        assert ("A single image is answered by averaging" in card) == (single_image == "average")

    def test_corruptions_that_could_not_be_computed_are_named(self, model):
        results = SimpleNamespace(model_index_entries=lambda: RESULTS, left_out={"imagenet-c/frost": "no pictures"})
        card = build_model_card(model, model_id="a/b", results=results).text
        assert "\n\nLeft out, because they could not be computed or the files lack them: imagenet-c/frost." in card
        assert "is not the mean\ncorruption error" in card

    @pytest.mark.parametrize("value", [96.7, -0.1, "0.9"])
    def test_an_accuracy_that_is_no_fraction_is_refused(self, model, value):
        result = {"name": "clean", "score_unadapted": value, "score_adapted": 0.9}
        with pytest.raises(ValueError, match="score_unadapted of condition 'clean' must be a fraction"):
            build_model_card(model, model_id="a/b", results=[result])

    def test_local_paths_stay_out(self, model, tmp_path):
        model.config.base_model = {"name_or_path": str(tmp_path), "revision": None}
        card = str(build_model_card(model, model_id="user/adapted"))
        assert str(tmp_path) not in card
        assert "base_model:" not in card
        assert f"from {tmp_path.name} (not on the Hub)" in card

    @pytest.mark.parametrize("name", ["model", "./model", "/tmp/model", "~/model", "a/b/c", "", None, 3])
    def test_what_is_no_repository_is_told(self, name):
        assert public_id(name) is None

    def test_plots_are_copied_beside_the_card(self, model, tmp_path):
        (tmp_path / "gain.png").write_bytes(b"picture")
        path = write_model_card(tmp_path / "model", model, plots=[(tmp_path / "gain.png", "Gain | loss")])
        assert r"![Gain \| loss](gain.png)" in path.read_text()
        assert (tmp_path / "model" / "gain.png").read_bytes() == b"picture"


class TestEditedCards:
    def test_a_generated_card_is_replaced(self, written, model):
        assert r"noise\|2" in written.read_text()
        write_model_card(written.parent, model, results=RESULTS[:1])
        assert r"noise\|2" not in written.read_text()

    @pytest.mark.parametrize("newline", ["\n", "\r\n"])
    def test_edited_text_is_kept(self, written, model, newline):
        edit(written, "## Intended use\n", "## Intended use\n\nNot for cats.\n")
        written.write_bytes(written.read_text().replace("\n", newline).encode())
        text = load_card(written).text
        write_model_card(written.parent, model, results=RESULTS[:1])
        assert load_card(written).text == text

    def test_line_endings_alone_are_no_edit(self, written):
        written.write_bytes(written.read_bytes().replace(b"\n", b"\r\n"))
        assert not is_edited(load_card(written))

    def test_a_card_without_signature_is_a_persons(self, written, model):
        written.write_text("# My model\n")
        write_model_card(written.parent, model, results=RESULTS)
        card = load_card(written)
        assert card.text.strip() == "# My model"
        assert len(card.data.eval_results) == 4

    def test_edited_metadata_is_kept_and_new_results_come_in(self, written, model):
        edit(written, "license: unknown", "license: mit\nlanguage: en")
        edit(written, "tags:\n", "tags:\n- mine\n")
        better = {"name": "clean", "score_unadapted": 0.97, "score_adapted": 0.99}
        write_model_card(written.parent, model, results=[better], dataset="ylecun/mnist")
        data = load_card(written).data
        assert (data.license, data.language) == ("mit", "en")
        assert {"mine", "it3"} <= set(data.tags)
        values = {(result.dataset_config, result.metric_name): result.metric_value for result in data.eval_results}
        assert values["clean", "Accuracy, adapted"] == 0.99
        assert values["noise|2", "Accuracy, adapted"] == 0.786

    def test_licence_language_and_data_sets_stay_where_a_new_card_does_not_tell_them(self, written, model):
        facts = {"license": "apache-2.0", "language": "en", "dataset": "ylecun/mnist"}
        write_model_card(written.parent, model, results=RESULTS, **facts)
        write_model_card(written.parent, model)
        card = load_card(written)
        assert (card.data.license, card.data.language, card.data.datasets) == ("apache-2.0", "en", ["ylecun/mnist"])
        assert not card.data.get("eval_results")  # these may be of other weights
        assert not is_edited(card)
        write_model_card(written.parent, model, license="mit")
        assert load_card(written).data.license == "mit"

    @pytest.mark.parametrize(
        "content", [b"---\nlicense: [mit\n---\n# Mine\n", b"---\n- a list\n---\n# Mine\n", b"\xff\xfe\x00broken"]
    )
    def test_a_card_that_cannot_be_read_is_left_alone(self, written, model, content):
        written.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read, so it was left as it is"):
            write_model_card(written.parent, model, results=RESULTS)
        assert written.read_bytes() == content

    def test_merging_keeps_what_only_the_existing_card_has(self, card):
        existing = ModelCard("---\nco2_eq_emissions: 3\n---\n# Mine\n")
        merged = merge_cards(existing, card)
        assert merged.data.co2_eq_emissions == 3
        assert merged.text.strip() == "# Mine"


class TestRenaming:
    def test_a_generated_card_takes_the_name_on_the_hub(self, written):
        card = rename_card(load_card(written), "user/digits")
        assert 'model="user/digits"' in card.text
        assert "# digits\n" in card.text
        assert card.data.model_name == "digits"
        assert not is_edited(card)

    def test_an_edited_card_stays(self, written):
        edit(written, "Intended use", "What it is for")
        card = load_card(written)
        assert str(rename_card(card, "user/digits")) == str(card)


class TestTrainer:
    @pytest.fixture
    def trainer(self, random_model, train_rows, processor, tmp_path):
        arguments = IT3TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, eval_adapted=True)
        rows = train_rows[:64]
        return IT3Trainer(random_model, arguments, train_dataset=rows, eval_dataset=rows, processing_class=processor)

    def test_the_card_has_the_measured_accuracies(self, trainer, tmp_path):
        metrics = trainer.evaluate()
        trainer.create_model_card(license="mit", tags="mine", dataset="ylecun/mnist")
        data = load_card(tmp_path / "README.md").data
        assert [result.metric_value for result in data.eval_results] == [
            round(metrics["eval_accuracy"], 4),
            round(metrics["eval_adapted_accuracy"], 4),
        ]
        assert (data.license, data.datasets) == ("mit", ["ylecun/mnist"])
        assert "mine" in data.tags

    def test_the_card_has_the_hyperparameters_of_a_training_and_none_before(self, trainer, tmp_path):
        trainer.create_model_card()
        assert "## Training" not in (tmp_path / "README.md").read_text()
        trainer.args.max_steps = 3
        trainer.train()
        trainer.create_model_card()
        text = (tmp_path / "README.md").read_text()
        for row in ("training images | 64", "optimizer steps | 3", "images per step | 8", "learning rate | 5e-05"):
            assert f"| {row} |" in text

    def test_only_the_main_process_writes(self, trainer, tmp_path, monkeypatch):
        monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
        trainer.create_model_card()
        assert not (tmp_path / "README.md").exists()

    def test_an_unreadable_card_is_left_alone_with_a_warning(self, trainer, tmp_path, caplog):
        (tmp_path / "README.md").write_text("---\nlicense: [mit\n---\n")
        with caplog.at_level("WARNING"):
            trainer.create_model_card()
        assert "No model card was written" in caplog.text
        assert (tmp_path / "README.md").read_text() == "---\nlicense: [mit\n---\n"


class TestCommittedCards:
    """The cards in model_cards/ are what the code makes of the results beside them."""

    FOLDER = Path(__file__).parents[1] / "model_cards"
    FOLDERS = sorted(path.parent for path in FOLDER.glob("*/results.json"))

    def test_there_are_three(self):
        assert {"mnist-it3", "digits-it3", "mnist-it3-noisy"} <= {folder.name for folder in self.FOLDERS}

    @pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
    def test_they_are_what_the_code_generates(self, folder, monkeypatch):
        monkeypatch.syspath_prepend(self.FOLDER)
        from generate import card_of

        assert (folder / "README.md").read_text(encoding="utf-8") == str(card_of(folder)), "run make cards"
