"""Confidence intervals, tests between methods, ranks, and how reports show them."""

import itertools
import json
import math

import numpy as np
import pytest
from PIL import Image

from ffmef import cli
from ffmef.evaluation import report, statistics
from ffmef.evaluation.found import Pair


def test_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        low, high = statistics.interval(rng.gamma(4, 1, 40))
        hits += low <= 4 <= high
    assert 0.88 <= hits / 200 <= 0.985
    assert statistics.interval([1.0]) is None and statistics.interval([3.0, 3.0]) == (3.0, 3.0)
    values = rng.normal(5, 2, 400)
    low, high = statistics.interval(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.02) and high == pytest.approx(
        values.mean() + half, abs=0.02
    )
    assert statistics.interval(values) == (low, high)  # the same each time


def test_wilcoxon_by_hand():
    """All sign patterns of the ranks, counted."""
    first, second = [1.0, 2.5, 0.0, 4.0, 9.0, 3.0, 2.0], [0.0, 2.0, 1.5, 2.0, 6.5, 6.0, -2.0]
    difference = np.subtract(first, second)
    order = np.argsort(np.argsort(np.abs(difference))) + 1
    positive = order[difference > 0].sum()
    total = order.sum()
    extreme = min(positive, total - positive)
    sums = [
        sum(r for r, sign in zip(order, signs, strict=True) if sign) for signs in itertools.product((0, 1), repeat=7)
    ]
    expected = sum(min(s, total - s) <= extreme for s in sums) / len(sums)
    assert statistics.wilcoxon(first, second) == pytest.approx(expected, rel=1e-12)
    assert statistics.wilcoxon(first, first) is None
    assert statistics.wilcoxon(first[:4], second[:4]) is None


def test_ranks_and_standings():
    assert statistics.ranks([3, 1, 1, None], False) == [3, 1.5, 1.5, None]
    averages = {
        "x": {"EN": 1, "CE": 5, "NMI": None},
        "y": {"EN": 3, "CE": 1, "NMI": 2},
        "z": {"EN": 2, "CE": 2, "NMI": 1},
    }
    places = statistics.standings(averages, {"EN": True, "CE": False, "NMI": True})
    assert places == {
        "x": statistics.Standing(0, 3), "y": statistics.Standing(4, 1), "z": statistics.Standing(2, 2),
    }  # fmt: skip
    scores = {"m": {"p": {"EN": 1.0, "CE": 1.0}, "q": {"EN": 2.0, "CE": 3.0}, "r": {"EN": 3.0, "CE": 2.0}}}
    bad = statistics.badness(scores, {"EN": True, "CE": False})
    assert bad == {"p": 0.5, "q": 0.75, "r": 0.25}


def made(methods=("ours_1", "theirs"), pairs=8):
    rng = np.random.default_rng(1)
    names = [f"p{i}" for i in range(pairs)]
    scores = {
        m: {p: {"EN": 5 + k + rng.random(), "CE": 2.0 + rng.random()} for p in names} for k, m in enumerate(methods)
    }
    frames = [Pair(name, None, None) for name in names]
    return report.Report("d & e", "mef", "stored without loss", ["EN", "CE"], list(methods), frames, scores, {}, [])


