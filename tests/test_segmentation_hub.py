"""Segmentation models to the Hub and back, with the package and without, whole and as a delta, with their card."""

import json
import subprocess
import sys

import hub_fixtures
import numpy as np
import pytest
import torch
from alike import assert_alike
from huggingface_hub import ModelCard
from PIL import Image
from segmentation_families import segmenter
from transformers import AutoModelForSemanticSegmentation, SegformerImageProcessor, pipeline

from hf_it3 import IT3ForSemanticSegmentation, IT3Trainer, IT3TrainingArguments, TestTimeAdapter
from hf_it3.cli import main
from hf_it3.data import load_digit_scenes
from hf_it3.evaluation import evaluate_robustness
from hf_it3.hub.model_card import build_model_card
from hf_it3.it3.configuration_it3 import SEGMENTATION
from hf_it3.it3.remote_code_it3 import auto_map, custom_pipelines


hub, hub_client = hub_fixtures.hub, hub_fixtures.hub_client
packages_without_hf_it3 = hub_fixtures.packages_without_hf_it3

TASK = "it3-image-segmentation"
PICTURES = [np.random.default_rng(seed).integers(0, 255, (40, 32, 3), dtype=np.uint8) for seed in range(4)]
ANSWER = """
import json, sys
import numpy as np
import torch
from transformers import AutoModelForSemanticSegmentation, pipeline

pictures = [np.random.default_rng(seed).integers(0, 255, (40, 32, 3), dtype=np.uint8) for seed in range(4)]


def answers(name, **kwargs):
    segment = pipeline("it3-image-segmentation", model=name, **kwargs)
    found = [
        [[part["label"], part["score"], int(np.asarray(part["mask"]).sum())] for part in segments]
        for segments in segment(pictures, adapt=False)
    ]
    adapted = segment(pictures, gate=None, return_idempotence=True)
    model = AutoModelForSemanticSegmentation.from_pretrained(name, **kwargs).eval()
    with torch.no_grad():
        logits = model(torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)).logits
    return {
        "found": found,
        "idempotence": [segments[0]["idempotence"] for segments in adapted],
        "adapted": all(segments[0]["adapted"] for segments in adapted),
        "logits": logits.flatten().tolist(),
        "module": type(model).__module__,
    }
"""
WITH_PACKAGE = (
    ANSWER
    + """
import hf_it3

print(json.dumps(answers(sys.argv[1])))
"""
)
WITHOUT_PACKAGE = (
    """
import sys

sys.path.append(sys.argv[1])
try:
    import hf_it3
except ImportError:
    pass
else:
    sys.exit("hf_it3 is here: this process proves nothing")
"""
    + ANSWER
    + """
print(json.dumps(answers(sys.argv[2], trust_remote_code=True)))
"""
)


@pytest.fixture(scope="module")
def model():
    return IT3ForSemanticSegmentation.from_backbone(segmenter("segformer")).eval()


@pytest.fixture(scope="module")
def segment(model):
    return pipeline(TASK, model=model, image_processor=SegformerImageProcessor(size={"height": 32, "width": 32}))


@pytest.fixture(scope="module")
def expected(segment, tmp_path_factory):
    """What this process answers with the model as it is saved."""
    folder = tmp_path_factory.mktemp("saved")
    segment.save_pretrained(folder)
    space: dict = {}
    exec(ANSWER, space)
    return space["answers"](str(folder))


def answered(hub, folder, *command):
    environment = hub.env()
    if "-S" in command:
        environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, *command],
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_new_processes_with_the_package_and_without_get_the_same_answers(
    hub, hub_client, segment, expected, packages_without_hf_it3, tmp_path
):
    name = hub.name("scenes")
    segment.push_to_hub(name, include_code=True)
    config = json.loads(hub.read(name, "config.json"))
    assert (config["auto_map"], config["custom_pipelines"]) == (auto_map(SEGMENTATION), custom_pipelines(SEGMENTATION))
    here = answered(hub, tmp_path, "-c", WITH_PACKAGE, name)
    elsewhere = answered(hub, tmp_path, "-S", "-c", WITHOUT_PACKAGE, str(packages_without_hf_it3), name)
    assert elsewhere.pop("module").startswith("transformers_modules.")
    assert here.pop("module").startswith("hf_it3.")
    plain = {key: value for key, value in expected.items() if key != "module"}
    assert plain["adapted"]
    assert_alike([here, elsewhere], [plain, plain])


