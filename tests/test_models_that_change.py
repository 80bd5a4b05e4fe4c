"""What a model goes through after an adapter or a pipeline was made for it, or after it was built, is not missed."""

import copy

import pytest
import torch
import trainer_fixtures
from conftest import tiny_config
from trainer_fixtures import measured_by_trainer, quiet_arguments
from transformers import pipeline
from untouched import untouched

from hf_it3 import IT3ForImageClassification, IT3Trainer, TestTimeAdapter
from hf_it3.it3.shell_it3 import ModelShell


arguments = trainer_fixtures.arguments
NEVER = {"gate": None, "average_answers": "never"}


def train_a_little(model, images):
    """Moves weights and running statistics in place."""
    was_training = model.training
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model.train()
    for _ in range(3):
        model(2 * images + 1, labels=torch.arange(len(images)) % 10).loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    model.train(was_training)


class TestTraining:
    @pytest.mark.parametrize("scope", ["batch", "image", "average"])
    def test_an_adapter_follows_weights_and_statistics_that_training_writes(self, batch_norm_model, images, scope):
        adapter = TestTimeAdapter(batch_norm_model, gate=None, scope=scope)
        before = adapter(images[:8]).logits
        train_a_little(batch_norm_model, images)
        after = adapter(images[:8])
        expected = TestTimeAdapter(batch_norm_model, gate=None, scope=scope)(images[:8])
        assert torch.equal(after.initial_logits, expected.initial_logits)
        torch.testing.assert_close(after.logits, expected.logits)
        assert not torch.allclose(before, after.logits)

    def test_running_statistics_are_written_without_a_change_of_version(self):
        # Why buffers of a layer are restored together; a torch that counts these writes would not need it.
        layer = torch.nn.BatchNorm2d(2)
        versions = layer.running_mean._version, layer.num_batches_tracked._version
        layer(torch.rand(4, 2, 3, 3))
        assert (layer.running_mean._version, layer.num_batches_tracked._version) == (versions[0], versions[1] + 1)

    def test_a_pipeline_that_does_not_adapt_answers_for_a_model_in_training_as_in_evaluation(
        self, batch_norm_model, images, processor, digits
    ):
        pictures = digits["test"]["image"][:4]
        classify = pipeline(
            "it3-image-classification", batch_norm_model, image_processor=processor, adapt=False, top_k=10
        )
        batch_norm_model.train()
        classify(pictures)
        train_a_little(batch_norm_model, images)
        with untouched(batch_norm_model):
            training = classify(pictures)
        batch_norm_model.eval()
        for given, expected in zip(training, classify(pictures), strict=True):
            assert [one["label"] for one in given] == [one["label"] for one in expected]
            assert [one["score"] for one in given] == pytest.approx([one["score"] for one in expected], abs=1e-6)


