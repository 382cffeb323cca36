"""Runs commands in processes forked from one that has already imported JAX.

A new interpreter takes two seconds to import a command's modules; a fork of a warm one takes none. Nothing
else differs: `__main__` runs, flags are parsed, and the exit code is the process's.
"""

import atexit
import dataclasses
import multiprocessing
import os
import pathlib
import runpy
import signal
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence

import jax

ROOT = pathlib.Path(__file__).parents[1]
# Imported before the fork. They define no flags, start no Python threads, and touch no device.
_PRELOADED = (
    "matplotlib.pyplot",
    "sklearn.linear_model",
    "tensorflow_datasets",
    "big_ssl.training.loop",
    "big_ssl.training.run_report",
)


@dataclasses.dataclass(frozen=True)
class Result:
    """A command's exit code and output."""

    returncode: int
    stdout: str
    stderr: str


class Process:
    """A running command, with the methods of subprocess.Popen that tests use."""

    def __init__(self, process):
        self._process = process

    @property
    def returncode(self) -> int | None:
        """The exit code, -N if signal N ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same as `returncode`."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Returns the exit code when the process has ended; None after `timeout` seconds."""
        self._process.join(timeout)
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal if the process still runs."""
        if self.returncode is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Kills the process."""
        self.send_signal(signal.SIGKILL)


def start(
    command: Sequence[str],
    stdout: pathlib.Path,
    stderr: pathlib.Path,
    environment: Mapping[str, str],
    folder: pathlib.Path = ROOT,
) -> Process:
    """Starts `python COMMAND...`.

    Args:
      command: "-m", MODULE, ... or FILE, ...
      stdout, stderr: files, or one file for both.
      environment: variables to set; JAX's are also set as its options, since the warm process has already
        read them.
      folder: the working directory.

    Returns:
      The running process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOADED])
    process = context.Process(target=_become, args=([*command], stdout, stderr, dict(environment), folder))
    process.start()
    return Process(process)


def run(module: str, *arguments: object, timeout: float = 300) -> Result:
    """Runs `python -m module arguments...` on one CPU device. Raises TimeoutError after `timeout` seconds."""
    return execute(["-m", module, *map(str, arguments)], timeout)


def execute(command: Sequence[str], timeout: float = 300, folder: pathlib.Path = ROOT, **variables) -> Result:
    """Runs `python COMMAND...` on one CPU device in a folder, with environment variables.

    Raises TimeoutError after `timeout` seconds.
    """
    with tempfile.TemporaryDirectory() as scratch:
        stdout, stderr = (pathlib.Path(scratch, name) for name in ("stdout", "stderr"))
        process = start(command, stdout, stderr, dict(JAX_PLATFORMS="cpu") | variables, folder)
        code = process.wait(timeout)
        if code is None:
            process.kill()
            raise TimeoutError(f"{command}: still running after {timeout} s: {stderr.read_text()}")
        return Result(code, *(file.read_text(errors="replace") for file in (stdout, stderr)))


def _become(command, stdout, stderr, environment, folder):
    """Runs the command in the forked process."""
    for descriptor, file in ((1, stdout), (2, stderr)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    sys.stdout.reconfigure(line_buffering=True)
    os.chdir(folder)
    os.environ.update(environment)
    for name, value in environment.items():
        if name.startswith("JAX_"):
            _set_option(name.lower(), value)
    try:
        if command[0] == "-m":
            sys.argv[:] = command[1:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv[:] = command
            runpy.run_path(str(ROOT / command[0]), run_name="__main__")
    except Exception:  # printed before the exit functions run, which may wait for other processes
        traceback.print_exc()
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()  # multiprocessing skips an interpreter's exit functions


def _set_option(name, value):
    """Sets a JAX option like its environment variable."""
    convert = {bool: lambda text: text in ("1", "true"), int: int, float: float}
    jax.config.update(name, convert.get(type(jax.config.values[name]), str)(value))
