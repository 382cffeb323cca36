"""The end of launch/local.sh, with a shell script instead of the interpreter."""

import os
import pathlib
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Told by its index what to do; stops with 75 on SIGTERM, as the job does under --stopped_exit_code=75.
PROCESS = """#!/usr/bin/env bash
index=${@: -1}
index=${index##*,}
trap 'exit 75' TERM
echo "hello from $index"
[[ $BEHAVIOUR != *"$index fails"* ]] || exit 7
[[ $BEHAVIOUR != *"$index ends"* ]] || exit 0
for _ in {1..300}; do sleep 0.1; done
"""


@pytest.fixture
def start(tmp_path):
    python = tmp_path / "python"
    python.write_text(PROCESS)
    python.chmod(0o755)

    def start(behaviour):
        return subprocess.Popen(
            [ROOT / "launch/local.sh", "2", "--config=a", "--workdir=b"],
            env=os.environ | dict(PYTHON=str(python), PORT="1234", BEHAVIOUR=behaviour),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def test_the_script_succeeds_if_all_processes_do(start):
    script = start("0 ends, 1 ends")
    output, _ = script.communicate(timeout=20)
    assert script.returncode == 0
    assert sorted(output.splitlines()) == ["[0] hello from 0", "[1] hello from 1"]


@pytest.mark.parametrize("index", [0, 1])
def test_a_failing_process_ends_the_others(index, start):
    script = start(f"{index} fails")
    output, _ = script.communicate(timeout=20)
    assert script.returncode == 7
    assert "launch/local.sh: a process ended with exit code 7; ending the others" in output


def test_sigterm_is_forwarded(start):
    script = start("")
    time.sleep(2)  # until the processes are there
    script.send_signal(signal.SIGTERM)
    script.communicate(timeout=20)
    assert script.returncode == 75
