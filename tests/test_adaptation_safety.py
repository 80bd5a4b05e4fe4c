"""Whatever happens in a call, the model stays bit-identical, nobody gets NaN for an answer, and threads do not mix."""

import contextlib
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from untouched import untouched

from hf_it3 import IT3ForImageClassification, TestTimeAdapter
from hf_it3.it3.modeling_cnn_it3 import IT3CNNForImageClassification


SCOPES = {
    "batch": {"scope": "batch"},
    "stream": {"scope": "stream"},
    "images at once": {"scope": "image", "vectorize": True},
    "image by image": {"scope": "image", "vectorize": False},
    "augmented": {"scope": "average", "augmentations": 3},
}
every_scope = pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)


def adapter_of(model, scope, **settings) -> TestTimeAdapter:
    settings = {"gate": None, "num_steps": 3, "learning_rate": 1e-3, **scope, **settings}
    if settings["scope"] == "average":
        settings["augmentation_steps"] = settings.pop("num_steps")
    return TestTimeAdapter(model, **settings)


@every_scope
class TestTheModelStaysAsItIs:
    @pytest.mark.parametrize("anchor", ["frozen", "ema", "self"])
    def test_after_calls(self, model, shifted_images, scope, anchor):
        with untouched(model):
            adapter = adapter_of(model, scope, anchor=anchor)
            for images in shifted_images[:12].split(6):
                assert adapter(images).adapted.all()
            adapter.reset()

    @pytest.mark.parametrize("statistics", ["source", "batch", "mixed"])
    def test_after_calls_with_statistics_of_the_batch(self, batch_norm_model, scope, statistics):
        images = torch.rand(4, 1, 16, 16)
        with untouched(batch_norm_model):
            adapter_of(batch_norm_model, scope, norm_statistics=statistics)(images)

    def test_in_training_with_gradients_and_frozen_parameters(self, model, images, labels, scope):
        model.train()
        model.backbone.conv1.weight.requires_grad_(False)
        model(images, labels=labels).loss.backward()
        with untouched(model):
            assert adapter_of(model, scope)(images[:4]).adapted.all()

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    @pytest.mark.parametrize("where", ["backbone", "distance", "optimizer"])
    def test_after_an_exception_and_so_does_the_next_answer(
        self, model, shifted_images, monkeypatch, scope, where, error
    ):
        images = shifted_images[:4]
        bomb = Bomb(error)
        settings = {}
        if where == "backbone":
            monkeypatch.setattr(IT3CNNForImageClassification, "forward", bomb(IT3CNNForImageClassification.forward))
        elif where == "distance":
            settings["distance"] = bomb(lambda y1, y0: -(y1 * y0).sum(-1))
        else:
            # An optimizer of the caller's takes no vectorised steps.
            scope = {**scope, "vectorize": None}
            settings["optimizer"] = lambda parameters: Bombed(parameters, bomb)
        expected = adapter_of(model, scope, **settings)(images).logits
        calls, bomb.calls = bomb.calls, 0
        assert calls > 0
        for fuse in range(calls):
            adapter = adapter_of(model, scope, **settings)
            with untouched(model):
                bomb.calls, bomb.fuse = 0, fuse
                with pytest.raises(error, match="bomb"):
                    adapter(images)
                bomb.fuse = None
                adapter.reset()
                assert torch.equal(adapter(images).logits, expected)


class Bomb:
    """Wraps functions; the call number `fuse`, counted over all of them, raises."""

    def __init__(self, error):
        self.error, self.fuse, self.calls = error, None, 0

    def __call__(self, function):
        def call(*args, **kwargs):
            if self.calls == self.fuse:
                raise self.error("bomb")
            self.calls += 1
            return function(*args, **kwargs)

        return call


