"""Draw examples/app.png and examples/app_phone.png: the app in Chromium, on a desktop and on a phone.

    python examples/app_screenshots.py [--out examples]

Needs Chromium, and the package playwright beside the extra ``app``.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dinov2_saliency
from app import page
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SIZES = {"app.png": (1280, 800), "app_phone.png": (390, 844)}
LOADED = "document.fonts.status == 'loaded' && [...document.images].every(image => image.naturalWidth)"
SECONDS = 90  # at most, until something is there


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Open the system's Chromium for the body of a ``with`` statement."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def visit(browser: Browser, address: str, size: tuple[int, int]) -> Any:
    """Return the page at an address in a window of this width and height, once its pictures are loaded."""
    visitor = browser.new_page(viewport={"width": size[0], "height": size[1]})
    visitor.set_default_timeout(SECONDS * 1000)
    visitor.goto(address)
    visitor.locator("#pictures img").last.wait_for()
    visitor.wait_for_function(LOADED)
    return visitor


def main(arguments: list[str] | None = None) -> None:
    """Serve the page and draw it at both sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for the pictures")
    out = parser.parse_args(arguments).out
    blocks = page(dinov2_saliency.load())
    address = blocks.launch(prevent_thread_lock=True, quiet=True)[1]
    with open_browser() as browser:
        for name, size in SIZES.items():
            visit(browser, address, size).screenshot(path=out / name)
            # 256 colours: what the eye does not see, in a third of the bytes.
            Image.open(out / name).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
                out / name, optimize=True
            )
    blocks.close()


if __name__ == "__main__":
    main()
