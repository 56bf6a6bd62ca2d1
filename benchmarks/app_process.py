"""The app as a process: how soon its page answers and its models are ready, and the memory that a generation takes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.arguments import as_arguments
from app.services.prompts import MINIATURE_EXAMPLES
from app.state import Options
from benchmarks.figures import Figure
from benchmarks.scale import Scale

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 300.0  # for any one thing that is waited for

FIGURES = (
    Figure("page answers, cold start", "s", at_most=10),
    Figure("models ready, cold start", "s"),
    Figure("page answers, warm start", "s", at_most=5),
    Figure("models ready, warm start", "s"),
    Figure("peak memory of the app after a pair", "GB", at_most=2.5),
)


def measure(options: Options, scale: Scale) -> Iterator[tuple[str, float]]:
    """(name, value) of the figures. A cold start is one whose files are read from the disk.

    RuntimeError where the app ends or does not answer.
    """
    if scale.cold_start:
        forget_files(Path(sysconfig.get_paths()["purelib"]), ROOT)
        with started(options) as app:
            yield "page answers, cold start", app.wait_for_page()
            yield "models ready, cold start", app.wait_for_models()
    with started(options) as app:
        yield "page answers, warm start", app.wait_for_page()
        yield "models ready, warm start", app.wait_for_models()
        app.generate(MINIATURE_EXAMPLES[0], scale.steps)
        yield "peak memory of the app after a pair", app.peak_bytes() / 1e9


class App:
    """A running `python app.py`, seen from outside."""

    def __init__(self, process: subprocess.Popen, port: int, log: Path) -> None:
        self.process, self.log = process, log
        self.address = f"http://127.0.0.1:{port}/"
        self._started_s = time.monotonic()

    def wait_for_page(self) -> float:
        """Seconds from the start of the process to the first answer of the page."""
        return self._wait(self._answers)

    def wait_for_models(self) -> float:
        """Seconds from the start of the process until the page says that its models are ready."""
        status = self._handler("status")["id"]

        def ready() -> bool:
            note = self._post("gradio_api/run/predict", {"fn_index": status, "data": []})["data"][0]
            if "failed" in note:
                raise RuntimeError(f"the app cannot load its models: {note}")
            return "ready" in note

        return self._wait(ready)

    def generate(self, prompt: str, steps: int) -> None:
        """Paints one pair with the page's own settings, but for the prompt and the steps."""
        handler = self._handler("generate")
        fields = {component["id"]: component["props"] for component in self._config()["components"]}
        ours = {"prompt": prompt, "steps": steps}
        inputs = [fields[field] for field in handler["inputs"]]
        data = [ours.get(field.get("elem_id"), field.get("value")) for field in inputs]
        page = {"session_hash": "benchmark", "fn_index": handler["id"], "data": data}
        self._post("gradio_api/queue/join", page)
        answer = f"{self.address}gradio_api/queue/data?session_hash=benchmark"
        with urllib.request.urlopen(answer, timeout=LIMIT_S) as events:
            lines = [line.removeprefix(b"data: ") for line in events if line.startswith(b"data: ")]
        phases = [event["output"]["data"][0] for line in lines if "output" in (event := json.loads(line))]
        if not any('"done"' in json.dumps(phase) for phase in phases):
            raise RuntimeError(f"the app painted no pair; its last word: {json.dumps(phases[-1:])[:300]}")

    def peak_bytes(self) -> int:
        """The largest resident memory of the process until now."""
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        except OSError as error:
            raise RuntimeError("a process's peak memory is read from /proc, which this system lacks") from error
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

    def _wait(self, is_there: Callable[[], bool]) -> float:
        while not is_there():
            if self.process.poll() is not None:
                raise RuntimeError(f"the app ended by itself: {self.log.read_text()[-300:].strip()}")
            if time.monotonic() - self._started_s > LIMIT_S:
                raise RuntimeError(f"the app did not get there within {LIMIT_S:g} s")
            time.sleep(0.05)
        return time.monotonic() - self._started_s

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.address, timeout=LIMIT_S) as answer:
                return answer.status == 200 and bool(answer.read())
        except urllib.error.URLError:
            return False

    def _config(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.address + "config", timeout=LIMIT_S) as answer:
            return json.load(answer)

    def _handler(self, name: str) -> dict[str, Any]:
        return next(handler for handler in self._config()["dependencies"] if handler["api_name"] == name)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
            return json.load(answer)


@contextmanager
def started(options: Options, runs: Path | None = None, studies: Path | None = None) -> Iterator[App]:
    """The app over these weights, runs and studies, or over none, as a process that ends with the block."""
    with tempfile.TemporaryDirectory() as folder:
        log, port = Path(folder) / "log.txt", _free_port()
        own = ["--port", str(port), "--runs", str(runs or Path(folder) / "runs")]
        own += ["--studies", str(studies or Path(folder) / "studies")]
        command = [sys.executable, "app.py", *own, *as_arguments(options)]
        with log.open("w") as output:
            process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield App(process, port, log)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def forget_files(*folders: Path) -> None:
    """Asks the system to drop its copies of these folders' files from memory; what a process has mapped stays.

    RuntimeError where the system cannot be asked.
    """
    if not hasattr(os, "posix_fadvise"):
        raise RuntimeError("this system cannot be asked to forget files, so no start after the first is cold")
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