def test_markdown_and_latex():
    made_report = made()
    text = report.markdown(made_report)
    low, high = statistics.interval([values["EN"] for values in made_report.scores["theirs"].values()])
    assert f"| theirs | {low:.4f} to {high:.4f} |" in text
    assert "| theirs | 2 | 1.00 |" in text or "| theirs | 1 | 1.50 |" in text
    assert "| ours_1 / theirs | 0.00781 |" in text  # every pair better: 2 / 2^8
    tex = report.latex(made_report)
    assert r"ours\_1 / theirs & 0.00781" in tex and r"d \& e" in tex and r"EN $\uparrow$" in tex
    assert tex.count(r"\begin{table}") == tex.count(r"\end{table}") == 4
    assert tex.count(r"\textbf{") == 2 and "95 \\% confidence" in tex
    for line in tex.splitlines():
        if line.endswith(r"\\"):
            assert line.count(" & ") == 2, line
    odd = made(methods=("a|b<i>_c", "[x]"))
    text, tex = report.markdown(odd), report.latex(odd)
    assert text.count(r"| a\|b\<i>\_c | ") == 3 and r"| a\|b\<i>\_c / \[x\] | " in text
    assert "\n{[}x] & " in tex and r"a|b$<$i$>$\_c" in tex  # after a row's end, a bracket would be its argument
    alone = report.markdown(made(methods=("ours",), pairs=1))
    assert "confidence" not in alone and "Wilcoxon" not in alone and "Borda" not in alone


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report of three pairs and two methods, in a browser."""
    selenium = pytest.importorskip("selenium.webdriver", reason="the page is looked at by selenium and Chromium")
    import shutil

    browser, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not browser or not driver:
        pytest.skip("the page is looked at by Chromium and its driver, which are not installed")
    root = tmp_path_factory.mktemp("page")
    rng = np.random.default_rng(0)
    for index, name in enumerate(("one", "two", "ten")):
        a, b = (rng.integers(0, 120 + 60 * i, (40, 48, 3)).astype(np.uint8) for i in (0, 1))
        # The later, the fewer levels: the last is the worst by entropy.
        fused = {"mean": (a // 2 + b // 2) >> index, "max": np.maximum(a, b) >> index}
        for path, pixels in ((f"d/{name}/{name}_A.png", a), (f"d/{name}/{name}_B.png", b), *(
            (f"{method}/{name}.png", pixels) for method, pixels in fused.items()
        )):  # fmt: skip
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / path)
    arguments = ["evaluate", str(root / "d"), "-o", str(root / "out"), "--metrics", "EN,SD,AG,CE"]
    assert cli.main([*arguments, "--fused", str(root / "mean"), "--fused", str(root / "max")]) == 0
    options = selenium.ChromeOptions()
    options.binary_location = browser
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1200,900",
    ):
        options.add_argument(argument)
    window = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    window.scores = json.loads((root / "out" / "scores.json").read_text())
    window.address = f"file://{root / 'out' / 'report.html'}"
    yield window
    window.quit()


def press(page, *keys):
    from selenium.webdriver import ActionChains

    ActionChains(page).send_keys(*keys).perform()


def column(page, table, index):
    return page.execute_script(
        "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map(r => r.cells[arguments[1]].textContent)",
        table, index,
    )  # fmt: skip


def pixel(page):
    """The colour in the middle of the right half of what is shown, by a screenshot."""
    import io

    shot = Image.open(io.BytesIO(page.get_screenshot_as_png())).convert("RGB")
    box = page.execute_script(
        "const b = document.querySelector('.stage').getBoundingClientRect(); return [b.x, b.y, b.width, b.height]"
    )
    return np.asarray(
        shot.crop((box[0] + 0.55 * box[2], box[1] + 0.3 * box[3], box[0] + 0.65 * box[2], box[1] + 0.7 * box[3]))
    )


def test_page_in_a_browser(page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    page.get(page.address)
    scenes = "return [...document.querySelectorAll('section')].map(s => s.dataset.scene)"
    current = "return document.querySelector('section.current').dataset.scene"
    assert page.execute_script(scenes) == ["ten", "two", "one"]  # worst first
    press(page, "n")
    assert page.execute_script(scenes) == ["one", "ten", "two"]
    press(page, "w", "j")
    assert page.execute_script(scenes)[0] == "ten" and page.execute_script(current) == "two"

    heads = page.find_elements(By.CSS_SELECTOR, "#all th button")
    assert [head.text for head in heads] == ["pair", "method", "EN ↑", "SD ↑", "AG ↑", "CE ↓"]
    heads[2].click()
    values = [float(text) for text in column(page, "#all", 2)]
    assert values == sorted(values) and len(values) == 6
    heads[2].click()
    assert [float(text) for text in column(page, "#all", 2)] == sorted(values, reverse=True)
    heads[5].click()
    values = [float(text) for text in column(page, "#all", 5)]
    assert values == sorted(values, reverse=True)  # the worst first, where lower is better
    heads[1].click()
    assert column(page, "#all", 1) == ["max"] * 3 + ["mean"] * 3

    press(page, "k")
    press(page, Keys.ENTER)
    shown = "return [document.querySelector('#left').value, document.querySelector('#right').value]"
    assert page.execute_script("return document.querySelector('dialog').open")
    assert page.execute_script("return document.querySelector('#where').textContent") == "ten"
    first = page.execute_script(shown)
    press(page, Keys.ARROW_RIGHT)
    second = page.execute_script(shown)
    assert second[0] == first[0] and second[1] != first[1]
    press(page, "x")
    assert page.execute_script(shown) == second[::-1]
    press(page, "j")
    assert page.execute_script("return document.querySelector('#where').textContent") == "two"
    page.execute_script("document.querySelector('#left').value = document.querySelector('#right').value = 'A';"
                        "document.querySelector('#left').onchange()")  # fmt: skip
    assert pixel(page).max() > 40
    press(page, "d")
    assert pixel(page).max() == 0  # a picture does not differ from itself
    page.execute_script("document.querySelector('#right').value = 'B'; document.querySelector('#right').onchange()")
    assert pixel(page).max() > 40
    press(page, "d", Keys.ESCAPE)
    assert not page.execute_script("return document.querySelector('dialog').open")
    assert page.get_log("browser") == []


def test_page_shows_the_statistics(page):
    page.get(page.address)
    text = page.find_element("tag name", "body").text
    for word in ("confidence intervals", "mean rank", "Borda"):
        assert word in text
    interval = page.scores["averages"]["mean"]["EN"]["interval"]
    assert f"{interval[0]:.4f} to {interval[1]:.4f}" in text
