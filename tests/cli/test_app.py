"""``ffmef app``: what the page computes, and the page itself in headless Chromium where there is one."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import AsyncMock, Mock

import numpy as np
import pytest
from PIL import Image

from ffmef.cli import main
from ffmef.errors import InputError
from ffmef.imaging.io import read_picture

pytest.importorskip("nicegui")

EXAMPLES = Path(__file__).parents[2] / "examples"
SUNSET = [EXAMPLES / f"sunset_{name}.jpg" for name in ("under", "middle", "over")]
WAIT = 120  # seconds; a crowded machine is slow


def scene(paths, aligned=False):
    from ffmef.app import Scene

    return Scene.of({path.name: path.read_bytes() for path in paths}, aligned)


def test_shares_say_which_frame_counts(monkeypatch):
    """Of a fusion whose weights are known: one quarter and three quarters."""
    from ffmef import pipeline
    from ffmef.app import NEUTRAL, heat_map
    from ffmef.imaging.io import Picture

    def weighted(pictures, **_):
        return Picture(0.25 * pictures[0].pixels + 0.75 * pictures[1].pixels)

    frames = scene(SUNSET[:2])
    assert frames.names == ["sunset_middle.jpg", "sunset_under.jpg"] and frames.remarks == []
    monkeypatch.setattr(pipeline, "fuse_pictures", weighted)
    for share, expected in zip(frames.shares(NEUTRAL), (0.25, 0.75), strict=True):
        np.testing.assert_allclose(share, expected, atol=1e-3)
    assert heat_map(share).startswith("data:image/png;base64,")


def test_shares_of_the_model_add_up():
    from ffmef.app import NEUTRAL

    total = sum(scene(SUNSET).shares(NEUTRAL))
    assert (np.abs(total - 1) < 1e-3).mean() > 0.98


def test_what_cannot_be_used_is_an_input_error(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"Dear diary")
    with pytest.raises(InputError, match=r"^a\.jpg: not a "):
        scene([SUNSET[0], tmp_path / "a.jpg"])


def test_files_that_do_not_fit_are_left_out_and_named():
    from ffmef.app import added

    small = io.BytesIO()
    Image.new("RGB", (9, 7)).save(small, "PNG")
    odd = {"diary.jpg": b"Dear diary", "z.png": small.getvalue()}
    files = {path.name: path.read_bytes() for path in SUNSET[:2]}
    kept, lines = added({}, {**files, **odd}, False)
    assert kept == files
    assert [line.split(": ")[0] for line in lines] == ["Left out diary.jpg", "Left out z.png"]
    assert added({}, files, False) == (files, [])
    other = {"courtyard.jpg": (EXAMPLES / "courtyard_over.jpg").read_bytes()}
    assert added(files, other, False) == ({**files, **other}, [])
    kept, lines = added(files, other, True)
    assert kept == files and "do not show the same scene" in lines[0]


def test_another_file_of_the_same_name_is_kept_beside_the_first():
    from ffmef.app import Page

    one, two, three = (path.read_bytes() for path in SUNSET)
    drops = [[("a.jpg", one), ("a.jpg", two)], [("a.jpg", two), ("a.jpg", three)]]
    said = []

    async def visit():
        async def reload():
            said.append(page.left_out)

        page = SimpleNamespace(files={}, aligned=False, upload=Mock(), changing=asyncio.Lock(), reload=reload)
        for dropped in drops:
            files = [SimpleNamespace(name=name, read=AsyncMock(return_value=data)) for name, data in dropped]
            await Page.take(page, SimpleNamespace(files=files))
        return page.files

    assert asyncio.run(visit()) == {"a.jpg": one, "a (2).jpg": two, "a (3).jpg": three}
    assert said[0] == ["Another a.jpg is kept as a (2).jpg"]
    assert said[1] == ["Left out a.jpg: it is here already", "Another a.jpg is kept as a (3).jpg"]


def test_a_port_in_use_is_one_line(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["app", "--no-browser", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert error == f"ffmef app: --port {port} cannot be used: Address already in use\n"


@contextlib.contextmanager
def served():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment["PYTHONPATH"] = str(EXAMPLES.parent)
    command = [sys.executable, "-m", "ffmef", "app", "--no-browser", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        yield process, port
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def patiently(ask):
    """Return the first true answer."""
    deadline = time.monotonic() + WAIT
    while True:
        with contextlib.suppress(Exception):
            answer = ask()
            if answer:
                return answer
        assert time.monotonic() < deadline, "the page did not answer in time"
        time.sleep(0.2)


@pytest.mark.slow
def test_the_page_in_a_browser(tmp_path):
    """A bracket dropped, the slider moved, the picture saved; no other machine can reach it; Ctrl-C ends it."""
    webdriver = pytest.importorskip("selenium.webdriver")
    browser, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("no Chromium with its driver here")
    from selenium.webdriver.common.by import By

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    with served() as (process, port):
        address = f"http://127.0.0.1:{port}"
        patiently(lambda: urllib.request.urlopen(address, timeout=5).status == 200)
        chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
        try:
            chrome.get(address)
            find = lambda css: chrome.find_element(By.CSS_SELECTOR, css)  # noqa: E731
            diary = tmp_path / "diary.jpg"
            diary.write_text("Dear diary")
            patiently(lambda: find("input[type=file]")).send_keys(f"{diary}\n{SUNSET[0]}")
            patiently(lambda: find("[data-test=said]").text.startswith("Left out diary.jpg: not a "))
            patiently(lambda: find("input[type=file]")).send_keys("\n".join(map(str, SUNSET[1:])))
            patiently(lambda: "3 frames, 576 x 384, 8 bit" in find("[data-test=said]").text)
            patiently(lambda: len(chrome.find_elements(By.CSS_SELECTOR, "img[alt=share]")) == 3)
            before = patiently(lambda: find("img[alt=frame]").get_attribute("style"))
            track = find("[data-test=split] .q-slider__track-container")
            webdriver.ActionChains(chrome).move_to_element_with_offset(track, -200, 0).click().perform()
            patiently(lambda: find("img[alt=frame]").get_attribute("style") != before)
            track = find("[data-test=brightness] .q-slider__track-container")
            webdriver.ActionChains(chrome).move_to_element_with_offset(track, 30, 0).click().perform()
            moved = patiently(lambda: re.search(r"brightness: (?!0\s)(-?[\d.]+)", find("body").text))
            find("[data-test=save]").click()
            saved = tmp_path / "fused.png"
            patiently(saved.exists)
            entries = chrome.execute_script("return performance.getEntriesByType('resource')")
            loaded = [entry["name"] for entry in entries]
            assert loaded and all(name.startswith((address, "data:")) for name in loaded)  # nothing from the network
        finally:
            chrome.quit()
        alone = ["fuse", *map(str, sorted(SUNSET)), "-o", str(tmp_path / "alone.png"), "--brightness", moved[1]]
        assert main(alone) == 0
        np.testing.assert_array_equal(read_picture(saved).pixels, read_picture(tmp_path / "alone.png").pixels)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=WAIT)
        assert process.returncode == 130 and "Traceback" not in error, error
        assert out.startswith(f"ffmef app: {address}")
