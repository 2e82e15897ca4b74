"""Exit of Python while threads compute: at once, without a crash, and with whole files."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from microgpt import load

from conftest import needs_compiled, needs_processes

pytestmark = needs_processes

HANGS = 120.0  # seconds; no program here takes as long
CAN_OUTLIVE = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "on_exit")

BEGIN = """
import atexit, os, sys, threading, time
stopped = threading.Event()
if "early" in sys.argv:
    atexit.register(lambda: (stopped.set(), thread.join(), print(model.loss(batch) == expected)))
import microgpt
from microgpt import GPT, GPTConfig, train

names = ["carlotta", "bob", "alexandra"] * 60
model, batch = GPT(GPTConfig(vocab_size=27, n_embd=64), threads=2), [[1] * 17] * 60  # enough for a team
expected = model.loss(batch)
begun = threading.Event()

def begin(target, daemon=True):
    global thread
    thread = threading.Thread(target=target, daemon=daemon)
    thread.start()
    begun.wait()
"""

# The process outlives Python by a second, and the thread gets the processor only then: a handler of the C library
# sleeps for as many seconds as the exit status.
OUTLIVE = """
import ctypes
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.sched_setscheduler(thread.native_id, os.SCHED_IDLE, os.sched_param(0))
libc = ctypes.CDLL(None)
libc.on_exit(libc.sleep, None)
sys.exit(1)
"""

COMPUTATIONS = {
    "training": "begin(lambda: train(names, steps=10**6, threads=1, progress=lambda step: begun.set()))",
    "training with a team": """
sizes = {"n_embd": 64, "batch_size": 60, "threads": 3}
begin(lambda: train(names, steps=10**6, **sizes, progress=lambda step: begun.set()))
""",
    "a progress callback": """
begin(lambda: train(names, steps=10**6, progress=lambda step: (begun.set(), time.sleep(1000))))
""",
    "many documents": "begin(lambda: (begun.set(), model.generate_tokens(10**7, seed=1)))",
    "calls without an end": """
def forever():
    while True:
        model.loss(batch), model.generate_tokens(3), GPT(model.config)
        begun.set()
begin(forever)
""",
}


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    quiet = "ignore:This process:DeprecationWarning"  # of forks while there are threads, from Python 3.12 on
    command = [sys.executable, "-W", quiet, "-c", program, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=HANGS)


@needs_compiled
@pytest.mark.parametrize("computation", COMPUTATIONS)
def test_a_daemon_thread_does_not_outlive_python(computation: str) -> None:
    done = run(BEGIN + COMPUTATIONS[computation])
    assert (done.returncode, done.stderr) == (0, "")


@needs_compiled
@pytest.mark.skipif(not CAN_OUTLIVE, reason="only Linux has on_exit, and threads that run where no other does")
@pytest.mark.parametrize("computation", ["training", "training with a team", "many documents"])
def test_a_daemon_thread_may_ask_for_the_gil_after_python_has_ended(computation: str) -> None:
    done = run(BEGIN + COMPUTATIONS[computation] + OUTLIVE)
    assert (done.returncode, done.stderr) == (1, "")


@needs_compiled
def test_a_function_that_runs_at_exit_may_use_a_model() -> None:
    done = run(BEGIN + "atexit.register(lambda: print(model.loss(batch) == expected))")
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


@needs_compiled
def test_an_early_exit_handler_may_join_a_thread_and_use_a_model() -> None:
    program = COMPUTATIONS["calls without an end"].replace("while True", "while not stopped.is_set()")
    done = run(BEGIN + program, "early")
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


@needs_compiled
def test_what_is_deleted_at_the_very_end_may_use_a_model() -> None:
    # Once a thread has run, free-threaded CPython 3.13 empties all modules before it deletes what uses them.
    begin = BEGIN.replace("threads=2", "threads=1") if sysconfig.get_config_var("Py_GIL_DISABLED") else BEGIN
    done = run(
        begin
        + """
class Late:
    def __init__(self, *needed):
        self.needed = needed
    def __del__(self):
        model, batch, expected, is_finalizing = self.needed
        print(is_finalizing(), model.loss(batch) == expected)
late = Late(model, batch, expected, sys.is_finalizing)
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True True\n", "")


@needs_compiled
def test_a_thread_that_is_no_daemon_ends_its_work(tmp_path: Path) -> None:
    done = run(
        BEGIN
        + f"""
def last():
    begun.set()
    threading.main_thread().join()
    train(names, n_embd=64, batch_size=60, steps=3, threads=2, out={os.fspath(tmp_path / "model.safetensors")!r})
begin(last, daemon=False)
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert load(tmp_path / "model.safetensors").history.losses.size == 3


@needs_compiled
@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_forked_while_threads_compute_exits() -> None:
    """Some threads are asking for the GIL at that moment, and will never get it in the child."""
    done = run(
        BEGIN
        + COMPUTATIONS["calls without an end"]
        + """
begin(forever)
for _ in range(20):
    child = os.fork()
    if child == 0:
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    )
    assert (done.returncode, done.stderr) == (0, "")


WRITING = """
import os, sys, threading, time
from microgpt import train

saving = threading.Event()
def slow_fsync(descriptor):
    saving.set()
    time.sleep(0.3)
os.fsync = slow_fsync
threading.Thread(target=train, args=(["bob"],), kwargs={{"steps": 1, "out": {out!r}}}, daemon=True).start()
saving.wait()
"""


def test_a_checkpoint_that_is_being_written_is_finished_first(tmp_path: Path) -> None:
    done = run(WRITING.format(out=os.fspath(tmp_path / "model.safetensors")))
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert load(tmp_path / "model.safetensors").history.losses.size == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_forked_while_a_file_is_written_exits(tmp_path: Path) -> None:
    done = run(
        WRITING.format(out=os.fspath(tmp_path / "model.safetensors"))
        + """
child = os.fork()
if child == 0:
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