@pytest.mark.parametrize("delta", [True, False])
def test_adapted_weights_come_back(hub, hub_client, segment, delta):
    base, name = hub.name("base"), hub.name("adapted")
    segment.push_to_hub(base)
    images = torch.rand(4, 3, 32, 32)
    adapter = TestTimeAdapter(IT3ForSemanticSegmentation.from_pretrained(base), gate=None, learning_rate=0.01)
    adapter(images)
    adapted = adapter.adapted_model()
    adapted.push_to_hub(name, delta=delta)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(name).eval()
    assert type(loaded) is IT3ForSemanticSegmentation
    with torch.no_grad():
        logits, plain = loaded(images).logits, segment.model(images).logits
        torch.testing.assert_close(logits, adapted.eval()(images).logits, atol=1e-6, rtol=0)
    assert not torch.allclose(logits, plain)


def test_the_shell_adapts_and_pushes_segmentation_models(hub, hub_client, segment, tmp_path, capsys):
    segment.save_pretrained(tmp_path / "model")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for position, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(pictures / f"{position}.png")
    output = tmp_path / "adapted"
    assert main(["adapt", str(tmp_path / "model"), str(pictures), "--output_dir", str(output), "--no_gate"]) == 0
    assert type(AutoModelForSemanticSegmentation.from_pretrained(output)) is IT3ForSemanticSegmentation
    name = hub.name("from-the-shell")
    assert main(["push", str(output), name]) == 0
    assert ModelCard.load(name).data.pipeline_tag == "image-segmentation"


# Cards


def test_the_card_has_the_task_its_example_and_mean_iou_in_its_index(model):
    scenes = load_digit_scenes(num_train=1, num_test=4, size=32, digit_size=16)["test"]
    rows = [{"image": row["image"], "annotation": np.asarray(row["annotation"]) % 4} for row in scenes]
    results = evaluate_robustness(
        model,
        rows,
        corruptions="digits-shift/brightness",
        methods={"batch": {"gate": None, "num_steps": 1}},
        batch_size=4,
        image_processor=SegformerImageProcessor(size={"height": 32, "width": 32}),
        show_progress=False,
    )
    card = build_model_card(model, model_id="user/scenes", results=results)
    assert card.data.pipeline_tag == "image-segmentation"
    assert "image-segmentation" in card.data.tags
    assert card.data.metrics == ["mean_iou"]
    entries = card.data.eval_results
    assert {(entry.task_type, entry.metric_type) for entry in entries} == {("image-segmentation", "mean_iou")}
    values = {(entry.dataset_config, entry.metric_name): entry.metric_value for entry in entries}
    for condition in ("clean", "digits-shift/brightness"):
        for method, how in (("none", "unadapted"), ("batch", "adapted")):
            found = values[condition, f"Mean IoU, {how}"]
            assert found == pytest.approx(results.score(condition, method), abs=1e-4)
    assert 'segmenter = pipeline("it3-image-segmentation", model="user/scenes")' in card.text
    assert "Mean IoU in percent" in card.text
    assert "IT3ForSemanticSegmentation.from_pretrained" in card.text
    assert "lassif" not in card.text


def test_the_trainers_card_has_the_mean_iou_of_its_evaluation(model, tmp_path):
    scenes = load_digit_scenes(num_train=1, num_test=4, size=32, digit_size=16)["test"]
    rows = [{"image": row["image"], "annotation": np.asarray(row["annotation"]) % 4} for row in scenes]
    arguments = IT3TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, eval_adapted=True)
    trainer = IT3Trainer(model, arguments, eval_dataset=rows)
    metrics = trainer.evaluate()
    trainer.create_model_card()
    entries = ModelCard.load(tmp_path / "README.md").data.eval_results
    found = {entry.metric_name: entry.metric_value for entry in entries}
    assert found["Mean IoU, unadapted"] == pytest.approx(metrics["eval_mean_iou"], abs=1e-4)
    assert found["Mean IoU, adapted"] == pytest.approx(metrics["eval_adapted_mean_iou"], abs=1e-4)