class Bombed(torch.optim.SGD):
    """Plain SGD that may raise in the middle of a step, with half of the parameters moved."""

    def __init__(self, parameters, bomb):
        super().__init__(parameters, lr=0.01)
        self.bomb = bomb

    def step(self, closure=None):
        parameters = self.param_groups[0]["params"]
        with torch.no_grad():
            for parameter in parameters[: len(parameters) // 2]:
                parameter -= 0.01 * parameter.grad
            self.bomb(lambda: None)()
            for parameter in parameters[len(parameters) // 2 :]:
                parameter -= 0.01 * parameter.grad


@every_scope
class TestValuesThatAreNotFinite:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_broken_images_get_their_unadapted_answer_and_harm_nobody_else(
        self, model, shifted_images, caplog, scope, value
    ):
        images = shifted_images[:6].clone()
        images[2, 0, 3, 3] = value
        output = adapter_of(model, scope)(images)
        whole = [0, 1, 3, 4, 5]
        assert output.adapted.tolist() == [index != 2 for index in range(6)]
        assert output.logits[whole].isfinite().all()
        assert output.loss_history.isfinite().sum() > 0
        without = adapter_of(model, scope)(images[whole])
        torch.testing.assert_close(output.logits[whole], without.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output.logits[2], model(images[2:3]).logits[0], equal_nan=True)
        assert "1 of 6 images have pixels or predictions that are not finite" in caplog.text

    def test_a_gradient_that_is_not_finite_costs_nobody_their_answer(self, model, shifted_images, caplog, scope):
        def distance(y1, y0):
            return -(y1 * y0).sum(-1)

        def of_broken_gradient(y1, y0):
            # The square root of zero has an infinite derivative, which times zero is NaN.
            return distance(y1, y0) + 0 * (y0 - y0.detach()).abs().sum(-1).sqrt()

        assert adapter_of(model, scope, distance=distance)(shifted_images[:6]).adapted.all()
        output = adapter_of(model, scope, distance=of_broken_gradient)(shifted_images[:6])
        assert output.loss_history[0].isfinite().all(), "the first loss is whole, so there was a step"
        assert not output.adapted.any()
        assert torch.equal(output.logits, output.initial_logits)
        assert "values that are not finite for 6 of 6 images" in caplog.text

    def test_steps_that_are_too_large_cost_nobody_their_answer(self, model, shifted_images, caplog, scope):
        images = shifted_images[:6]
        assert adapter_of(model, scope, learning_rate=1e-3, optimizer="sgd", num_steps=4)(images).adapted.all()
        output = adapter_of(model, scope, learning_rate=1e38, optimizer="sgd", num_steps=4)(images)
        assert output.logits.isfinite().all()
        fallen_back = ~output.adapted
        assert torch.equal(output.logits[fallen_back], output.initial_logits[fallen_back])
        assert fallen_back.any()
        assert "not finite" in caplog.text

    def test_broken_weights_give_the_models_own_answer(self, model, shifted_images, scope):
        with torch.no_grad():
            model.backbone.fc4.bias[4] = float("nan")
        output = adapter_of(model, scope)(shifted_images[:3])
        assert not output.adapted.any()
        torch.testing.assert_close(output.logits, model(shifted_images[:3]).logits, equal_nan=True)


def test_adapters_and_plain_forwards_in_threads_equal_those_one_after_the_other(model, images, shifted_images):
    settings = [
        {"scope": "batch"},
        {"scope": "batch", "anchor": "ema", "parameters": "bias"},
        {"scope": "stream"},
        {"scope": "image", "vectorize": True},
        {"scope": "image", "vectorize": False, "num_steps": 1},
    ]
    batches = [*shifted_images[:16].split(8), *images[:16].split(8)] * 2

    def adapt_all(scope):
        adapter = adapter_of(model, scope)
        return [adapter(batch).logits for batch in batches]

    def plain(signal):
        with torch.no_grad():
            return [model(batch, label_signal=signal).logits for batch in batches * 4]

    signals = [None, torch.zeros(8, 10), torch.full((8, 10), 0.1)]
    jobs = [(adapt_all, scope) for scope in settings] + [(plain, signal) for signal in signals]
    expected = [function(argument) for function, argument in jobs]
    with untouched(model), ThreadPoolExecutor(len(jobs)) as pool:
        results = [pool.submit(function, argument) for function, argument in jobs]
        for result, logits in zip(results, expected, strict=True):
            for ours, theirs in zip(result.result(), logits, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_one_adapter_called_from_several_threads_takes_turns(model, shifted_images):
    adapter = adapter_of(model, SCOPES["batch"])
    batches = shifted_images.split(8)
    expected = [adapter(batch).logits for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda batch: adapter(batch).logits, batches))
    torch.testing.assert_close(results, expected, rtol=1e-5, atol=1e-6)


CALLERS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "disabled gradients": lambda: torch.set_grad_enabled(False),
}


@every_scope
class TestCallers:
    @pytest.mark.parametrize("context", CALLERS.values(), ids=CALLERS)
    def test_the_callers_gradient_mode_does_not_matter(self, model, shifted_images, scope, context):
        expected = adapter_of(model, scope)(shifted_images[:6]).logits
        with context():
            images = shifted_images[:6] + 0.0
            output = adapter_of(model, scope)(images)
            assert torch.equal(output.logits, expected)
            assert not torch.is_grad_enabled()

    def test_a_model_loaded_in_inference_mode_adapts(self, trained_directory, model, shifted_images, scope):
        with torch.inference_mode():
            loaded = IT3ForImageClassification.from_pretrained(trained_directory)
            output = adapter_of(loaded, scope)(shifted_images[:6])
        expected = adapter_of(model, scope)(shifted_images[:6]).logits
        torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("settings", [{}, {"anchor": "ema"}, {"anchor": "self"}], ids=str)
    def test_autocast_adapts_and_forgets_from_batch_to_batch(self, model, shifted_images, scope, settings):
        first, second = shifted_images[:6], shifted_images[6:12]
        with torch.autocast("cpu", torch.bfloat16):
            plain = model(first).logits
            adapter = adapter_of(model, scope, **settings)
            together = [adapter(first), adapter(second)]
            assert torch.equal(model(first).logits, plain)
        alone = []
        adapter = adapter_of(model, scope, **settings)
        for images in (first, second):
            with torch.autocast("cpu", torch.bfloat16):
                alone.append(adapter(images))
        for ours, theirs in zip(together, alone, strict=True):
            assert ours.adapted.all()
            torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-3, atol=1e-3)
            assert not torch.allclose(ours.logits.float(), ours.initial_logits.float(), atol=0.05)

    @pytest.mark.parametrize("statistics", ["source", "batch", "mixed"])
    def test_autocast_adapts_models_with_batch_norm(self, batch_norm_model, scope, statistics):
        images = torch.rand(4, 1, 16, 16)
        logits = {}
        for rate in (0.0, 1e-2):
            adapter = adapter_of(batch_norm_model, scope, norm_statistics=statistics, learning_rate=rate)
            with torch.autocast("cpu", torch.bfloat16):
                logits[rate] = adapter(images).logits.float()
                adapter.reset()
        assert not torch.allclose(logits[0.0], logits[1e-2], atol=1e-2)
        still = adapter_of(batch_norm_model, scope, norm_statistics=statistics, learning_rate=0.0)(images).logits
        torch.testing.assert_close(logits[0.0], still, rtol=0.1, atol=0.1)

    def test_double_precision_stays_double(self, model, shifted_images, scope):
        output = adapter_of(model.double(), scope)(shifted_images[:4].double())
        assert output.logits.dtype == output.idempotence.dtype == torch.float64

    def test_half_precision_weights_take_small_steps(self, model, shifted_images, scope):
        images = shifted_images[:6]
        # Steps of 1e-4 are far below what bfloat16 resolves in weights of this size.
        settings = {"learning_rate": 1e-4, "num_steps": 40}
        exact = adapter_of(model, {**scope, **settings})(images)
        model.to(torch.bfloat16)
        with untouched(model):
            output = adapter_of(model, {**scope, **settings})(images.bfloat16())
        assert output.logits.dtype == torch.bfloat16
        assert output.adapted.all()
        moved = (exact.logits - exact.initial_logits).abs().mean()
        assert (output.logits.float() - exact.logits).abs().mean() < moved / 2

    def test_a_model_loaded_with_a_device_map_adapts(self, trained_directory, model, shifted_images, scope):
        loaded = IT3ForImageClassification.from_pretrained(trained_directory, device_map={"": "cpu"})
        output = adapter_of(loaded, scope)(shifted_images[:6])
        expected = adapter_of(model, scope)(shifted_images[:6]).logits
        torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-4)

    def test_a_model_dispatched_by_accelerate_adapts(self, model, shifted_images, scope):
        from accelerate import dispatch_model

        expected = adapter_of(model, scope)(shifted_images[:6]).logits
        device_map = dict.fromkeys(("backbone", "embedder", "feature_statistics", "shift_reference"), "cpu")
        dispatched = dispatch_model(model, device_map, main_device="cpu", force_hooks=True)
        with untouched(dispatched):
            assert torch.equal(adapter_of(dispatched, scope)(shifted_images[:6]).logits, expected)