class TestMeasuring:
    @pytest.mark.parametrize("scope", ["batch", "image", "average"])
    def test_an_adapter_has_the_defaults_of_what_was_measured_since(self, model, images, tmp_path, scope):
        adapter = TestTimeAdapter(model, gate=None, scope=scope)
        adapter(images[:8])
        measured_by_trainer(model, images, tmp_path)
        new = TestTimeAdapter(model, gate=None, scope=scope)
        torch.testing.assert_close(adapter(images[:8]).logits, new(images[:8]).logits)
        assert adapter.config == new.config
        assert adapter.config.norm_statistics == ("mixed" if scope != "image" else new.config.norm_statistics)

    def test_a_running_stream_goes_on_as_it_began(self, model, shifted_images, tmp_path):
        adapter = TestTimeAdapter(model, gate=None, scope="stream", num_steps=1)
        adapter(shifted_images[:8])
        settings = adapter.config
        measured_by_trainer(model, shifted_images, tmp_path)
        adapter(shifted_images[:8])
        assert adapter.config == settings
        assert adapter.stream.num_steps == 2
        # So does its copy; its state is one of other settings than those of a new adapter.
        copied = copy.deepcopy(adapter)
        assert torch.equal(copied(shifted_images[8:16]).logits, adapter(shifted_images[8:16]).logits)
        new = TestTimeAdapter(model, gate=None, scope="stream", num_steps=1)
        with pytest.raises(ValueError, match="saved with norm_statistics='source', this adapter has 'mixed'"):
            new.load_state_dict(adapter.state_dict())

    def test_a_state_is_loaded_with_the_defaults_of_what_was_measured_since(self, model, shifted_images, tmp_path):
        early = TestTimeAdapter(model, gate=None, scope="stream", num_steps=1)
        measured_by_trainer(model, shifted_images, tmp_path)
        running = TestTimeAdapter(model, gate=None, scope="stream", num_steps=1)
        running(shifted_images[:8])
        early.load_state_dict(running.state_dict())
        assert torch.equal(early(shifted_images[8:16]).logits, running(shifted_images[8:16]).logits)

    def test_a_stream_without_steps_goes_on_too(self, batch_norm_model, images, tmp_path):
        adapter = TestTimeAdapter(batch_norm_model, gate=None, scope="stream", num_steps=0)
        adapter(images[:16])
        measured_by_trainer(batch_norm_model, images, tmp_path)
        adapter(images[16:32])
        assert adapter.stream.num_images == 32


class TestTasksThatAreKnownLater:
    LABELS = {
        "multi_label_classification": torch.tensor([[1.0, 0, 1, 0], [0, 0, 1, 1]]),
        "regression": torch.tensor([[1.0, 0, 1, 0], [0, 0, 1, 1]]),
        "single_label_classification": torch.tensor([1, 3]),
    }

    @pytest.fixture
    def four_labels(self):
        return IT3ForImageClassification(tiny_config(num_labels=4)).eval()

    def answers_alike(self, model, folder, images):
        model.save_pretrained(folder)
        loaded = IT3ForImageClassification.from_pretrained(folder)
        with torch.no_grad():
            assert torch.equal(loaded.eval()(images).logits, model.eval()(images).logits)
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name
        return loaded

    @pytest.mark.parametrize("problem_type", ["multi_label_classification", "single_label_classification"])
    def test_labels_tell_it(self, four_labels, images, tmp_path, problem_type):
        four_labels(images[:2], labels=self.LABELS[problem_type])
        assert four_labels.config.problem_type == problem_type
        self.answers_alike(four_labels, tmp_path, images[:2])

    @pytest.mark.parametrize("is_measured", [False, True])
    @pytest.mark.parametrize("problem_type", LABELS)
    def test_the_caller_tells_it(self, four_labels, images, tmp_path, problem_type, is_measured):
        four_labels.config.problem_type = problem_type
        four_labels.config.distance = "mse"
        if is_measured:
            measured_by_trainer(four_labels, images, tmp_path / "runs")
        loaded = self.answers_alike(four_labels, tmp_path / "model", images[:2])
        assert loaded.shift_reference.is_measured == is_measured
        assert loaded.adapt(images[:8], gate=None).logits.isfinite().all()

    def test_a_run_on_sets_of_labels_is_resumed_by_a_model_that_does_not_know_them_yet(self, images, tmp_path):
        rows = [
            {"pixel_values": image, "label": [1.0, 0.0, float(index % 2), 1.0]} for index, image in enumerate(images)
        ]

        def trainer(steps):
            model = IT3ForImageClassification(tiny_config(num_labels=4))
            settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": steps, "reference_images": 20}
            return IT3Trainer(model, quiet_arguments(tmp_path, **settings), train_dataset=rows)

        trainer(2).train()
        resumed = trainer(4)
        resumed.train(resume_from_checkpoint=True)
        assert resumed.model.shift_reference.is_measured
        assert len(resumed.model.shift_reference.class_shares) == 1

    def test_weights_that_were_saved_before_it_was_known_load_as_not_measured(self, four_labels, images, tmp_path):
        measured_by_trainer(four_labels, images, tmp_path / "runs")
        state = four_labels.state_dict()
        assert len(state["shift_reference.class_shares"]) == 4
        four_labels.config.problem_type = "multi_label_classification"
        four_labels.save_pretrained(tmp_path / "model", state_dict=state)
        loaded = IT3ForImageClassification.from_pretrained(tmp_path / "model")
        assert not loaded.shift_reference.is_measured
        assert torch.equal(loaded.backbone.conv1.weight, four_labels.backbone.conv1.weight)


