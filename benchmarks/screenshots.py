"""Takes the pictures of docs/dashboards.md: opens runs in TensorBoard, in a browser without a window.

python benchmarks/screenshots.py RUNS [--out docs], where RUNS holds patches_dual, another run of it, and
patches_denoiser. Needs Chromium; its Python side is installed with the tools for development.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

LAYOUT = "custom_scalars&_smoothingWeight=0"
"""What `make tensorboard` opens on."""
COLOURS = 128
"""Of a picture, which keeps it small."""


def chromium() -> str | None:
    """The system's Chromium, or None."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


@contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """Serve a folder of runs on a free port.

    Args:
        logdir: the folder.

    Yields:
        The address, once it answers.

    Raises:
        TimeoutError: if it does not.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    options = ["--load_fast=false", "--logdir", logdir.name, "--port", str(port)]  # as make tensorboard
    command = [sys.executable, "-m", "tensorboard.main", *options]
    url = f"http://localhost:{port}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=logdir.resolve().parent, **quiet)
    try:
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"{url}/data/runs", timeout=5) as answer:
                    if answer.read() not in (b"", b"[]"):
                        break
            except OSError:
                pass
            time.sleep(0.25)
        else:
            raise TimeoutError(f"TensorBoard shows nothing of {logdir}")
        yield url
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def browser(width: int = 1300, height: int = 1000) -> Iterator[Page]:
    """A page of a browser without a window.

    Args:
        width: in pixels.
        height: in pixels.

    Yields:
        The page.
    """
    with sync_playwright() as playwright:
        root = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root
        found = playwright.chromium.launch(executable_path=chromium(), args=root)
        try:
            yield found.new_page(viewport={"width": width, "height": height})
        finally:
            found.close()


def show(page: Page, url: str, tab: str) -> None:
    """Open one of TensorBoard's tabs anew."""
    page.goto("about:blank")
    page.goto(f"{url}/#{tab}")


def category(page: Page, title: str) -> Locator:
    """A category of the layout, opened, with its charts loaded.

    Args:
        page: with the layout open.
        title: what the category's title begins with.

    Returns:
        The category.
    """
    found = page.locator("tf-category-paginated-view").filter(
        has=page.locator("button.heading", has_text=title)
    )
    found.wait_for()
    if not found.locator(CARDS).count():
        found.locator("button.heading").click()
    found.locator(CARDS).first.wait_for()
    found.locator("text=/Matches \\([1-9]/").first.wait_for()
    return found


CARDS = "tf-custom-scalar-multi-line-chart-card, tf-custom-scalar-margin-chart-card"


def save(page: Page, path: Path, clip: Locator | None = None) -> None:
    """Take a picture of a page, or of a part of it, with few colours."""
    page.mouse.move(1, 1)  # away from curves, which would tell about themselves
    page.wait_for_timeout(3000)  # charts move into place
    (clip or page).screenshot(path=path)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1000} kB")


def take(runs: Path, out: Path) -> None:
    """Take all pictures.

    Args:
        runs: holds the runs.
        out: folder for the pictures.
    """
    duals = sorted(path.name for path in runs.glob("patches_dual*"))
    with browser() as page:
        with _only(runs, ["patches_dual"]) as folder, tensorboard(folder) as url:
            page.set_viewport_size({"width": 1500, "height": 1180})
            show(page, url, LAYOUT)
            top = category(page, "Bits/dim: all")
            top.locator("paper-icon-button[icon=fullscreen]").click()
            top.locator(".toggle-matches-button").click()
            category(page, "Bits/dim: each")
            save(page, out / "dashboards-top.png")
            page.set_viewport_size({"width": 1500, "height": 2600})
            show(page, url, LAYOUT)
            save(page, out / "dashboards-levels.png", category(page, "Space loss"))
            page.set_viewport_size({"width": 1500, "height": 860})
            show(page, url, "images")
            page.locator("tf-tag-filterer input").fill("20dB|energy_map|samples")
            page.locator("tf-image-loader").first.wait_for()
            save(page, out / "dashboards-images.png")
            page.set_viewport_size({"width": 1180, "height": 450})
            show(page, url, "histograms")
            page.locator("vz-histogram-timeseries").first.wait_for()
            save(page, out / "dashboards-energies.png")
        with _only(runs, [*duals, "patches_denoiser"]) as folder, tensorboard(folder) as url:
            page.set_viewport_size({"width": 2330, "height": 330})
            show(page, url, "hparams")
            page.locator("text=patches_denoiser").first.wait_for()
            save(page, out / "dashboards-hparams.png")
            page.set_viewport_size({"width": 1500, "height": 640})
            show(page, url, LAYOUT)
            category(page, "Denoising").evaluate("found => found.scrollIntoView()")
            save(page, out / "dashboards-runs.png")


@contextmanager
def _only(runs: Path, names: Sequence[str]) -> Iterator[Path]:
    """A folder with some of the runs."""
    with tempfile.TemporaryDirectory() as folder:
        shown = Path(folder) / "runs"
        shown.mkdir()
        for name in names:
            (shown / name).symlink_to((runs / name).resolve())
        yield shown


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs")
    arguments = parser.parse_args()
    take(arguments.runs, arguments.out)
