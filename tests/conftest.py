"""Fixtures of all tests: the two backends, and the original's numbers."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import microgpt
from microgpt import reference
from microgpt.engine import backend as backends
from microgpt.engine.packing import PackedSequences

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A folder outside this repository, with further golden files in golden/ and their data in data/.
SHARED = Path(os.environ["MICROGPT_SHARED"]).resolve() if "MICROGPT_SHARED" in os.environ else None
COMPILED_IS_THERE = backends.compiled_engine() is not None

needs_compiled = pytest.mark.skipif(not COMPILED_IS_THERE, reason="this installation has no compiled engine")
needs_processes = pytest.mark.skipif(sys.platform == "emscripten", reason="WebAssembly has no processes and no threads")
compiled = pytest.param("compiled", marks=needs_compiled)
# In float32 the compiler fuses multiplications and additions where it finds them.
needs_fusing = pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""),
    reason="sanitizers and counters keep the compiler from fusing the sums of two kernels alike",
)


# Models of float32's tests: widths and vocabularies that fill vectors, and that do not.
CONFIGS = [
    microgpt.GPTConfig(vocab_size=27),
    microgpt.GPTConfig(vocab_size=2, n_embd=3, n_head=1),
    microgpt.GPTConfig(vocab_size=30, n_embd=20, n_head=5, block_size=3),
    microgpt.GPTConfig(vocab_size=65, n_layer=3, n_embd=48, n_head=3, block_size=40),
    microgpt.GPTConfig(vocab_size=11, n_layer=2, n_embd=7, n_head=1, activation="gelu", init_std=0.3),
    microgpt.GPTConfig(vocab_size=11, n_layer=2, n_embd=5, n_head=1, activation="silu", init_std=0.3),
    microgpt.GPTConfig(vocab_size=11, n_layer=2, n_embd=9, n_head=1, block_size=40, dropout=0.3),
]

CHROMIUM = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

MpiExec = Callable[..., "subprocess.CompletedProcess[str]"]
HANGS = 300  # seconds, for processes that never take as long
MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")


@cache
def why_no_mpi() -> str | None:
    """The reason why tests cannot start processes with mpiexec, or None."""
    if "COVERAGE_RUN" in os.environ:
        return "the processes of mpiexec take minutes while they are watched"
    if MPIEXEC is None or importlib.util.find_spec("mpi4py") is None:
        return "mpi4py or mpiexec is not installed"
    program = "from mpi4py.MPI import COMM_WORLD; print(COMM_WORLD.size)"
    command = [MPIEXEC, "-n", "2", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS, check=False)
    # The lines of two processes may be mixed.
    return None if "".join(done.stdout.split()) == "22" else f"mpiexec does not work here: {done.stderr[-200:]}"


@pytest.fixture
def mpiexec() -> MpiExec:
    """A function that runs Python with some arguments in several processes, as `subprocess.run` does."""
    why = "WebAssembly has no processes" if sys.platform == "emscripten" else why_no_mpi()
    if why:
        pytest.skip(why)

    def run(size: int, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [str(MPIEXEC), "-n", str(size), sys.executable, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=HANGS, check=False, **options)

    return run


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium, which logs its console and its network."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not (chromium and driver):
        pytest.skip("chromium and chromedriver are not there")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (*CHROMIUM, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    browser.get("about:blank")
    yield browser
    browser.quit()


class Tab:
    """A page in Chromium. `ready` is what the page sets in the `data-` attributes of its root when it can be used."""

    def __init__(self, browser: Any, address: str, fragment: str, ready: str) -> None:
        self.browser = browser
        browser.get("about:blank")
        for log in ("browser", "performance"):
            browser.get_log(log)  # discard earlier entries
        browser.get(address + fragment)
        self.wait(f"document.documentElement.dataset.{ready}")

    def get(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        return self.browser.execute_script(f"return {expression}")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + HANGS
        while not self.get(expression):
            assert time.monotonic() < deadline, (expression, self.get("document.body.innerText"))
            time.sleep(0.05)

    def text(self, id: str) -> str:
        return self.get(f"document.getElementById('{id}').textContent")

    def value(self, id: str) -> str:
        return self.get(f"document.getElementById('{id}').value")

    def heading(self) -> str:
        """The description by `Letters` of the letters before the selected one."""
        return self.get("document.querySelector('.letters h3').firstChild.textContent")

    def press_button(self, text: str) -> None:
        """Press the enabled button with this text."""
        buttons = f"[...document.querySelectorAll('button:enabled')].filter((each) => each.textContent === '{text}')"
        assert self.get(f"{buttons}.length") == 1
        self.get(f"{buttons}[0].click()")

    def click(self, id: str) -> None:
        self.browser.execute_script(f"document.getElementById('{id}').click()")

    def set(self, id: str, value: object) -> None:
        """Change a field as a user does."""
        self.browser.execute_script(
            "const [id, value] = arguments, field = document.getElementById(id);"
            "field[field.type === 'checkbox' ? 'checked' : 'value'] = value;"
            "for (const name of ['input', 'change']) field.dispatchEvent(new Event(name, {bubbles: true}))",
            id,
            value,
        )

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def tab_to(self, id: str) -> None:
        """Press Tab until this element has the focus."""
        for _ in range(60):
            if self.get("document.activeElement.id") == id:
                return
            self.press("\ue004")
        raise AssertionError(f"the Tab key does not reach {id}")

    def messages(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def requests(self) -> list[str]:
        events = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


@pytest.fixture(params=["reference", compiled])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn: a test that takes it runs on both without knowing which."""
    return request.param