class TestFreezing:
    @pytest.mark.parametrize("part", ["norm", "embedder"])
    def test_what_was_frozen_for_training_adapts_as_it_does_once_it_is_loaded(
        self, batch_norm_model, images, arguments, tmp_path, part
    ):
        rows = [{"pixel_values": image, "label": index % 10} for index, image in enumerate(images)]
        settings = {"eval_adapted": True, "reference_images": 32, "train": part}
        trainer = IT3Trainer(batch_norm_model, arguments(**settings), train_dataset=rows, eval_dataset=rows)
        trainer.train()
        assert "eval_adapted_accuracy" in trainer.evaluate()
        batch_norm_model.save_pretrained(tmp_path / "model")
        loaded = IT3ForImageClassification.from_pretrained(tmp_path / "model")
        settings = {**NEVER, "parameters": "all", "num_steps": 1}
        kept, new = (TestTimeAdapter(one, settings) for one in (batch_norm_model, loaded))
        with untouched(batch_norm_model):
            torch.testing.assert_close(kept(images[:16] + 1).logits, new(images[:16] + 1).logits)
        assert kept.shell.names == new.shell.names
        # The adapted model is one of its own, which may be trained whole.
        for name, value in kept.adapted_model().named_parameters():
            assert value.requires_grad, name
            torch.testing.assert_close(value, new.adapted_model().get_parameter(name))

    def test_what_the_caller_froze_does_not_adapt(self, batch_norm_model):
        batch_norm_model.backbone.classifier.requires_grad_(False)
        batch_norm_model.freeze_classifier()
        names = ModelShell(batch_norm_model, "all").names
        assert names
        assert not any("classifier" in name for name in names)
        batch_norm_model.unfreeze_classifier()
        assert not any(value.requires_grad for value in batch_norm_model.backbone.classifier.parameters())
        assert ModelShell(batch_norm_model, "all").names == names
        assert batch_norm_model.train().backbone.training

    @pytest.mark.parametrize("settings", [{"scope": "average"}, {"num_steps": 0}, {"num_steps": 0, "anchor": "ema"}])
    def test_frozen_models_may_answer_where_no_steps_are_taken(self, batch_norm_model, images, settings):
        expected = TestTimeAdapter(batch_norm_model, gate=None, **settings)(images[:8]).logits
        batch_norm_model.requires_grad_(False)
        with untouched(batch_norm_model):
            assert torch.equal(TestTimeAdapter(batch_norm_model, gate=None, **settings)(images[:8]).logits, expected)

    @pytest.mark.parametrize("settings", [{"num_steps": 1}, {"scope": "average", "augmentation_steps": 1}])
    def test_steps_on_frozen_models_are_refused(self, batch_norm_model, settings):
        batch_norm_model.requires_grad_(False)
        with pytest.raises(ValueError, match="requires gradients, and adaptation leaves frozen ones as they are"):
            TestTimeAdapter(batch_norm_model, **settings)


