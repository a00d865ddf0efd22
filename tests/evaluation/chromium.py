"""A real browser for the report's tests: screenshots, what it measured, what it asked the network for."""

import html
import io
import json
import re
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

BROWSER = Path("/usr/bin/chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
)  # fmt: skip
_BROWSERS_OWN = re.compile(r"https?://[a-z0-9.-]+\.(?:google|googleapis|gstatic)\.com/")
_CONSOLE = re.compile(r":(?:INFO|ERROR|WARNING):CONSOLE")


def screenshot(
    page: Path, folder: Path, *, width: int, height: int, dark: bool = False
) -> tuple[np.ndarray, list[str]]:
    """Render a page.

    Returns:
        Pixels [height, width, 3] and the lines it wrote to the console.
    """
    picture = folder / f"{width}-{'dark' if dark else 'light'}.png"
    flags = [f"--window-size={width},{height}", f"--screenshot={picture}"]
    flags += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = _run(flags, page, folder)
    pixels = np.array(Image.open(io.BytesIO(picture.read_bytes())).convert("RGB"))
    return pixels, [line for line in done.stderr.splitlines() if _CONSOLE.search(line)]


def measure(page: Path, folder: Path, *, width: int, height: int = 800) -> dict[str, int]:
    """Layout of a page inside a frame of that width, and how many of its pictures were decoded.

    The page forbids scripts, so a second page frames it and looks in.
    """
    probe = folder / f"probe-{width}.html"
    source = html.escape(page.read_text(), quote=True)
    probe.write_text(
        '<pre id="o"></pre><script>function look(frame) {'
        "const d = frame.contentDocument, images = [...d.images];"
        "document.getElementById('o').textContent = JSON.stringify({scroll: d.documentElement.scrollWidth,"
        "client: d.documentElement.clientWidth, height: d.documentElement.scrollHeight, images: images.length,"
        "decoded: images.filter(i => i.naturalWidth > 0).length,"
        "scripts: d.scripts.length, styled: getComputedStyle(d.querySelector('h1')).fontWeight - 0});}</script>"
        f'<iframe onload="look(this)" style="border:0;width:{width}px;height:{height}px" srcdoc="{source}"></iframe>'
    )
    done = _run(["--dump-dom", "--virtual-time-budget=20000", f"--window-size={width + 40},{height}"], probe, folder)
    found = re.search(r'<pre id="o">(.*?)</pre>', done.stdout)
    assert found, done.stderr
    return json.loads(html.unescape(found[1]))


def requests(page: Path, folder: Path) -> list[str]:
    """URLs that rendering the page asked the network for, without the browser's own (clock, updates)."""
    log = folder / "netlog.json"
    _run([f"--log-net-log={log}", "--net-log-capture-mode=IncludeSensitive", "--dump-dom"], page, folder)
    urls = set(re.findall(r'"url":"((?:https?|wss?|ftp):[^"]+)"', log.read_text()))
    return sorted(url for url in urls if not _BROWSERS_OWN.match(url))


def _run(flags: list[str], page: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    assert BROWSER.is_file(), f"no {BROWSER}: the report's tests need a real browser (Debian package `chromium`)"
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done