@pytest.fixture(params=["reference", "compiled"])
def scalars(request: pytest.FixtureRequest) -> ModuleType:
    """The module with `Value` and the functions on lists of them, once for each twin."""
    if request.param == "reference":
        return reference
    return pytest.importorskip("microgpt._value", reason="the compiled half is not built")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[microgpt.TuneResult, list[str]]:
    """The search of searches.py, one trial after the other, and its log."""
    from searches import FEW, NAMES, lines

    log = tmp_path_factory.mktemp("whole") / "log"
    with ThreadPoolExecutor(1) as executor:
        result = microgpt.tune(NAMES, executor=executor, log=log, **FEW)
    return result, lines(log)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Make signals work and output plain; if extensions are required, fail without them instead of skipping.

    A shell starts background processes, and so their children, with SIGINT ignored, and nohup does so with SIGHUP.
    """
    if os.environ.get("MICROGPT_REQUIRE_EXTENSIONS") == "1" and not COMPILED_IS_THERE:
        pytest.exit("MICROGPT_REQUIRE_EXTENSIONS=1, but there is no compiled engine", returncode=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ["PYTHON_COLORS"] = "0"  # in tracebacks and help, despite FORCE_COLOR


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that open pages in a browser."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")


ABSENT_IN_WEBASSEMBLY = ("can't start new thread", "does not support processes", "lacks multiprocessing.synchronize")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In WebAssembly, skip tests from where they start a thread or a process."""
    report = yield
    error = str(call.excinfo.value) if call.excinfo else ""
    if sys.platform == "emscripten" and any(absent in error for absent in ABSENT_IN_WEBASSEMBLY):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), 0, "Skipped: WebAssembly has no processes and no threads")
    return report


def numbers(values: Iterable[microgpt.Value]) -> list[tuple[float, float]]:
    """Data and gradient of each."""
    return [(value.data, value.grad) for value in values]


def sequences(packed: PackedSequences) -> list[list[int]]:
    """Packed sequences one by one."""
    return [packed.tokens[start : start + length].tolist() for start, length in zip(packed.starts, packed.lengths)]


def digest(arrays: Iterable[NDArray[Any]]) -> str:
    """SHA-256 of all numbers as little-endian doubles, in order."""
    return hashlib.sha256(np.concatenate([array.ravel() for array in arrays]).astype("<f8").tobytes()).hexdigest()


class Golden:
    """The original's numbers for one configuration, to the last bit, from a file that tools/make_golden.py made.

    Files with all of the first gradients and losses in hexadecimal are read, too.
    """

    def __init__(self, file: Path) -> None:
        self.content: dict[str, Any] = json.loads(file.read_text("utf-8"))
        self.data = self._data()
        self.options = dict(self.content["config"])
        self.temperature = self.options.pop("temperature")
        self.options["steps"] = self.options.pop("num_steps")
        losses = self.content["losses"]
        if isinstance(losses, str):
            self.losses = np.frombuffer(base64.b64decode(losses), "<f8").tolist()
            self.first_gradients_sha256 = self.content["grads_step1_sha256"]
        else:
            self.losses = [float.fromhex(loss) for loss in losses]
            first_gradients = np.array([float.fromhex(gradient) for gradient in self.content["grads_step1"]])
            self.first_gradients_sha256 = digest([first_gradients])
        self.samples: list[str] = self.content["samples"]

    def _data(self) -> Path:
        """The file that the original was trained on."""
        files = [Path(microgpt.__file__).parent / "data" / "names.txt", *(SHARED.glob("data/*.txt") if SHARED else [])]
        for file in files:
            if hashlib.sha256(file.read_bytes()).hexdigest() == self.content["data_sha256"]:
                return file
        raise FileNotFoundError(f"none of {', '.join(map(str, files))} has the data of this golden file")


GOLDEN_FILES = sorted(Path(__file__).parent.glob("golden/*.json")) + (
    sorted(SHARED.glob("golden/*.json")) if SHARED else []
)
