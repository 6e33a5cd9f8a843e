"""Pages in a real browser: Chromium without a window, at a width, in a color scheme; what does not fit is found."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.support.paths import ROOT

#: Where tests leave pictures for who wants to look; git ignores it.
ARTIFACTS = ROOT / "build" / "artifacts"

WIDTHS = (360, 1280)

_BROWSERS = ("chromium", "chromium-headless-shell", "google-chrome", "chromium-browser")

# Elements of an SVG that stick out of it.
_OUTSIDE = """() => [...document.querySelectorAll('svg.chart')].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('rect, line, text')].filter(it => {
    const box = it.getBoundingClientRect();
    return box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1
        || box.bottom > frame.bottom + 1;
  }).map(it => it.outerHTML);
})"""

# The contrast (WCAG 2.2) of each visible text with what is painted behind it, where it is below the least.
_CONTRAST = """least => {
  const parse = color => {
    const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d');
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const known = new Map();
  const rgba = color => known.get(color) ?? known.set(color, parse(color)).get(color);
  const over = (top, below) => below.map((value, i) => value + (top[i] - value) * (i < 3 ? top[3] / 255 : 0));
  const behind = element => {
    if (!element) return [255, 255, 255, 255];
    const color = rgba(getComputedStyle(element).backgroundColor);
    return color[3] === 255 ? color : over(color, behind(element.parentElement));
  };
  const luminance = color => color.slice(0, 3).map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    if (['SCRIPT', 'STYLE', 'TITLE', 'title', 'NOSCRIPT'].includes(element.tagName)) continue;
    const style = getComputedStyle(element), below = behind(element);
    const text = over(rgba(element.closest('svg') ? style.fill : style.color), below);
    const [high, low] = [luminance(text), luminance(below)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < least) found.push(`${ratio.toFixed(2)}: ${node.data.trim().slice(0, 60)}`);
  }
  return found;
}"""


@dataclass(frozen=True)
class Page:
    """A page that is shown; ``problems`` of its scripts and of what it asked for."""

    page: Any
    problems: list[str]

    @property
    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    @property
    def outside(self) -> list[str]:
        """What sticks out of the frame of a chart."""
        return list(self.page.evaluate(_OUTSIDE))

    def faint(self, least: float = 4.5) -> list[str]:
        """Texts whose contrast is below ``least``, each with its contrast."""
        return list(self.page.evaluate(_CONTRAST, least))

    def on_paper(self) -> None:
        """As it is printed."""
        self.page.emulate_media(media="print")

    def value(self, script: str) -> Any:
        """What a piece of JavaScript gives."""
        return self.page.evaluate(script)

    def unfold(self) -> None:
        """Open all that is folded away."""
        self.page.evaluate("document.querySelectorAll('details').forEach(it => { it.open = true })")

    @property
    def missing(self) -> list[str]:
        """Images that could not be loaded."""
        return list(self.value("[...document.images].filter(it => !it.naturalWidth).map(it => it.src)"))

    def picture(self, name: str) -> Path:
        """The page as ``build/artifacts/NAME.png``: the whole, or of a very long one its top."""
        path = ARTIFACTS / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = self.value("document.documentElement.scrollHeight") < 20_000
        self.page.screenshot(path=path, full_page=whole)
        return path


class Browser:
    """Opens pages."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser

    @contextmanager
    def open(self, file: Path, width: int, scheme: Literal["light", "dark"] = "light") -> Iterator[Page]:
        """A file in a window of a width; nothing is asked of another machine."""
        context = self._browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        try:
            page, problems = context.new_page(), []
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
            page.goto(file.as_uri())
            yield Page(page, problems)
        finally:
            context.close()


@contextmanager
def browser_or_skip() -> Iterator[Browser]:
    """Chromium, through playwright; the test is skipped where one of them is missing."""
    reason = "needs playwright: pip install -e '.[browser]'"
    api = pytest.importorskip("playwright.sync_api", reason=reason)
    program = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if program is None:
        pytest.skip(f"needs a browser, one of {', '.join(_BROWSERS)}: for example apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield Browser(browser)
        finally:
            browser.close()
