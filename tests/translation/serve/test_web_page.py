"""The page in a real browser: a text, its translation, the route of each sentence, and the slider."""

import pytest

from coe_core.serving.app import ServerSettings
from tests.browser import browser
from translation.serve.app import create_app

TEXT = "Zwei Tage und drei Euro. Fünf Jahre und vier Meter.\n\nEins."


SAMPLES = ["Zwei Tage.", "Drei Euro."]


@pytest.fixture(scope="module")
def page(serving, translator, tmp_path_factory):
    translator.engine.samples = SAMPLES
    served = serving(create_app(translator, ServerSettings(host_names=())))
    with browser(tmp_path_factory.mktemp("browser") / "profile") as driver, served:
        driver.get(f"http://127.0.0.1:{served.port}/")
        yield Page(driver, translator, served)


class Page:
    def __init__(self, driver, translator, served):
        self.driver, self.translator, self.served = driver, translator, served
        self.ready()

    def ready(self):
        self.until(
            lambda: self.driver.execute_script("return document.body.dataset.ready") == "yes"
        )

    def until(self, condition):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 20, poll_frequency=0.05).until(lambda _: condition())

    def text(self, name):
        return self.driver.find_element("id", name).text

    def content(self, name):
        script = "return document.getElementById(arguments[0]).textContent"
        return self.driver.execute_script(script, name)

    def write(self, text):
        self.driver.execute_script(
            "const s = document.getElementById('source'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('input'))",
            text,
        )

    def slide(self, value):
        self.driver.execute_script(
            "const s = document.getElementById('slider'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('input'))",
            value,
        )

    def routes(self):
        return self.texts("#sentences .stop")

    def texts(self, selector):
        script = "return [...document.querySelectorAll(arguments[0])].map(n => n.textContent)"
        return self.driver.execute_script(script, selector)


def test_what_the_page_says_of_the_run(page):
    assert page.text("about").startswith(f"{page.translator.engine.name}: CoE, a delegator of")
    names = [b.text for b in page.driver.find_elements("css selector", "#points button")]
    assert names == ["best", "macs=70%"]
    curve = page.translator.engine.budgets.curve("CoE")
    line = page.driver.find_element("css selector", "#chart .curve").get_attribute("points")
    assert len(line.split()) == len(curve.macs)
    assert page.text("remark") == f"on 24 sentences (valid), {curve.date}"


def test_a_few_lines_are_translated_when_it_opens(page):
    assert page.texts("#sentences p.soft") == SAMPLES
    expected = "\n".join(one.text for one in page.translator(SAMPLES))
    assert page.content("translation") == expected


def test_a_text_and_its_routes_along_the_slider(page):
    curve = page.translator.engine.budgets.curve("CoE")
    last = len(curve.macs) - 1
    lines = ["Zwei Tage und drei Euro.", "Fünf Jahre und vier Meter.", "Eins."]
    page.write(TEXT)
    for value, index in ((0, last), (last, 0)):
        page.slide(value)
        assert page.text("exits") == f"{100 * curve.exit_rate[index]:.0f}%"
        assert page.text("accuracy") == f"{curve.quality[index]:.1f}"
        expected = page.translator(lines, threshold=curve.threshold[index])
        words = [
            "delegator, ended early" if t.exited else t.route.replace("-", " ") for t in expected
        ]
        page.until(lambda words=words: page.routes() == words)
        assert page.content("translation") == (
            f"{expected[0].text} {expected[1].text}\n\n{expected[2].text}"
        )
        shown = page.texts("#sentences .how .soft")
        if index:
            assert shown[0].startswith(f"confidence {100 * expected[0].confidence:.0f}%")
        else:
            assert shown[0].startswith("confidence not asked")
    assert page.text("threshold") == "none exit"
    assert "multiply-adds" in page.text("spent")
    assert "predicted" in page.until(lambda: page.text("drift"))


def test_a_button_goes_to_its_operating_point(page):
    points = page.translator.engine.budgets.named("CoE")
    for button in page.driver.find_elements("css selector", "#points button"):
        button.click()
        assert page.text("exits") == f"{100 * points[button.text].exit_rate:.0f}%"


def test_the_keyboard_alone_is_enough(page):
    from selenium.webdriver.common.keys import Keys

    page.write("")
    page.until(lambda: page.content("translation") == "")
    box = page.driver.find_element("id", "source")
    box.send_keys("Zwei Tage.", Keys.CONTROL, Keys.ENTER)
    page.until(lambda: page.content("translation") != "")
    for node in page.driver.find_elements("css selector", "textarea, input, svg, button"):
        assert node.accessible_name


def test_letters_of_markup_are_shown_as_they_are(page):
    text = "<img src=x onerror=alert(1)>\u202e"
    page.write(text)
    source = "return document.querySelector('#sentences .soft')?.textContent"
    page.until(lambda: page.driver.execute_script(source) == text)
    assert not page.driver.find_elements("css selector", "#sentences img")
    page.write("x" * 3000)
    page.until(lambda: page.driver.execute_script(source) == "x" * 3000)
    width = "return document.documentElement.scrollWidth - window.innerWidth"
    assert page.driver.execute_script(width) <= 0  # nothing sticks out


def test_an_error_is_said_and_the_page_goes_on(page):
    page.write("Eins. " * 600)
    page.until(lambda: "600 sentences, a request may have 512" in page.text("error"))
    page.write("Eins.")
    page.until(lambda: page.routes() != [])
    assert page.text("error") == ""


def test_the_page_of_the_api(page):
    page.driver.get(f"http://127.0.0.1:{page.served.port}/docs")
    page.ready()
    headings = [h.text for h in page.driver.find_elements("css selector", "h2")]
    assert "POST /translate" in headings
    body = page.driver.find_element("tag name", "body").text
    assert "--json" in body


def test_the_browser_had_nothing_to_complain_of(page):
    page.driver.get(f"http://127.0.0.1:{page.served.port}/")
    page.ready()
    wrong = [e["message"] for e in page.driver.get_log("browser") if e["level"] == "SEVERE"]
    # The text of too many sentences was refused with 413, which a browser logs; nothing else.
    assert [line for line in wrong if "413" not in line] == []
