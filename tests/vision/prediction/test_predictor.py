"""The run as a function of images: sources, budgets, threads, memory, and what it refuses."""

import io
import json
import math
import shutil
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from coe_core import AimNotReachableError, CalibratedCurve
from coe_core.operating_points import MAX_POINTS
from vision.data.preprocess import UnreadableImageError
from vision.errors import RunError
from vision.evaluation.predictions import predict_all
from vision.prediction.predictor import Predictor
from vision.run import load_run, load_run_data


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor(trained, batch_size=16)


@pytest.fixture(scope="module")
def pixels(trained):
    images = load_run_data(load_run(trained)).test
    return [images[i]["image"][0].numpy() for i in range(40)]


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def test_equals_the_evaluation_at_every_budget(predictor, pixels):
    run = predictor.run
    every = predict_all(run.networks, load_run_data(run).test)
    for budget in ("best", "drop", "half"):
        point = run.operating_points[budget]
        predictions = predictor(pixels, budget=budget)
        assert len(predictions) == 40
        for i, prediction in enumerate(predictions):
            rough = every.rough_logits[i]
            assert prediction.confidence == pytest.approx(rough.softmax(0).max().item(), abs=1e-5)
            assert prediction.exited == (prediction.confidence >= point.threshold)
            final = every.selected_logits[i] + point.rough_weight * rough
            logits = rough if prediction.exited else final
            np.testing.assert_allclose(prediction.probabilities, logits.softmax(0), atol=1e-5)
            assert prediction.label == predictor.classes[int(logits.argmax())]
            assert prediction.probability == pytest.approx(logits.softmax(0).max().item(), abs=1e-5)
            assert prediction.rough_label == predictor.classes[int(rough.argmax())]
            ran = None if prediction.exited else int(every.selected_expert[i])
            assert prediction.expert == ran
            spent = 0 if ran is None else predictor.macs.experts[ran]
            assert prediction.macs == predictor.macs.delegator + spent


def test_every_kind_of_source_gives_the_same(predictor, pixels, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(pixels[0]))
    grey = pixels[0]
    sources = [path, str(path), path.read_bytes(), Image.fromarray(grey), grey, grey[:, :, None]]
    predictions = predictor(sources, threshold=0.4)
    assert len({p.probabilities.tobytes() for p in predictions}) == 1
    for source in sources:  # one image is a list of one
        assert predictor(source, threshold=0.4)[0].label == predictions[0].label
    assert len(predictor(np.stack(pixels)[..., None])) == 40
    assert predictor([]) == []


def test_an_amount_of_macs_as_budget(predictor):
    macs, curve = predictor.macs, predictor.run.curve
    between = macs.delegator + 0.4 * macs.expert
    for amount in (between, str(between), f"{between / 1e3:.6f}k", f"macs={between / 1e6:.9f}M"):
        resolved = predictor.resolve(amount)
        exit_rate, _, mean_macs = curve.at(resolved.threshold)
        assert mean_macs <= between * 1.000001
        assert exit_rate == resolved.exit_rate >= 0.6 - 1e-6
        assert resolved.rough_weight == curve.rough_weight
    assert predictor.resolve("1G").exit_rate == predictor.resolve("best").exit_rate


def test_the_curve_is_that_of_the_stored_points(predictor):
    run = predictor.run
    assert run.curve.exit_rate[0] == 0
    assert run.curve.exit_rate[-1] == 1
    for point in run.operating_points.values():
        exit_rate, _, macs = run.curve.at(point.threshold)
        assert exit_rate == pytest.approx(point.exit_rate)
        assert macs == pytest.approx(point.cost)
        assert run.curve.num_samples == point.num_samples


