"""Open pages in headless Chromium."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--enable-logging=stderr", "--v=0", "--allow-file-access-from-files",
)  # fmt: skip


def visit(page: Path | str, *args: str) -> tuple[str, str]:
    """Open a file or an address; return the output and the messages of the browser's console."""
    assert CHROMIUM is not None
    address = page.as_uri() if isinstance(page, Path) else page
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *args, address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


DARK = "--blink-settings=preferredColorScheme=0"
# The script of the frame's parent runs after the page has loaded, in virtual time.
FRAME = """<!DOCTYPE html><title>frame</title><body style="margin: 0">
<iframe style="border: 0; width: {width}px; height: {height}px" srcdoc="{page}"></iframe>
<script>
onload = async () => {{
  const page = frames[0], found = await (async () => {{ {script} }})();
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify(found ?? null);
  document.body.append(result);
}};
</script>"""


def ask(page: Path, script: str, width: int, height: int, *args: str) -> Any:
    """Show a page in a frame, which may be narrower than a window, and run a script next to it.

    In the script, `page` is the window of the page; what it returns is returned.
    """
    with tempfile.TemporaryDirectory() as folder:
        text = html.escape(page.read_text(encoding="utf-8"))
        frame = Path(folder) / "frame.html"
        frame.write_text(FRAME.format(width=width, height=height, page=text, script=script))
        size = f"--window-size={max(width, 600)},{height}"
        dom, complaints = visit(frame, size, "--virtual-time-budget=60000", "--dump-dom", *args)
    found = re.search('<pre id="result">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, complaints
    return json.loads(html.unescape(found[1]))


def count_pages(page: Path, folder: Path) -> int:
    """Return the number of pages of the printed page."""
    printed = folder / "printed.pdf"
    visit(page, f"--print-to-pdf={printed}", "--no-pdf-header-footer")
    return len(re.findall(rb"/Type /Page\b(?!s)", printed.read_bytes()))


AXE = "axe-core@4.14.1"


def load_axe() -> str:
    """Return the script of axe-core from npm, or skip the test if npm cannot fetch it."""
    cache = Path.home() / ".cache" / "kinopoisk_ft" / AXE
    script = cache / "package" / "axe.min.js"
    if not script.exists():
        cache.mkdir(parents=True, exist_ok=True)
        try:
            command = ["npm", "pack", AXE, "--pack-destination", str(cache)]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"npm cannot fetch {AXE}: {error}")
        (packed,) = cache.glob("*.tgz")
        with tarfile.open(packed) as archive:
            archive.extract("package/axe.min.js", cache, filter="data")
    return script.read_text(encoding="utf-8")
