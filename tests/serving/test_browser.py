"""The page in a real Chromium: what it shows, what the keyboard can do, and that it asks nobody but its server."""

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from onerec.bundle import Bundle
from onerec.serving.access import Keys
from onerec.serving.app import create_app
from onerec.serving.engine import Engine
from onerec.serving.histories import SqliteHistories, StoredEvent
from onerec.serving.limits import Limits

selenium = pytest.importorskip("selenium", reason="no selenium, which drives the browser, in this environment")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="no chromium with its driver here")

FLAGS = """
--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1440,1000
"""
KEY = "key-of-somebody-who-may"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser of its own, without a window."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def serve(small_bundle: Path) -> Iterator[Callable[..., str]]:
    """Start a server of a user with two events in a thread; its address."""
    running: list[tuple[uvicorn.Server, threading.Thread, socket.socket]] = []

    def start(keys: Keys = Keys()) -> str:  # noqa: B008 - frozen
        histories = SqliteHistories()
        histories.append([StoredEvent("ann", "103", 1.0), StoredEvent("ann", "117", 2.0)])
        app = create_app(Engine(Bundle.load(small_bundle), Limits(max_beams=60)), histories, keys)
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        running.append((server, thread, listener))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"

    yield start
    for server, thread, listener in running:
        server.should_exit = True
        thread.join()
        listener.close()


class Page:
    """What a user of the keyboard sees and does."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        driver.get(address)

    def wait(self, holds: Callable[[], object]) -> Any:
        """Wait until something holds, and return it."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 60, poll_frequency=0.05).until(lambda _: holds())

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements, of one moment."""
        script = "return [...document.querySelectorAll(arguments[0])].map((element) => element.textContent)"
        return list(self.driver.execute_script(script, selector))

    def count(self, selector: str) -> int:
        """How many elements there are."""
        return len(self.texts(selector))

    def press(self, *keys: str) -> None:
        """Press keys where the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def focused(self) -> str:
        """The accessible name of what has the focus."""
        return str(self.driver.switch_to.active_element.accessible_name)

    def tab_to(self, name: str) -> None:
        """Press Tab until something whose name begins so has the focus."""
        from selenium.webdriver.common.keys import Keys as Press

        for _ in range(80):
            if self.focused().startswith(name):
                return
            self.press(Press.TAB)
        raise AssertionError(f"{name!r} cannot be reached by Tab")


@pytest.fixture
def address(serve: Callable[..., str]) -> str:
    return serve()


@pytest.fixture
def page(driver: Any, address: str) -> Page:
    page = Page(driver, address)
    page.wait(lambda: page.count("#tree svg"))
    return page


def test_it_shows_history_items_beams_and_latency(page: Page) -> None:
    assert page.texts("#history .title")[:2] == ["Film 117", "Film 103"]
    titles = page.texts("#items .title")
    assert len(titles) == 10
    assert not {"Film 117", "Film 103"} & set(titles)
    labels = [text for text in page.texts("#tree svg text") if ". " in text]
    assert sorted(labels) == sorted(f"{place}. {title}" for place, title in enumerate(titles, 1))
    assert [text.split()[0] for text in page.texts("#legend span")] == [
        "history",
        "wait",
        "encode",
        "search",
        "network",
    ]
    assert "12 beams, 2 items of the history read" in page.texts("#latency")[0]
    assert "40 items" in page.texts("#bundle")[0]


def test_it_asks_only_its_own_server_and_fails_at_nothing(page: Page, address: str) -> None:
    asked = page.driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert asked
    assert all(name.startswith(address) for name in asked)
    assert page.driver.get_log("browser") == []


def test_the_keyboard_alone_excludes_an_item_and_allows_it_again(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys as Press

    before = page.texts("#items .title")
    page.tab_to(f"Exclude {before[0]}")
    page.press(Press.ENTER)
    page.wait(lambda: before[0] not in page.texts("#items .title"))
    after = page.texts("#items .title")
    assert after[0] == before[1]
    assert len(after) == 10
    assert page.texts("#excluded button") == [f"{before[0]} ✕"]
    page.wait(lambda: page.focused() == f"Exclude {after[0]}")  # the focus has not been lost with the old list
    page.tab_to(f"Allow {before[0]} again")
    page.press(Press.SPACE)
    page.wait(lambda: page.texts("#items .title") == before)
    assert page.texts("#excluded button") == []


def test_the_keyboard_alone_adds_an_event_for_a_new_user_and_the_answer_changes(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys as Press

    page.tab_to("User id")
    page.press("zoe", Press.ENTER)  # Tab has selected what stood there
    page.wait(lambda: "nothing yet" in "".join(page.texts("#history")))
    before = page.wait(lambda: "0 items of the history" in page.texts("#latency")[0] and page.texts("#items .title"))
    page.tab_to("Item id or title")
    page.press("film 12", Press.ENTER)
    page.wait(lambda: page.count("#found .card") == 8)
    page.tab_to("Add Film 122 to the history")
    page.press(Press.ENTER)
    page.wait(lambda: page.texts("#history .title") == ["Film 122"])
    page.wait(lambda: "1 items of the history read" in page.texts("#latency")[0])
    assert page.texts("#items .title") != before
    assert "Film 122" not in page.texts("#items .title")
    page.wait(
        lambda: (
            "zoe"
            in page.driver.execute_script(
                "return [...document.querySelectorAll('#users option')].map((option) => option.value)"
            )
        )
    )


def test_seen_items_other_beams_and_a_refusal_can_be_asked_for(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys as Press

    num_circles = page.count("#tree svg circle")
    page.tab_to("also the prefixes")
    page.press(Press.SPACE)
    page.wait(lambda: page.count("#tree svg circle") > num_circles)
    page.driver.find_element("id", "k").send_keys(Press.CONTROL + "a" + Press.NULL, "40")
    page.driver.find_element("id", "beams").send_keys("60", Press.ENTER)
    page.wait(lambda: page.count("#items .row") == 38)
    page.driver.find_element("id", "seen").send_keys(Press.SPACE)
    page.wait(lambda: page.count("#items .row") == 40)
    page.driver.find_element("id", "beams").send_keys("0", Press.ENTER)  # 600
    page.wait(lambda: page.texts("#status.error") == ["beams: found 600, expected at most 60."])
    assert page.count("#items .row") == 40  # the last answer stays


def test_a_filter_by_a_column(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys as Press

    columns = page.texts("#column option")
    assert columns == ["anything", "title", "genre"]
    page.driver.find_element("id", "column").send_keys("title")
    page.driver.find_element("id", "value").send_keys("Film 131", Press.ENTER)
    page.wait(lambda: page.texts("#items .title") == ["Film 131"])
    page.driver.find_element("id", "value").send_keys("0", Press.ENTER)
    page.wait(lambda: page.texts("#items") == ["no item is allowed"])


def test_a_closed_server_opens_with_its_key(driver: Any, serve: Callable[..., str]) -> None:
    from selenium.webdriver.common.keys import Keys as Press

    page = Page(driver, serve(Keys(api=(KEY,))))
    page.wait(lambda: page.texts("#status.error") == ["the request carries no key of this server"])
    page.tab_to("API key")
    page.press(Press.ENTER, Press.TAB, KEY, Press.TAB)
    page.wait(lambda: page.count("#items .row") == 10)
