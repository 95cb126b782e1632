"""A headless Chromium that looks at MLflow's pages and clicks on them; for tests, and for the pictures in the docs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WAIT_SECONDS = 60


def missing() -> str | None:
    """What a browser can't be had for."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed"
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            return f"there is no {program} here (Debian: chromium, chromium-driver)"
    return None


@contextmanager
def chromium(width: int = 1600, height: int = 1000, dark: bool = False) -> Iterator[Any]:
    """Selenium's driver."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.add_argument(f"--window-size={width},{height}")
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def dashboard(*arguments: str, cwd: Path) -> Iterator[str]:
    """``raysim dashboard`` as a user starts it, ended as a user ends it; gives the address that it prints."""
    command = [sys.executable, "-m", "raysim", "dashboard", "--no-browser", *arguments]
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"dashboard: (http://127\.0\.0\.1:\d+/\S*)", line)
            if found is None:
                process.kill()
                raise RuntimeError(f"{line}{process.communicate()}")
            yield found[1]
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGINT)
            try:
                rest = process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    assert process.returncode == 0, (process.returncode, rest)


class Page:
    """What a person does on a page: look for words, click, wait."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, address: str) -> None:
        self.driver.get(address)

    def text(self) -> str:
        return str(self.driver.find_element("tag name", "body").text)

    def until(self, condition: Any, what: str) -> Any:
        """The first true value of a condition, asked again and again while the page loads."""
        from selenium.common.exceptions import WebDriverException

        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                if found := condition():
                    return found
            except WebDriverException:
                pass  # the page was drawn anew meanwhile
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come; the page says:\n{self.text()[:3000]}")
            time.sleep(0.3)

    def see(self, *words: str) -> None:
        for word in words:
            self.until(lambda word=word: word in self.text(), repr(word))

    def find(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def click(self, selector: str, text: str | None = None) -> None:
        """The first element that is shown and, if asked, has this text."""

        def click() -> bool:
            for element in self.find(selector):
                if element.is_displayed() and (text is None or element.text.strip() == text):
                    element.click()
                    return True
            return False

        self.until(click, f"{selector} {text or ''}")

    def close_assistant(self) -> None:
        """MLflow's chat beside the page, which it opens on a first visit."""
        self.see("MLflow Assistant")
        self.click("[data-component-id='mlflow.assistant.chat_panel.close']")
        self.until(lambda: "Ask questions about your" not in self.text(), "a page without the assistant")

    def lines_of_chart(self, title: str) -> int:
        """How many lines the chart under a title has."""
        script = """
            for (const plot of document.querySelectorAll('.js-plotly-plot')) {
              let box = plot;
              for (let i = 0; i < 8 && box; i++, box = box.parentElement)
                if (box.innerText && box.innerText.split('\\n')[0].trim() === arguments[0])
                  // Each line is drawn twice, once for the eye and once for the pointer.
                  return new Set([...plot.querySelectorAll('path.js-line')].map(p => p.getAttribute('d'))).size;
            }
            return 0;
        """
        return int(self.driver.execute_script(script, title))