def test_a_long_curve_is_thinned():
    from coe_core import trade_off_curve

    confidences = torch.linspace(0, 1, 5000)
    curve = trade_off_curve(confidences, torch.ones(5000), torch.ones(5000), 1.0, 2.0)
    kept = CalibratedCurve.from_curve(curve, rough_weight=0.0, num_samples=5000, data="", date="")
    assert len(kept.threshold) == MAX_POINTS
    assert kept.threshold[0] == math.inf
    assert kept.threshold[-1] == 0
    assert kept.at(0.5)[0] == pytest.approx(0.5, abs=2 / MAX_POINTS)
    assert kept.at(math.inf) == (0, 1, 3)
    assert json.loads(json.dumps(kept.to_dict(), allow_nan=False))["threshold"][0] == "inf"


def test_the_predictors_own_budget(trained, predictor):
    half = Predictor(trained, budget="half")
    assert half.resolve() == predictor.resolve("half")
    assert half.resolve("drop").name == "drop"
    assert predictor.resolve().name == "best"


def test_each_image_with_a_budget_of_its_own(predictor, pixels):
    budgets = [predictor.resolve(threshold=t) for t in (0.0, 2.0)] * 20
    images = torch.stack([predictor.decode(image) for image in pixels])
    predictions = predictor.predict_pixels(images, budgets)
    assert [p.exited for p in predictions] == [True, False] * 20
    always, never = predictor(pixels, threshold=0.0), predictor(pixels, threshold=2.0)
    for i, prediction in enumerate(predictions):
        same = (never if i % 2 else always)[i]
        np.testing.assert_allclose(prediction.probabilities, same.probabilities, atol=1e-5)


def test_threads_get_their_own_answers_and_batches_are_bounded(trained, pixels, monkeypatch):
    predictor = Predictor(trained, batch_size=8, concurrency=2)
    expected = {t: predictor(pixels, threshold=t) for t in (0.0, 0.3, 2.0)}
    sizes, running, most = [], [0], [0]
    lock, plain = threading.Lock(), Predictor._predict

    def watched(self, batch, *rest):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        try:
            return plain(self, batch, *rest)
        finally:
            with lock:
                sizes.append(len(batch))
                running[0] -= 1

    monkeypatch.setattr(Predictor, "_predict", watched)
    wrong = []

    def work(threshold):
        for _ in range(3):
            for predicted, wanted in zip(
                predictor(pixels, threshold=threshold), expected[threshold], strict=True
            ):
                if predicted.expert != wanted.expert or predicted.label != wanted.label:
                    wrong.append((threshold, predicted, wanted))

    threads = [threading.Thread(target=work, args=(t,)) for t in (0.0, 0.3, 2.0) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(sizes) == 6 * 3 * 5
    assert max(sizes) == 8
    assert most[0] == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"budget": "bset"}, RunError, "no operating point 'bset'; stored: best, drop, half; mult"),
        ({"budget": "-5M"}, ValueError, "'-5M' is no amount; write one such as 100M"),
        (
            {"budget": "1k"},
            AimNotReachableError,
            "1,000 is below that of every system; the cheapest that",
        ),
        ({"budget": "best", "threshold": 0.5}, ValueError, "a budget or a threshold, not both: 'b"),
        ({"threshold": -0.1}, ValueError, "threshold must be at least 0, got -0.1"),
        ({"threshold": math.nan}, ValueError, "threshold must be at least 0, got nan"),
    ],
)
def test_budgets_that_are_refused(predictor, pixels, arguments, error, message):
    with pytest.raises(error, match=message):
        predictor(pixels, **arguments)


def test_a_run_without_calibration(trained, tmp_path, pixels):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    bare = Predictor(tmp_path)
    with pytest.raises(
        RunError, match="no operating point 'best'; stored: none; run `coe-vision c"
    ):
        bare(pixels)
    with pytest.raises(RunError, match="holds no trade-off curve to find a threshold for 100M on"):
        bare(pixels, budget="100M")
    predictions = bare(pixels, threshold=0.5)
    assert len(predictions) == 40
    assert bare.resolve(threshold=0.5).exit_rate is None


