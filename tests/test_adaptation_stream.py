"""Scope stream: weights that live on, their state, and the guard against collapse."""

import copy
import io

import pytest
import torch
from naive_adaptation import NaiveAdaptation

from hf_it3 import IT3Config, IT3ForImageClassification, TestTimeAdapter
from hf_it3.it3.stream_it3 import CollapseGuard
from hf_it3.it3.task_it3 import Task


@pytest.fixture
def double_model(model):
    return model.double()


@pytest.fixture
def batches(shifted_images):
    return shifted_images.double().split(16)


def stream_of(model, **settings) -> TestTimeAdapter:
    return TestTimeAdapter(model, **{"scope": "stream", "gate": None, "num_steps": 2, **settings})


@pytest.mark.parametrize("anchor", [None, "ema", "frozen", "self"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weights_anchor_and_optimizer_live_on_from_call_to_call(double_model, batches, anchor, optimizer):
    settings = {"anchor": anchor, "optimizer": optimizer, "ema_decay": 0.8, "learning_rate": 1e-3}
    adapter = stream_of(double_model, **settings)
    naive = NaiveAdaptation(double_model, scope="stream", gate=None, num_steps=2, **settings)
    for images in batches:
        output = adapter(images)
        torch.testing.assert_close(output.logits, naive(images), rtol=0, atol=1e-9)
        assert torch.equal(output.initial_logits, double_model(images).logits)
        assert output.adapted.all()


def test_reset_starts_again_from_the_model(double_model, batches):
    adapter = stream_of(double_model)
    first = [adapter(images).logits for images in batches]
    adapter.reset()
    assert adapter.state_dict()["num_images"] == 0
    again = [adapter(images).logits for images in batches]
    assert all(map(torch.equal, first, again))


class TestState:
    @pytest.mark.parametrize("anchor", ["ema", "frozen"])
    @pytest.mark.parametrize("optimizer", ["adam", torch.optim.AdamW])
    @pytest.mark.parametrize("through_a_file", [True, False])
    def test_a_restored_stream_goes_on_exactly_as_it_would_have(
        self, model, batches, anchor, optimizer, through_a_file
    ):
        settings = {"anchor": anchor, "optimizer": optimizer, "gate": -1.0, "gate_window": 40}
        batches = [images.float() for images in batches]
        adapter = stream_of(model, **settings)
        for images in batches[:2]:
            adapter(images)
        state = adapter.state_dict()
        if through_a_file:
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        expected = [adapter(images).logits for images in batches[2:]]
        restored = stream_of(model, **settings)
        for _ in range(2):
            restored.load_state_dict(state)
            assert all(map(torch.equal, [restored(images).logits for images in batches[2:]], expected))
        _assert_same(restored.state_dict(), adapter.state_dict())

    def test_it_counts_images_and_steps(self, model, shifted_images):
        adapter = stream_of(model)
        adapter(shifted_images)
        adapter(shifted_images[:6])
        state = adapter.state_dict()
        assert (state["num_images"], state["num_steps"], state["num_resets"]) == (70, 4, 0)

    @pytest.mark.parametrize(
        ("settings", "reason"),
        [
            ({"optimizer": "sgd"}, "saved with optimizer='adam', this adapter has optimizer='sgd'"),
            ({"learning_rate": 0.5}, "saved with learning_rate=0.0003, this adapter has learning_rate=0.5"),
            ({"parameters": "bias"}, "saved with parameters='all'"),
            ({"anchor": "frozen"}, "saved with anchor='ema'"),
            ({"anchor": "self"}, "saved with anchor='ema'"),
        ],
    )
    def test_a_state_of_other_settings_is_refused(self, model, shifted_images, settings, reason):
        adapter = stream_of(model)
        adapter(shifted_images)
        other = stream_of(model, **settings)
        before = other.state_dict()
        with pytest.raises(ValueError, match=reason):
            other.load_state_dict(adapter.state_dict())
        _assert_same(other.state_dict(), before)

    def test_a_state_of_another_model_is_refused(self, model, batch_norm_model):
        same = {"learning_rate": 1e-3, "parameters": "all"}
        with pytest.raises(ValueError, match="other parameters than this model's"):
            stream_of(batch_norm_model, **same).load_state_dict(stream_of(model, **same).state_dict())
        state = stream_of(model).state_dict()
        with torch.no_grad():
            model.backbone.fc1.weight.mul_(1.01)
        with pytest.raises(ValueError, match="other base weights than this model's"):
            stream_of(model).load_state_dict(state)

    def test_what_is_no_state_is_refused(self, model):
        with pytest.raises(ValueError, match="not the state of a stream: it lacks .*optimizer, parameters"):
            stream_of(model).load_state_dict({"anchor": None})

        with pytest.raises(ValueError, match="the state of a stream is a dict, got NoneType"):
            stream_of(model).load_state_dict(None)

    @pytest.mark.parametrize(
        ("spoil", "reason"),
        [
            (lambda state: state.pop("num_images"), "it lacks num_images$"),
            (lambda state: state.update(guard={}), "it lacks guard.count, guard.mean, guard.predicted, guard.square$"),
            (lambda state: state.update(anchor=None), "other parameters than this model's"),
            (lambda state: state.update(optimizer={}), "state of the optimizer does not fit the parameters"),
            (
                lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
                "state of the optimizer does not fit the parameters: it has shapes",
            ),
        ],
    )
    def test_a_state_that_is_not_whole_is_refused_and_changes_nothing(self, model, shifted_images, spoil, reason):
        adapter, other = stream_of(model), stream_of(model)
        adapter(shifted_images)
        other(shifted_images * 2)
        state = adapter.state_dict()
        spoil(state)
        before = other.state_dict()
        with pytest.raises(ValueError, match=reason):
            other.load_state_dict(state)
        _assert_same(other.state_dict(), before)

    @pytest.mark.parametrize(("ours", "theirs"), [(None, "ema"), ("ema", None)])
    def test_the_default_anchor_may_be_named(self, model, shifted_images, ours, theirs):
        adapter, other = stream_of(model, anchor=ours), stream_of(model, anchor=theirs)
        adapter(shifted_images)
        other.load_state_dict(adapter.state_dict())
        assert torch.equal(other(shifted_images).logits, adapter(shifted_images).logits)

    def test_it_can_be_restored_after_the_weights_were_converted(self, model, shifted_images):
        adapter = stream_of(model)
        adapter(shifted_images)
        state = adapter.state_dict()
        model.double()
        for restored in (adapter, stream_of(model)):
            restored.load_state_dict(state)
            restored(shifted_images.double())
            assert restored.state_dict()["num_steps"] == 4

    @pytest.mark.parametrize(
        "formats", [(torch.contiguous_format, torch.channels_last), (torch.channels_last, torch.contiguous_format)]
    )
    def test_it_can_be_restored_into_a_model_in_another_memory_format(self, double_model, batches, formats):
        saved, restored = (stream_of(copy.deepcopy(double_model).to(memory_format=layout)) for layout in formats)
        for images in batches[:2]:
            saved(images)
        restored.load_state_dict(saved.state_dict())
        for images in batches[2:]:
            torch.testing.assert_close(restored(images).logits, saved(images).logits, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("scope", ["batch", "image"])
    def test_other_scopes_have_none(self, model, scope):
        adapter = TestTimeAdapter(model, scope=scope)
        with pytest.raises(ValueError, match=f"state_dict is for scope='stream'; scope='{scope}' keeps nothing"):
            adapter.state_dict()
        with pytest.raises(ValueError, match="load_state_dict is for scope='stream'"):
            adapter.load_state_dict({})


def _assert_same(left, right):
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            _assert_same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            _assert_same(one, other)
    else:
        assert left == right


class TestAdaptedModel:
    def test_it_has_the_weights_of_the_stream_and_survives_saving(self, model, shifted_images, tmp_path):
        adapter = stream_of(model)
        adapter(shifted_images)
        output = adapter(shifted_images)
        adapted = adapter.adapted_model()
        torch.testing.assert_close(adapted(shifted_images).logits, output.logits)
        assert adapted.config.base_model["num_images"] == 128
        assert adapted.config.base_model["num_steps"] == 4
        adapted.save_pretrained(tmp_path)
        again = IT3ForImageClassification.from_pretrained(tmp_path)
        assert torch.equal(again(shifted_images).logits, adapted(shifted_images).logits)
        assert again.config.base_model["scope"] == "stream"


class TestGate:
    def test_it_looks_at_the_latest_images(self, model, images, shifted_images):
        adapter = TestTimeAdapter(model, scope="stream", gate_window=128, num_steps=1)
        opens = [adapter(batch).adapted.all().item() for batch in (images, images, shifted_images, shifted_images)]
        assert opens[0] is False
        assert opens[-1] is True
        assert len(adapter.state_dict()["window"]["distances"]) == 128

    def test_closed_the_stream_stays_where_it_is(self, model, images, shifted_images):
        adapter = TestTimeAdapter(model, scope="stream", gate_window=64)
        adapter(shifted_images)
        before = adapter.state_dict()
        output = adapter(images)
        assert not output.adapted.any()
        after = adapter.state_dict()
        for key in ("parameters", "anchor", "optimizer", "num_images", "num_steps"):
            _assert_same(after[key], before[key])


class ToOneClass(torch.optim.SGD):
    """An optimizer that drives every prediction to class 3."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.0)

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            if parameter.shape == (10,):
                parameter[3] += 1000.0


class TestCollapse:
    def test_a_collapsed_stream_answers_unadapted_and_starts_again(self, model, images, caplog):
        adapter = stream_of(model, optimizer=ToOneClass)
        output = adapter(images)
        assert "The stream collapsed: 100% of the adapted predictions are one class, against" in caplog.text
        assert torch.equal(output.logits, output.initial_logits)
        assert not output.adapted.any()
        assert torch.equal(adapter.adapted_model()(images).logits, model(images).logits)
        assert adapter.state_dict()["num_resets"] == 1

    def test_the_guard_can_be_turned_off(self, model, images, caplog):
        output = stream_of(model, optimizer=ToOneClass, collapse_guard=False)(images)
        assert (output.logits.argmax(-1) == 3).all()
        assert "collapsed" not in caplog.text

    def test_a_stream_whose_images_are_of_one_class_has_not_collapsed(self, model, shifted_images, caplog):
        classes = model(shifted_images).logits.argmax(-1)
        same = shifted_images[classes == classes.mode().values]
        adapter = stream_of(model)
        for _ in range(6):
            assert adapter(same).adapted.all()
        assert "collapsed" not in caplog.text

    def test_a_loss_that_runs_away_is_a_collapse(self):
        guard = CollapseGuard(Task.of(IT3Config()), window=8)
        predictions = torch.eye(4)
        for loss in [1.0, 1.1, 0.9] * 5:
            assert guard.verdict(predictions, predictions, loss) is None
        assert guard.verdict(predictions, predictions, 1.2) is None
        assert "loss rose to 9" in guard.verdict(predictions, predictions, 9.0)

    @pytest.mark.parametrize("collapse_guard", [True, False])
    def test_steps_that_are_too_large_are_a_reset_that_is_told_and_counted(
        self, model, shifted_images, caplog, collapse_guard
    ):
        adapter = stream_of(model, learning_rate=1e30, collapse_guard=collapse_guard)
        for count in (1, 2):
            caplog.clear()
            output = adapter(shifted_images)
            assert torch.equal(output.logits, output.initial_logits)
            assert "unadapted answer, and the stream starts again from the source weights" in caplog.text
            state = adapter.state_dict()
            assert (state["num_images"], state["num_steps"], state["num_resets"]) == (0, 0, count)

    def test_an_optimizer_that_breaks_the_weights_costs_nobody_their_answer(self, model, images, caplog):
        class Break(torch.optim.SGD):
            @torch.no_grad()
            def step(self, closure=None):
                self.param_groups[0]["params"][0].fill_(float("nan"))

        adapter = stream_of(model, optimizer=Break)
        output = adapter(images)
        assert "not finite for 64 of 64 images" in caplog.text
        assert torch.equal(output.logits, output.initial_logits)
        assert torch.equal(adapter.adapted_model()(images).logits, model(images).logits)


def test_replaced_weights_start_the_stream_again_and_say_so(model, shifted_images, caplog):
    adapter = stream_of(model)
    adapter(shifted_images)
    model.double()
    output = adapter(shifted_images.double())
    assert "starts again" in caplog.text
    torch.testing.assert_close(output.logits, stream_of(model)(shifted_images.double()).logits)
    assert output.logits.dtype == torch.float64


def test_buffers_of_a_stream_stay_those_of_the_model(batch_norm_model):
    adapter = stream_of(batch_norm_model, norm_statistics="batch")
    adapter(torch.rand(8, 1, 16, 16))
    for buffer, ours in zip(adapter.shell.module.buffers(), batch_norm_model.buffers(), strict=True):
        assert torch.equal(buffer, ours)
    adapter.reset()
    for buffer, ours in zip(adapter.adapted_model().buffers(), batch_norm_model.buffers(), strict=True):
        assert torch.equal(buffer, ours)
