"""Start JupyterLab on this machine for tests that look at a notebook as a reader does."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

TOKEN = "a-token-for-tests"
TIMEOUT_MS = 120_000

SETTINGS: dict[str, dict[str, Any]] = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    # Otherwise cells outside the window are not in the page.
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}


@contextmanager
def running_lab(notebook: Path, home: Path) -> Iterator[str]:
    """Yield the address of a copy of this notebook. The user's settings stay as they are.

    `home` is an empty folder; the notebook runs in `home/work`.
    """
    work = home / "work"
    work.mkdir(parents=True)
    shutil.copy(notebook, work)
    for plugin, values in SETTINGS.items():
        file = home / ".jupyter/lab/user-settings" / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = [
        "--no-browser", "--expose-app-in-browser", "--allow-root", f"--port={port}",
        "--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={work}",
    ]  # fmt: skip
    log = home / "jupyterlab.log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            env=os.environ | {"HOME": str(home)}, stdout=stream, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            _wait_for(port, server, log)
            yield f"http://127.0.0.1:{port}/lab/tree/{notebook.name}?token={TOKEN}"
        finally:
            server.terminate()  # it shuts down its kernels first
            server.wait(30)


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_MS / 1000
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


def run_all(page: Page, address: str) -> None:
    """Open the notebook, run every cell, and return when the last one has finished."""
    page.goto(address, timeout=TIMEOUT_MS)
    page.wait_for_function(
        "window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady", timeout=TIMEOUT_MS
    )
    page.evaluate(
        """() => {
            const running = jupyterapp.commands.execute("notebook:run-all-cells");
            running.then(() => (window.allCellsRan = true));
        }"""
    )
    page.wait_for_function("window.allCellsRan", timeout=5 * TIMEOUT_MS)


def run_in_kernel(page: Page, code: str) -> str:
    """Run code in the open notebook's kernel, and return what it prints."""
    printed: str = page.evaluate(
        """async (code) => {
            const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            const future = kernel.requestExecute({ code });
            let printed = "";
            future.onIOPub = ({ content }) => (printed += content.text ?? content.evalue ?? "");
            await future.done;
            return printed;
        }""",
        code,
    )
    return printed


def change_theme(page: Page, theme: str) -> None:
    """Change the theme to "JupyterLab Light" or "JupyterLab Dark"."""
    page.evaluate(
        "theme => jupyterapp.commands.execute('apputils:change-theme', { theme }).then(() => null)",
        theme,
    )
    page.wait_for_selector(f'body[data-jp-theme-name="{theme}"]', state="attached")
