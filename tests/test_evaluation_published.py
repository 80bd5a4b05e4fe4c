"""Published corrupted files are evaluated as they are, each condition under its published name."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hf_it3.cli import main
from hf_it3.corruptions import list_corruptions, missing_corruptions
from hf_it3.evaluation import evaluate_robustness
from hf_it3.evaluation.published import find_published


@pytest.fixture(scope="module")
def arrays(digits):
    """The first 40 test digits (40, 16, 16), uint8, and their labels."""
    pictures = [image.resize((16, 16)) for image in digits["test"]["image"][:40]]
    return np.stack([np.asarray(picture) for picture in pictures]), np.asarray(digits["test"]["label"][:40])


@pytest.fixture
def cifar_c(arrays, tmp_path):
    """The layout of CIFAR-10-C: five severities one after the other, brighter and brighter."""
    images, labels = arrays
    colour = np.repeat(images[..., None], 3, -1).astype(int)
    for name, sign in (("fog", 1), ("contrast", -1), ("speckle_noise", 1)):
        brighter = [np.clip(colour + sign * 20 * severity, 0, 255) for severity in range(5)]
        np.save(tmp_path / f"{name}.npy", np.concatenate(brighter).astype(np.uint8))
    np.save(tmp_path / "labels.npy", np.tile(labels, 5))
    return tmp_path


@pytest.fixture
def imagenet_c(arrays, tmp_path):
    """The layout of ImageNet-C, with a folder of its archives around two corruptions."""
    images, labels = arrays
    for name in ("blur/defocus_blur", "blur/zoom_blur", "frost"):
        for severity in (1, 3):
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                folder = tmp_path / name / str(severity) / str(label)
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).convert("RGB").save(folder / f"{number:03}.JPEG", quality=95)
    return tmp_path


@pytest.fixture
def mnist_c(arrays, tmp_path):
    """The layouts of MNIST-C: a folder of arrays per corruption, or one file with both."""
    images, labels = arrays
    for name in ("fog", "identity"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "test_images.npy", images[..., None])
        np.save(tmp_path / name / "test_labels.npy", labels)
    np.savez(tmp_path / "zigzag.npz", test_images=255 - images, test_labels=labels)
    return tmp_path


@pytest.fixture
def evaluate(model, processor):
    def run(path, **options):
        options = {"methods": "none,batch", "batch_size": 20, "image_processor": processor, **options}
        return evaluate_robustness(model, path, show_progress=False, **options)

    return run


def names(results):
    return [condition.name for condition in results.conditions]


def expected_accuracy(model, processor, images, labels):
    pixel_values = processor(images=[Image.fromarray(image) for image in images], return_tensors="pt").pixel_values
    with torch.no_grad():
        return (model(pixel_values).logits.argmax(-1).numpy() == labels).mean()


def test_cifar_10_c_has_five_severities_in_each_file(evaluate, cifar_c, arrays, model, processor):
    results = evaluate(str(cifar_c))
    assert names(results) == [f"cifar-10-c/{name}:{one}" for name in ("contrast", "fog") for one in range(1, 6)]
    images, labels = arrays
    for severity in (1, 3, 5):
        brighter = np.clip(images.astype(int) + 20 * (severity - 1), 0, 255).astype(np.uint8)
        expected = expected_accuracy(model, processor, brighter, labels)
        assert results.accuracy(f"cifar-10-c/fog:{severity}", "none") == pytest.approx(expected)
    assert [line.split()[0] for line in results.table().splitlines()[3:5]] == ["contrast", "fog"]
    assert results.settings["dataset"] == str(cifar_c)


def test_corruptions_and_severities_are_chosen_by_their_published_names(evaluate, cifar_c):
    chosen = evaluate(cifar_c, corruptions="fog,cifar-10-c/speckle_noise", severities="2,5", methods="none")
    assert names(chosen) == [f"cifar-10-c/{name}:{one}" for name in ("fog", "speckle_noise") for one in (2, 5)]
    assert names(evaluate(cifar_c, exclude="fog", severities=1, methods="none")) == ["cifar-10-c/contrast:1"]
    with pytest.raises(ValueError, match="have no corruption 'frog'; they have contrast, fog, speckle_noise"):
        evaluate(cifar_c, corruptions="frog")
    with pytest.raises(ValueError, match="leave none of the 15 conditions"):
        evaluate(cifar_c, corruptions="none")


def test_labels_may_be_given_once_for_all_severities(evaluate, cifar_c, arrays):
    before = evaluate(cifar_c, methods="none").to_dict()["conditions"]
    np.save(cifar_c / "labels.npy", arrays[1])
    assert evaluate(cifar_c, methods="none").to_dict()["conditions"] == before


def test_imagenet_c_has_folders_of_corruption_severity_and_class(evaluate, imagenet_c, model):
    results = evaluate(imagenet_c)
    expected = [f"imagenet-c/{name}:{one}" for name in ("frost", "defocus_blur", "zoom_blur") for one in (1, 3)]
    assert sorted(names(results)) == sorted(expected)
    assert results.accuracy("imagenet-c/frost:3", "none") > 0.7
    fewer = evaluate(imagenet_c, corruptions="frost,zoom_blur", severities="1,3", methods="none")
    assert fewer.left_out == {}


def test_what_a_benchmark_has_and_the_files_lack_is_said(evaluate, imagenet_c):
    results = evaluate(imagenet_c, exclude="frost", severities="1-3", methods="none")
    assert results.left_out["imagenet-c/zoom_blur:2"] == "the files have no such severity"
    assert results.left_out["imagenet-c/contrast"] == "the files have no such corruption"
    # Of fifteen, one is excluded and two are there at two of three severities.
    assert len(results.left_out) == 12 + 2
    assert "imagenet-c/defocus_blur:2, imagenet-c/zoom_blur:2: left out: the files have no such" in results.table()
    assert results.to_dict()["left_out"] == results.left_out
    # What is named alone is missed only where it is not complete.
    named = evaluate(imagenet_c, corruptions="imagenet-c/frost", severities="2,3", methods="none")
    assert list(named.left_out) == ["imagenet-c/frost:2"]


def test_published_files_that_are_complete_make_an_mce(evaluate, cifar_c, random_model):
    names = [name.rpartition("/")[2] for name in [*list_corruptions("imagenet-c"), *missing_corruptions("imagenet-c")]]
    for name in names:
        np.save(cifar_c / f"{name}.npy", np.load(cifar_c / "speckle_noise.npy"))
    reference = evaluate_robustness(
        random_model, cifar_c, methods="none", image_processor=None, show_progress=False
    ).to_dict()
    options = {"methods": "none", "reference": reference}
    whole = evaluate(cifar_c, **options)
    ratios = [
        sum(1 - whole.accuracy(f"cifar-10-c/{name}:{one}", "none") for one in range(1, 6))
        / sum(
            1 - score["methods"]["none"]["accuracy"]
            for score in reference["conditions"]
            if f"/{name}:" in score["name"]
        )
        for name in names
    ]
    assert whole.overall["none"]["mean_corruption_error"] == pytest.approx(np.mean(ratios))
    # The files have no uncorrupted images.
    assert "relative_mean_corruption_error" not in whole.overall["none"]
    assert "none: mCE " in whole.table()
    (cifar_c / "fog.npy").unlink()
    partial = evaluate(cifar_c, **options)
    assert list(partial.left_out) == ["cifar-10-c/fog"]
    assert "mean_corruption_error" not in partial.overall["none"]
    assert "no mCE, which would need cifar-10-c/fog" in partial.table()


def test_class_folders_are_matched_by_name(evaluate, imagenet_c, model):
    model.config.id2label = {number: str(9 - number) for number in range(10)}
    assert evaluate(imagenet_c, methods="none").accuracy("imagenet-c/frost:1", "none") < 0.5


def test_class_folders_that_are_not_the_models_are_refused(evaluate, imagenet_c, model):
    model.config.id2label = {number: f"class {number}" for number in range(10)}
    for folder in imagenet_c.glob("**/9"):
        folder.rename(folder.with_name("x"))
    assert evaluate(imagenet_c, methods="none").conditions
    for folder in imagenet_c.glob("**/x"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    with pytest.raises(ValueError, match="has 9 class folders .0, 1, 2, ....* has 10 classes of other names"):
        evaluate(imagenet_c)


def test_mnist_c_is_read_from_folders_and_from_single_files(evaluate, mnist_c, arrays, model, processor):
    results = evaluate(mnist_c)
    assert names(results) == ["mnist-c/identity", "mnist-c/fog", "mnist-c/zigzag"]
    assert [condition.is_clean for condition in results.conditions] == [True, False, False]
    images, labels = arrays
    expected = expected_accuracy(model, processor, 255 - images, labels)
    assert results.accuracy("mnist-c/zigzag", "none") == pytest.approx(expected)
    assert results.accuracy("mnist-c/fog", "none") == results.accuracy("mnist-c/identity", "none")
    assert results.condition_scores[2]["idempotence_distance"]["shift_detection_auroc"] is not None


def test_one_command_evaluates_published_files(cifar_c, trained_directory, tmp_path_factory, capsys):
    output = tmp_path_factory.mktemp("output") / "results"
    command = ["evaluate", trained_directory, "--dataset", str(cifar_c), "--methods", "none,batch", "--no_progress"]
    assert main([*command, "--batch_size", "10", "--no_plots", "--output_dir", str(output)]) == 0
    assert "contrast" in capsys.readouterr().out
    results = json.loads((output / "results.json").read_text())
    assert results["conditions"][0]["name"] == "cifar-10-c/contrast:3"
    assert main([*command, "--batch_size", "10", "--no_plots", "--output_dir", str(output), "--resume"]) == 0


def test_other_folders_are_no_published_files(tmp_path, digits):
    (tmp_path / "train" / "1").mkdir(parents=True)
    digits["test"]["image"][0].save(tmp_path / "train" / "1" / "0.png")
    assert find_published(tmp_path) == find_published(tmp_path / "nowhere") == []


def test_arrays_that_are_not_complete_are_refused(cifar_c, tmp_path_factory, arrays):
    (cifar_c / "labels.npy").unlink()
    with pytest.raises(ValueError, match=r"has arrays \(contrast.npy, fog.npy, .*CIFAR-10-C has labels.npy beside"):
        find_published(cifar_c)
    folder = tmp_path_factory.mktemp("wrong")
    np.savez(folder / "fog.npz", images=arrays[0], labels=arrays[1])
    with pytest.raises(ValueError, match=r"has arrays \(fog.npz\).*MNIST-C test_images and test_labels in each .npz"):
        find_published(folder)
    np.savez(folder / "fog.npz", test_images=arrays[0], test_labels=np.eye(10)[arrays[1]])
    with pytest.raises(ValueError, match=r"fog.npz holds labels float64 \(40, 10\); expected integers"):
        find_published(folder)


def test_labels_that_the_model_has_no_class_for_are_refused(evaluate, cifar_c, arrays):
    np.save(cifar_c / "labels.npy", arrays[1] + 90)
    with pytest.raises(ValueError, match="label 9. of image . in the batch is out of range: the model has 10 labels"):
        evaluate(cifar_c, methods="none")


def test_files_that_do_not_fit_together_are_named(cifar_c, mnist_c):
    np.save(cifar_c / "fog.npy", np.zeros((99, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match=r"fog.npy has 99 images and labels.npy 200 labels"):
        find_published(cifar_c)
    np.save(cifar_c / "fog.npy", np.zeros((200, 16, 16, 3), np.uint8))
    np.save(cifar_c / "labels.npy", np.arange(200) % 7)
    with pytest.raises(ValueError, match=r"labels.npy does not repeat itself five times"):
        find_published(cifar_c)
    np.save(cifar_c / "labels.npy", np.arange(200) % 40 % 10)
    np.save(cifar_c / "fog.npy", np.zeros((200, 16, 16, 3), np.float32))
    with pytest.raises(ValueError, match=r"fog.npy holds float32 \(200, 16, 16, 3\); expected uint8"):
        find_published(cifar_c)


def test_what_calibration_has_seen_is_left_out_whatever_suite_it_is_from(evaluate, mnist_c, model):
    model.config.calibration_corruptions = ["imagenet-c/fog", "digits-shift/contrast"]
    results = evaluate(mnist_c, exclude="calibrated", methods="none")
    assert names(results) == ["mnist-c/identity", "mnist-c/zigzag"]