@pytest.mark.parametrize("content", ["{", "[]", '{"threshold": []}'])
def test_a_damaged_curve(trained, tmp_path, content):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run/trade_off_curve.json").write_text(content)
    with pytest.raises(RunError, match=r"trade_off_curve\.json is damaged"):
        Predictor(tmp_path / "run")


def test_columns_of_unequal_length_are_no_curve():
    values = CalibratedCurve([0.5], [1.0], [1.0], [1.0], 0.0, 1, "", "").to_dict()
    with pytest.raises(ValueError, match="its columns differ in length or are empty"):
        CalibratedCurve.from_dict({**values, "macs": [1.0, 2.0]})


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (b"not an image", UnreadableImageError, "cannot read the image in memory: cannot identify"),
        (b"", UnreadableImageError, "cannot read the image in memory"),
        ("missing.png", UnreadableImageError, "missing.png: no such file"),
        (np.zeros((4, 4)), ValueError, "an image is uint8 of .* got float64 of shape 4 x 4"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, "1, 3 or 4 channels; got uint8 .* 4 x 4 x 2"),
        (np.zeros(4, np.uint8), ValueError, "got uint8 of shape 4"),
    ],
)
def test_images_that_are_refused(predictor, image, error, message):
    with pytest.raises(error, match=message):
        predictor([image])


def test_too_many_pixels(trained, pixels):
    predictor = Predictor(trained, max_pixels=63)
    with pytest.raises(UnreadableImageError, match="8 x 8 pixels, above the limit of 63"):
        predictor(png(pixels[0]))
    assert len(Predictor(trained, max_pixels=64)(png(pixels[0]))) == 1


@pytest.mark.parametrize("size", ["batch_size", "concurrency"])
def test_sizes_below_one(trained, size):
    with pytest.raises(ValueError, match=f"{size} must be at least 1, got 0"):
        Predictor(trained, **{size: 0})


def test_amounts_of_macs(predictor):
    whole = predictor.run.curve.macs[0]
    part = predictor.resolve("60%")
    assert predictor.resolve("macs=60%").threshold == part.threshold
    assert part.threshold == predictor.resolve(0.6 * whole).threshold
    assert predictor.resolve("1g").threshold == predictor.resolve(1e9).threshold
    for wrong in ("0", "-1M", "200%", float("inf")):
        with pytest.raises(ValueError, match=r"amount|more than what no exits cost"):
            predictor.resolve(wrong)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_other_arithmetic_is_near(trained, predictor, pixels, precision):
    predictions = Predictor(trained, precision=precision)(pixels, threshold=2.0)
    plain = predictor(pixels, threshold=2.0)
    same = [(a, b) for a, b in zip(predictions, plain, strict=True) if a.expert == b.expert]
    assert len(same) >= 30  # of 40
    differences = [np.abs(a.probabilities - b.probabilities).max() for a, b in same]
    assert 0 < max(differences) < 0.1


def test_an_unknown_precision(trained):
    with pytest.raises(ValueError, match="unknown precision 'bf16'; known: auto, 32-true, bf16-m"):
        Predictor(trained, precision="bf16")


def test_the_commands_offer_every_precision():
    from vision.commands.cli import parser
    from vision.precision import PRECISIONS

    for command in ("predict run image", "serve run"):
        for precision in PRECISIONS:
            chosen = parser().parse_args([*command.split(), "--precision", precision])
            assert (chosen.precision, chosen.compiled) == (precision, False)


def test_compiled_networks_give_the_same(trained, predictor, pixels):
    compiled = Predictor(trained, compiled="aot_eager")  # as inductor, without its C++ compiler
    for size in (40, 1, 7):
        for one, other in zip(
            compiled(pixels[:size], threshold=0.3),
            predictor(pixels[:size], threshold=0.3),
            strict=True,
        ):
            assert one.expert == other.expert
            np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-5)
