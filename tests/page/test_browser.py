"""The page in a real browser. Screenshots go to $STAR_ARTIFACTS, or among pytest's temporary files."""

from __future__ import annotations

import gc
import io
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from star.page.layout import Page
from star.page.serve import start
from star.page.studio import Studio
from star.utils.png import read_fields

pytest.importorskip("gradio", reason="the page needs gradio (pip install -e '.[app]')")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium (apt-get install chromium)"),
    pytest.mark.filterwarnings("ignore"),  # gradio's and its server's own, in their threads
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
WAIT = 30_000


@pytest.fixture
def address(studio: Studio, tmp_path: Path) -> Iterator[str]:
    """Of the page, while it runs."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    blocks = start(Page(studio, folder))
    yield blocks.local_url
    studio.pipeline.gate.set()
    blocks.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sockets that gradio and its server leave to the garbage collector
        gc.collect()


@pytest.fixture
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("STAR_ARTIFACTS", tmp_path / "artifacts"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def visit(browser: Any, address: str, requests: list[str] | None = None) -> Any:
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    if requests is not None:
        page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    page.wait_for_selector("#prompt textarea", timeout=WAIT)
    return page


def ask(page: Any, prompt: str, seed: int) -> None:
    page.fill("#prompt textarea", prompt)
    page.fill("#seed input", str(seed))
    page.click("#draw")


def finish(page: Any, name: str = "#picture") -> list[bytes]:
    """Wait until the drawing is done, and fetch the files that the page shows."""
    page.wait_for_function("document.querySelector('#status').innerText.includes('done')", timeout=WAIT)
    page.wait_for_selector(f"{name} img[src*='/file=']", timeout=WAIT)
    sources = [one.get_attribute("src") for one in page.query_selector_all(f"{name} .grid-wrap img")]
    return [page.request.get(source).body() for source in sources]


def pixels(file: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(file)))


def drawn(studio: Studio, prompt: str, seed: int) -> np.ndarray[Any, Any]:
    return np.asarray(studio.pipeline(prompt, seeds=seed).images[0])


def test_typing_and_clicking_draws_what_the_pipeline_draws(
    browser: Any, address: str, studio: Studio, artifacts: Path
) -> None:
    requests: list[str] = []
    page = visit(browser, address, requests)
    ask(page, "a red circle", 5)
    (file,) = finish(page)
    assert np.array_equal(pixels(file), drawn(studio, "a red circle", 5))
    (artifacts / "picture.png").write_bytes(file)
    fields = read_fields(artifacts / "picture.png")
    assert (fields["prompt"], fields["seed"], fields["weights"]) == ("a red circle", "5", "0123456789ab")
    expected = studio.pipeline("a red circle", seeds=5).images[0].info
    assert fields["settings"] == expected["settings"]
    page.click("#maps button")
    for name in ("#confidence", "#attention"):
        before = page.query_selector("#map img")
        source = before.get_attribute("src") if before else ""
        page.click(name)
        page.wait_for_function(
            "source => { const map = document.querySelector('#map img'); return map && map.src != source; }",
            arg=source,
            timeout=WAIT,
        )
    page.wait_for_selector("#history img[src*='/file=']", timeout=WAIT)
    page.screenshot(path=artifacts / "page.png", full_page=True)
    hosts = {urlsplit(url).hostname for url in requests if urlsplit(url).scheme not in ("data", "blob")}
    assert hosts == {"127.0.0.1"}


def test_two_presets_side_by_side(browser: Any, address: str, studio: Studio, artifacts: Path) -> None:
    page = visit(browser, address)
    page.click("#other input")
    page.click("[role=option]:has-text('strong')")
    ask(page, "a red circle", 5)
    page.wait_for_selector("#compared img[src*='/file=']", timeout=WAIT)
    page.wait_for_function("document.querySelector('#status').innerText.includes('done · seed 5 · strong')")
    (first,), (second,) = finish(page), finish(page, "#compared")
    assert np.array_equal(pixels(first), drawn(studio, "a red circle", 5))
    strong = studio.pipeline("a red circle", seeds=5, guidance_scale=9.0).images[0]
    assert np.array_equal(pixels(second), np.asarray(strong))
    page.screenshot(path=artifacts / "compared.png", full_page=True)


def test_two_visitors_at_once_get_their_own_pictures(browser: Any, address: str, studio: Studio) -> None:
    pages = [visit(browser, address) for _ in range(2)]
    prompts = ["a red circle", "two blue squares"]
    studio.pipeline.gate.clear()
    for page, prompt in zip(pages, prompts, strict=True):
        ask(page, prompt, 3)
    studio.pipeline.gate.set()
    for page, prompt in zip(pages, prompts, strict=True):
        assert np.array_equal(pixels(finish(page)[0]), drawn(studio, prompt, 3))


def test_a_prompt_of_ten_thousand_characters_is_refused_with_a_reason(
    browser: Any, address: str, studio: Studio
) -> None:
    page = visit(browser, address)
    page.evaluate("document.querySelector('#prompt textarea').removeAttribute('maxlength')")
    ask(page, "red " * 2500, 1)
    page.wait_for_selector("text=The prompt has 10,000 characters, at most 1,000 are allowed", timeout=WAIT)
    assert studio.pipeline.begun == 0
    ask(page, "a red circle", 1)
    assert np.array_equal(pixels(finish(page)[0]), drawn(studio, "a red circle", 1))


def test_the_page_answers_while_it_draws_and_survives_a_reload(browser: Any, address: str, studio: Studio) -> None:
    page = visit(browser, address)
    studio.pipeline.gate.clear()
    ask(page, "a red circle", 2)
    page.wait_for_function("document.querySelector('#draw')")
    page.click("#preset input")
    page.click("[role=option]:has-text('strong')")
    page.wait_for_function("[...document.querySelectorAll('input[type=number]')].some(one => one.value == '9')")
    other = visit(browser, address)
    assert other.title() == "STAR"
    page.reload()
    page.wait_for_selector("#prompt textarea", timeout=WAIT)
    studio.pipeline.gate.set()
    ask(page, "two blue squares", 4)
    assert np.array_equal(pixels(finish(page)[0]), drawn(studio, "two blue squares", 4))


def test_twenty_queued_drawings_all_arrive_and_none_is_mixed_up(
    address: str, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradio_client import Client

    # where the clients, not the page, leave pictures, and an empty folder for each
    monkeypatch.setattr("gradio_client.client.tempfile", SimpleNamespace(gettempdir=lambda: str(tmp_path)))
    clients = [Client(address, verbose=False, download_files=tmp_path) for _ in range(2)]
    studio.pipeline.gate.clear()
    own = studio.presets.knobs(studio.presets.names[0])
    jobs = [
        clients[i % 2].submit(
            f"picture {i}", "", i, False, 1, studio.presets.names[0], *own.values(), "nothing", api_name="/draw"
        )
        for i in range(20)
    ]
    studio.pipeline.gate.set()
    for i, job in enumerate(jobs):
        (shown,) = job.result(timeout=90)[0]
        assert np.array_equal(np.asarray(Image.open(shown["image"])), drawn(studio, f"picture {i}", i))
