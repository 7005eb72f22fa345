"""The page in a real browser: an image, its route, the trade-off curve and its slider."""

import pytest
from PIL import Image

from tests.browser import browser
from vision.prediction.predictor import Predictor
from vision.run import load_run, load_run_data
from vision.serve.app import ServerSettings, create_app


@pytest.fixture(scope="module")
def page(serving, trained, tmp_path_factory):
    """The page of a running server, loaded; with the predictor behind it and an image file."""
    folder = tmp_path_factory.mktemp("browser")
    predictor = Predictor(trained)
    image = folder / "digit.png"
    Image.fromarray(load_run_data(load_run(trained)).test[0]["image"][0].numpy()).save(image)
    (folder / "broken.png").write_text("nothing")
    served = serving(create_app(predictor, ServerSettings(host_names=())))
    with browser(folder / "profile") as driver, served:
        driver.get(f"http://127.0.0.1:{served.port}/")
        yield Page(driver, predictor, image, served)


class Page:
    def __init__(self, driver, predictor, image, served):
        self.driver, self.predictor, self.image, self.served = driver, predictor, image, served
        self.until(lambda: driver.execute_script("return document.body.dataset.ready") == "yes")

    def until(self, condition):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 20, poll_frequency=0.05).until(lambda _: condition())

    def text(self, name):
        return self.driver.find_element("id", name).text

    def slide(self, value):
        self.driver.execute_script(
            "const s = document.getElementById('slider'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('input'))",
            value,
        )

    def give(self, path):
        self.driver.find_element("id", "file").send_keys(str(path))


def test_what_the_page_says_of_the_run(page):
    run = page.predictor.run
    assert f"{run.folder.name}: 10 classes" in page.text("about")
    names = [b.text for b in page.driver.find_elements("css selector", "#points button")]
    assert names == list(run.operating_points)
    line = page.driver.find_element("css selector", "#chart .curve").get_attribute("points")
    assert len(line.split()) == len(run.curve.macs)
    assert f"on {run.curve.num_samples} images" in page.text("source")


def test_the_slider_moves_along_the_curve(page):
    curve = page.predictor.run.curve
    last = len(curve.macs) - 1
    here = page.driver.find_element("id", "here")
    places = []
    for value, i in ((0, last), (last // 2, last - last // 2), (last, 0)):
        page.slide(value)
        assert page.text("exits") == f"{100 * curve.exit_rate[i]:.0f}%"
        assert page.text("accuracy") == f"{100 * curve.quality[i]:.1f}%"
        places.append(float(here.get_attribute("cx")))
    assert places == sorted(places)  # to the right as the slider is
    assert page.text("threshold") == "none exit"


def test_an_image_and_its_route(page):
    curve = page.predictor.run.curve
    page.give(page.image)
    for value, threshold in ((0, curve.threshold[-1]), (len(curve.macs) - 1, 2.0)):
        page.slide(value)
        expected = page.predictor(page.image, threshold=threshold)[0]
        words = "it ended here" if expected.exited else "an expert ran"
        page.until(lambda words=words: words in page.text("confidence"))
        assert page.text("label") == expected.label
        assert page.text("rough") == expected.rough_label
        assert page.text("probability") == f"{100 * expected.probability:.1f}%"
        ran = [node.text for node in page.driver.find_elements("css selector", ".stop.ran")]
        stop = "ended early" if expected.exited else f"expert {expected.expert}"
        assert ran == ["delegator", stop]
        assert f"{expected.macs / 1e3:.3g}"[:3] in page.text("cost")
    assert "predicted" in page.until(lambda: page.text("drift"))


def test_a_button_goes_to_its_operating_point(page):
    for button in page.driver.find_elements("css selector", "#points button"):
        point = page.predictor.run.operating_points[button.text]
        button.click()
        assert page.text("exits") == f"{100 * point.exit_rate:.0f}%"
        assert button.get_attribute("aria-pressed") == "true"


def test_what_is_no_image_is_said_and_the_page_goes_on(page):
    page.give(page.image.with_name("broken.png"))
    page.until(lambda: "cannot read the image" in page.text("error"))
    assert not page.driver.find_element("id", "answer").is_displayed()
    page.give(page.image)
    page.until(lambda: page.text("label") != "")
    assert page.text("error") == ""


def test_dropping_an_image(page):
    page.driver.execute_script(
        "image = null; document.getElementById('answer').hidden = true;"
        "const d = new DataTransfer();"
        "fetch('openapi.json').then(r => r.blob()).then(b => {"
        "  d.items.add(new File([b], 'dropped.txt'));"
        "  document.getElementById('drop').dispatchEvent(new DragEvent('drop', {dataTransfer: d}))})"
    )
    page.until(lambda: page.text("filename") == "dropped.txt")
    page.until(lambda: "cannot read the image" in page.text("error"))


def test_class_names_of_odd_letters_are_shown_as_they_are(page):
    classes = page.predictor.classes
    kept = list(classes)
    classes[:] = [f"<img src=x onerror=alert({i})>\u202e&lt;猫{'x' * 250}" for i in range(10)]
    try:
        page.give(page.image.with_name("broken.png"))  # the same file again would be no change
        page.give(page.image)
        content = "return document.getElementById('label').textContent"
        page.until(lambda: page.driver.execute_script(content) in classes)
        assert page.driver.execute_script(content) == page.predictor(page.image)[0].label
        others = page.driver.find_elements("css selector", "#others span")
        assert {other.get_attribute("textContent") for other in others} < set(classes)
        assert not page.driver.find_elements("css selector", "#answer img")
        width = "return document.documentElement.scrollWidth - window.innerWidth"
        assert page.driver.execute_script(width) <= 0  # nothing sticks out
    finally:
        classes[:] = kept


def test_the_page_of_the_api(page):
    page.driver.get(f"http://127.0.0.1:{page.served.port}/docs")
    page.until(lambda: page.driver.execute_script("return document.body.dataset.ready") == "yes")
    headings = [h.text for h in page.driver.find_elements("css selector", "h2")]
    assert "POST /predict" in headings
    assert "GET /metrics" in headings


def test_the_browser_had_nothing_to_complain_of(page):
    page.driver.get(f"http://127.0.0.1:{page.served.port}/")
    page.until(lambda: page.driver.execute_script("return document.body.dataset.ready") == "yes")
    wrong = [e["message"] for e in page.driver.get_log("browser") if e["level"] == "SEVERE"]
    # What is no image was refused with 422, which a browser logs; nothing else.
    assert [line for line in wrong if "422" not in line] == []
