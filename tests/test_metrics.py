"""The validation metrics against NumPy and SciPy, image by image, then the mean."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_bold_model
from PIL import Image
from scipy.ndimage import gaussian_filter
from test_losses import find_reference

import tinybeauty_training
from tinybeauty.cache import PixelCache, decode_pairs
from tinybeauty.pairs import Pair, find_pairs
from tinybeauty_training import MakeupLoss, MakeupPairs, TinyBeauty, evaluate, psnr

SIZE, COUNT, BARE = 32, 7, 4  # pair number BARE has no mask
CRITERION = MakeupLoss(0.7, 1.9)


def read(folder: Path) -> tuple[list[Pair], PixelCache]:
    files = find_pairs(folder)
    return files, decode_pairs(files, SIZE, folder=None, skip_bad=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[list[Pair], PixelCache]:
    """Pairs whose difference grows from image to image, so that a mean of PSNRs is no PSNR of a mean."""
    folder, rng = tmp_path_factory.mktemp("metrics"), np.random.default_rng(0)
    for kind in ("source", "target", "eye_mask"):
        (folder / kind).mkdir()
    for index in range(COUNT):
        source = gaussian_filter(rng.uniform(0, 255, (SIZE, SIZE, 3)), (2, 2, 0)) * 3 - 255
        target = source + rng.normal(0, 2.0 * 2**index, source.shape)
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[8 : 12 + index, 5:25] = 255
        mask[10, 8:20] = 100  # a soft spot
        for kind, image in (("source", source), ("target", target), ("eye_mask", mask)):
            if kind != "eye_mask" or index != BARE:
                pixels = image.clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / kind / f"{index}.png")
    return read(folder)


@pytest.fixture(scope="module")
def pairs(data) -> MakeupPairs:
    return MakeupPairs(*data)


@pytest.fixture(scope="module")
def model(pairs) -> TinyBeauty:
    """Some makeup, strong enough that the output must be clamped."""
    return make_bold_model(torch.stack([source for source, _, _ in pairs]), 0.3)


@pytest.fixture(scope="module")
def reference(pairs, model) -> dict[str, np.ndarray]:
    """Every metric of every image, from NumPy and SciPy."""
    columns = {name: [] for name in ("l1", "eyeliner", "psnr", "psnr_source", "psnr_eyes", "ssim")}
    for index in range(COUNT):
        source, target, mask = pairs[index]
        with torch.no_grad():
            output = source + model(source[None])[0]
        shown = output.clamp(0, 1).double().numpy()
        bare, made, area = source.double().numpy(), target.double().numpy(), mask.double().numpy()
        columns["l1"].append(np.abs(output.double().numpy() - made).mean())
        columns["eyeliner"].append(find_reference(output, target, mask))
        columns["psnr"].append(10 * np.log10(1 / ((shown - made) ** 2).mean()))
        columns["psnr_source"].append(10 * np.log10(1 / ((bare - made) ** 2).mean()))
        if index != BARE:
            inside = ((shown - made) ** 2 * area).sum() / (3 * area.sum())
            columns["psnr_eyes"].append(10 * np.log10(1 / inside))
        columns["ssim"].append(find_ssim(shown, made))
        assert not np.array_equal(shown, output.numpy())
    return {name: np.array(values) for name, values in columns.items()}


def find_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Return the SSIM of two (3, H, W) images as Wang et al. 2004: Gaussian window of 11, sigma 1.5.

    Over the whole image, mirrored at its border, as torchmetrics does.
    """

    def blur(image):
        return gaussian_filter(image, (0, 1.5, 1.5), truncate=3.5, mode="mirror")

    mean_a, mean_b = blur(a), blur(b)
    variances = blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    share = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (share / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))).mean()


@pytest.fixture(scope="module")
def scores(pairs, model) -> dict[str, float]:
    return evaluate(model, pairs, CRITERION, torch.device("cpu"))


@pytest.mark.parametrize("name", ["l1", "eyeliner", "psnr", "psnr_source", "psnr_eyes", "ssim"])
def test_metric_is_the_mean_over_images(scores, reference, name):
    assert scores[f"val/{name}"] == pytest.approx(reference[name].mean(), rel=1e-4)


def test_ssim_image_by_image(model, data, reference):
    files, pixels = data
    for index, file in enumerate(files):
        score = evaluate(model, MakeupPairs([file], pixels), CRITERION, torch.device("cpu"))["val/ssim"]
        assert score == pytest.approx(reference["ssim"][index], abs=1e-4)


def test_loss_and_gain_are_what_they_say(scores):
    loss = 0.7 * scores["val/l1"] + 1.9 * scores["val/eyeliner"]
    assert scores["val/loss"] == pytest.approx(loss, rel=1e-6)
    gain = scores["val/psnr"] - scores["val/psnr_source"]
    assert scores["val/psnr_gain"] == pytest.approx(gain, abs=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_metrics_do_not_depend_on_the_batch_size(monkeypatch, model, pairs, scores, size):
    monkeypatch.setattr(tinybeauty_training, "EVAL_BATCH", size)
    again = evaluate(model, pairs, CRITERION, torch.device("cpu"))
    assert again == pytest.approx(scores, rel=1e-5)


def test_evaluating_changes_nothing(pairs, model, scores):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert evaluate(model, pairs, CRITERION, torch.device("cpu")) == scores
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def save_equal_pairs(folder, masks):
    for kind in ("source", "target", *(["eye_mask"] if masks else [])):
        (folder / kind).mkdir()
        for index in range(2):
            Image.new("L" if kind == "eye_mask" else "RGB", (SIZE, SIZE), 120).save(
                folder / kind / f"{index}.png"
            )
    return MakeupPairs(*read(folder))


def make_idle_model() -> TinyBeauty:
    model = TinyBeauty().eval()
    with torch.no_grad():
        model.out.weight.zero_()
        model.out.bias.zero_()
    return model


def test_equal_images_have_finite_metrics(tmp_path):
    scores = evaluate(make_idle_model(), save_equal_pairs(tmp_path, True), CRITERION, torch.device("cpu"))
    assert all(math.isfinite(value) for value in scores.values())
    assert scores["val/psnr"] == scores["val/psnr_source"] >= 90
    assert scores["val/psnr_gain"] == 0
    assert scores["val/ssim"] == pytest.approx(1, abs=1e-3)
    assert scores["val/loss"] == 0


def test_without_masks_only_the_score_in_the_eyes_is_unknown(tmp_path):
    scores = evaluate(make_idle_model(), save_equal_pairs(tmp_path, False), CRITERION, torch.device("cpu"))
    assert math.isnan(scores.pop("val/psnr_eyes"))
    assert all(math.isfinite(value) for value in scores.values())


def test_psnr_of_known_errors():
    errors = torch.tensor([1.0, 0.1, 0.01, 0.0])
    values = psnr(errors)
    torch.testing.assert_close(values[:3], torch.tensor([0.0, 10.0, 20.0]))
    assert values[3].isfinite()
