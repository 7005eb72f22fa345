"""The report: its numbers against the evaluation's, anyone's names, and the page in a real browser."""

import dataclasses
import re
import shutil

import pytest
import torch

from coe_core.chosen import Choice, Rival
from coe_core.paired import PairedDifference
from tests.browser import browser
from vision.errors import RunError
from vision.evaluation import report_parts as parts
from vision.evaluation.evaluate import evaluate
from vision.evaluation.report import write_report
from vision.evaluation.report_plots import Axis, thumbnail
from vision.run import load_run


def answers(target, label, probability=None, exits=None):
    n, target, label = len(target), torch.tensor(target), torch.tensor(label)
    logits = torch.nn.functional.one_hot(label, 3).float()
    return parts.Answers(
        logits,
        torch.zeros(n, dtype=torch.bool) if exits is None else torch.tensor(exits),
        label,
        torch.full((n,), 0.5) if probability is None else torch.tensor(probability),
        target,
    )


def test_errors_by_hand():
    test_answers = answers([0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 0, 2], [0.9, 0.6, 0.8, 0.5, 0.4, 1.0])
    assert parts.confusion(test_answers, 3).tolist() == [[1, 2, 0], [1, 1, 0], [0, 0, 1]]
    first, second = parts.confused_pairs(test_answers, ["a", "b", "c"])
    assert (first.true, first.answered, first.images) == ("a", "b", [2, 1])  # the surest first
    assert first.part.part == pytest.approx(2 / 3)
    assert (second.true, second.answered, second.images) == ("b", "a", [4])
    rows = parts.class_rows(test_answers, ["a", "b", "c", "without images"])
    assert [(row.name, row.accuracy.samples) for row in rows] == [("a", 3), ("b", 2), ("c", 1)]
    assert parts.confused_pairs(answers([0], [0]), ["a", "b", "c"]) == []


def test_what_is_level_is_not_behind_by_minus_nothing():
    level = PairedDifference(0.0, -0.1, 0.1, 1.0)
    rivals = {"a": Rival(1, 0.9, 1e6, level, False), "b": Rival(1, 0.9, 1e6, level, False)}
    rows = parts.rival_rows(Choice("a", "a", "quality", 0.05, 10, rivals))
    assert [f"{row.behind[0]:.2f}" for row in rows] == ["0.00", "0.00"]


def test_reliability_by_hand():
    test_answers = answers([0, 0, 1, 1], [0, 0, 0, 1], [0.95, 0.96, 0.97, 0.41])
    error, bins = parts.reliability(test_answers)
    assert [(bin.accuracy.samples, round(bin.accuracy.part, 3)) for bin in bins] == [
        (1, 1),
        (3, 0.667),
    ]
    assert bins[1].confidence == pytest.approx(0.96)
    assert 0 <= error <= 1


def test_routes_by_hand():
    test_answers = answers([0, 1, 2, 0], [0, 1, 1, 0], exits=[True, False, False, True])
    ways = parts.routes(test_answers, torch.tensor([0, 0, 1, 1]), 3)
    assert [(way.name, way.part.part, way.images) for way in ways] == [
        ("ended early", 0.5, [0, 3]),
        ("expert 0", 0.25, [1]),
        ("expert 1", 0.25, [2]),
        ("expert 2", 0.0, []),
    ]
    assert [way.accuracy.part for way in ways[:3]] == [1, 1, 0]
    table = parts.classes_to_experts(test_answers.target, torch.tensor([0, 0, 1, 1]), (4, 2))
    assert table.tolist() == [[0.5, 0.5], [1, 0], [0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (Axis(0.0, 1.0, 0.0, 100.0), ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (Axis(90.0, 91.0, 0.0, 1.0), ["90", "90.2", "90.4", "90.6", "90.8", "91"]),
        (Axis(0.5, 30.0, 0.0, 1.0, is_log=True), ["0.5", "1", "2", "5", "10", "20"]),
        (Axis(3.0, 3.0, 0.0, 1.0), ["3"]),
    ],
)
def test_ticks(axis, expected):
    assert [tick.text for tick in axis.ticks()] == expected


def test_thumbnails():
    small = thumbnail(torch.zeros(1, 8, 8, dtype=torch.uint8))
    large = thumbnail(torch.zeros(3, 500, 300, dtype=torch.uint8))
    assert small.startswith("data:image/png;base64,")
    assert large.startswith("data:image/jpeg;base64,")
    assert len(large) < 4000


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory):
    """The report of a run whose class names are anyone's."""
    folder = tmp_path_factory.mktemp("report")
    run = load_run(trained)
    return run, write_report(run, folder / "report.html")