@pytest.mark.parametrize("settings", [{"norm_statistics": "batch", "num_steps": 0}, {"num_steps": 2}, {}])
def test_a_compiled_part_adapts_as_it_does_uncompiled(batch_norm_model, images, settings):
    compiled = copy.deepcopy(batch_norm_model)
    compiled.backbone = torch.compile(compiled.backbone, backend="eager")
    images = 2 * images[:16] + 1
    outputs = []
    for model in (batch_norm_model, compiled):
        adapter = TestTimeAdapter(model, gate=None, **settings)
        with untouched(model):
            outputs.append(adapter(images))
        adapted = adapter.adapted_model()
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    assert not torch.allclose(outputs[1].logits, outputs[1].initial_logits)
    assert isinstance(adapted.backbone, type(compiled.backbone))


COMPILED = {
    "a part": lambda model: setattr(model, "backbone", torch.compile(model.backbone, backend="eager")),
    "a part in place": lambda model: model.backbone.compile(backend="eager"),
    "the whole in place": lambda model: model.compile(backend="eager"),
}


@pytest.mark.parametrize("how", COMPILED)
def test_clean_images_are_measured_with_a_compiled_part_as_they_are_without(model, images, tmp_path, how):
    compiled = copy.deepcopy(model)
    COMPILED[how](compiled)
    for one in (model, compiled):
        measured_by_trainer(one, images, tmp_path)
    assert compiled.config.reference_distance == model.config.reference_distance
    for name, value in model.feature_statistics.named_buffers():
        assert value.any()
        torch.testing.assert_close(compiled.feature_statistics.get_buffer(name), value)
    for name, value in model.shift_reference.named_buffers():
        torch.testing.assert_close(compiled.shift_reference.get_buffer(name), value)


@pytest.mark.parametrize("is_adapted", [False, True])
def test_a_compiled_part_is_saved_as_it_is_uncompiled(batch_norm_model, images, tmp_path, is_adapted):
    COMPILED["a part"](batch_norm_model)
    if is_adapted:
        adapter = TestTimeAdapter(batch_norm_model, NEVER)
        adapter(images[:16] + 1)
        batch_norm_model = adapter.adapted_model()
    batch_norm_model.save_pretrained(tmp_path)
    loaded = IT3ForImageClassification.from_pretrained(tmp_path).eval()
    state = batch_norm_model.state_dict()
    assert any("_orig_mod" in name for name in state)
    assert len(loaded.state_dict()) == len(state)
    for name, value in state.items():
        assert torch.equal(loaded.state_dict()[name.replace("_orig_mod.", "")], value), name


def test_what_was_frozen_for_training_adapts_when_it_is_compiled_or_replaced_later(batch_norm_model, images):
    batch_norm_model.freeze_classifier()
    names = ModelShell(batch_norm_model, "all").names
    COMPILED["a part"](batch_norm_model)
    assert [name.replace("_orig_mod.", "") for name in ModelShell(batch_norm_model, "all").names] == names
    batch_norm_model.backbone = batch_norm_model.backbone._orig_mod
    batch_norm_model.backbone.classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, 10))
    adapter = TestTimeAdapter(batch_norm_model, NEVER)
    adapter(images[:4])
    assert adapter.adapted_model().backbone.resnet.embedder.embedder.convolution.weight.requires_grad


class CountlessBatchNorm(torch.nn.Module):
    """Writes running statistics that nothing tells of."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(1, 4, 3), torch.nn.Linear(4, 10)
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))

    def forward(self, pixel_values):
        statistics = self.running_mean, self.running_var
        features = torch.nn.functional.batch_norm(self.conv(pixel_values), *statistics, training=self.training)
        return self.head(features.relu().mean((2, 3)))


def test_an_adapter_follows_running_statistics_without_a_count(images):
    model = IT3ForImageClassification.from_backbone(CountlessBatchNorm(), num_labels=10, injection_layer="conv").eval()
    adapter = TestTimeAdapter(model, NEVER, parameters="all")
    adapter(images[:4])
    with torch.no_grad():
        model.train()(5 * images + 3)
        expected = model.eval()(images[:4]).logits
    torch.testing.assert_close(adapter(images[:4]).initial_logits, expected)