class TestWeightsThatAreNotThere:
    def test_offloaded_weights_are_refused_by_name(self, model, tmp_path):
        from accelerate import disk_offload

        disk_offload(model, tmp_path, execution_device="cpu")
        with pytest.raises(ValueError, match=r"backbone\.conv1\.weight is on the meta device: .* offloaded"):
            TestTimeAdapter(model)

    def test_so_are_those_of_a_model_on_the_meta_device(self, model):
        with pytest.raises(ValueError, match="meta device"):
            TestTimeAdapter(model.to("meta"))


class TestReplacedWeights:
    @pytest.mark.parametrize(
        "replace",
        [
            lambda model, other: model.load_state_dict(other.state_dict()),
            lambda model, other: model.load_state_dict(other.state_dict(), assign=True),
            lambda model, other: setattr(model, "backbone", other.backbone),
        ],
        ids=["in place", "assigned", "module"],
    )
    @pytest.mark.parametrize("scope", [SCOPES["batch"], SCOPES["images at once"]], ids=["batch", "image"])
    def test_an_adapter_follows_its_model(self, model, random_model, shifted_images, scope, replace):
        adapter = adapter_of(model, scope)
        before = adapter(shifted_images[:6]).logits
        replace(model, random_model)
        after = adapter(shifted_images[:6]).logits
        assert not torch.allclose(after, before)
        assert torch.equal(after, adapter_of(model, scope)(shifted_images[:6]).logits)

    def test_an_adapter_follows_a_conversion(self, model, shifted_images):
        adapter = adapter_of(model, SCOPES["batch"])
        adapter(shifted_images)
        model.double()
        assert adapter(shifted_images.double()).logits.dtype == torch.float64

    def test_a_training_step_between_calls_counts(self, model, images, labels, shifted_images):
        adapter = adapter_of(model, SCOPES["batch"])
        adapter(shifted_images)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(images, labels=labels).loss.backward()
        optimizer.step()
        expected = adapter_of(model, SCOPES["batch"])(shifted_images)
        output = adapter(shifted_images)
        assert torch.equal(output.initial_logits, model(shifted_images).logits)
        assert torch.equal(output.logits, expected.logits)


def test_two_adapters_of_one_model_do_not_see_each_other(model, shifted_images):
    one, other = (adapter_of(model, SCOPES["stream"]) for _ in range(2))
    expected = [one(batch).logits for batch in shifted_images.split(16)]
    one.reset()
    for batch, logits in zip(shifted_images.split(16), expected, strict=True):
        assert torch.equal(other(batch).logits, logits)
        one(batch * 2)


def test_the_callers_images_are_not_changed(model, shifted_images):
    shifted_images.requires_grad_()
    before = shifted_images.detach().clone()
    for scope, context in itertools.product(SCOPES.values(), (contextlib.nullcontext, torch.no_grad)):
        with context():
            adapter_of(model, scope)(shifted_images)
    assert torch.equal(shifted_images, before)
    assert shifted_images.grad is None