def test_numbers_are_the_evaluations(page, tmp_path):
    run, path = page
    (best,) = [
        row for row in evaluate([run], tmp_path, time_images=0).deployed if row.name == "best"
    ]
    shown = path.read_text()
    assert f"<dd>{best.accuracies.mean:.1f}%" in shown
    assert f"<dd>{best.exit_rate * 100:.0f}%</dd>" in shown
    choice = run.stored.choices["best"]
    assert f"on {choice.num_samples} held-out images" in shown
    for count in ("ended early", "expert 0", "expert 1", "expert 2"):
        assert f"<h3>{count}: " in shown


def test_it_needs_nothing_else(page):
    shown = re.sub(r"data:image/\w+;base64,[\w+/=]+", "", page[1].read_text())
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<link|<iframe", shown.split("<pre>")[0])
    assert "default-src 'none'" in shown
    assert "font-src" not in shown


def test_names_of_anyone(page, tmp_path):
    run, _ = page
    odd = [f"<img src=x onerror=alert({i})>&\u202e\udcff</script>" for i in range(10)]
    kept, run.networks.classes[:] = list(run.networks.classes), odd
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("vision.evaluation.report.load_run_data", _renamed(odd))
            shown = write_report(run, tmp_path / "odd.html").read_text(encoding="utf-8")
    finally:
        run.networks.classes[:] = kept
    assert "<img src=x" not in shown
    assert "&lt;img src=x onerror=alert(3)&gt;&amp;" in shown
    assert "\\udcff" in shown


def _renamed(classes):
    from vision.run import load_run_data

    def load(run, *arguments, **options):
        kept, run.networks.classes[:] = list(run.networks.classes), [str(i) for i in range(10)]
        data = load_run_data(run, *arguments, **options)
        run.networks.classes[:] = kept
        return dataclasses.replace(data, classes=classes)

    return load


def test_refused(cli, trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "operating_points.json").unlink()
    with pytest.raises(RunError, match="run `coe-vision calibrate` first"):
        write_report(load_run(folder), tmp_path / "x.html")
    assert cli("report", trained, "--at", "fast") == 2
    assert "no operating point 'fast'" in capsys.readouterr().err
    assert cli("report", trained, "--out", tmp_path / "no/x.html") == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.process
def test_in_a_browser(page, tmp_path):
    """Hover, keyboard, what a screen reader is told, and no script of anyone else's."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    path = page[1]
    with browser(tmp_path / "profile") as driver:
        driver.get(path.as_uri())
        assert driver.execute_script("return document.body.dataset.ready") == "yes"
        chart, says = (driver.find_element("id", name) for name in ("chart", "says"))
        assert says.text.startswith("deployed: CoE, ")
        assert says.get_attribute("role") == "status"
        chart.send_keys(Keys.ARROW_DOWN)  # from what is deployed to the first curve
        assert re.match(r"CoE: [\d.]+% at [\d.]+ [kM] multiply-adds, 0% end early", says.text)
        first = says.text
        chart.send_keys(Keys.ARROW_LEFT)
        assert says.text != first
        chart.send_keys(Keys.ARROW_DOWN)
        assert says.text.startswith("cascade: ")
        before = says.text
        ActionChains(driver).move_to_element_with_offset(chart, -60, 20).perform()
        assert says.text != before
        named = driver.find_elements(
            "css selector", "img:not([alt]), svg:not([aria-label]):not([aria-hidden])"
        )
        unnamed = [e for e in named if e.tag_name == "img" or not _is_hidden(driver, e)]
        assert not unnamed
        assert driver.get_log("browser") == []
        wide = driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert wide
        colours = []
        for scheme in ("light", "dark"):
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            colours.append(driver.find_element("tag name", "body").value_of_css_property("color"))
        assert colours[0] != colours[1]


def _is_hidden(driver, element):
    """Whether an ancestor hides it from screen readers."""
    return driver.execute_script("return arguments[0].closest('[aria-hidden]') !== null", element)
