"""Start-up of several processes, and its errors."""

import os
import pathlib
import re
import socket
import subprocess
import sys

import pytest

from big_ssl import main
from big_ssl.parallel import distributed

ROOT = pathlib.Path(__file__).parents[2]


def test_parse_returns_the_address():
    assert distributed.parse("host.example:1234,16,3") == ("host.example:1234", 16, 3)
    assert distributed.parse("[::1]:1234,2,0") == ("[::1]:1234", 2, 0)
    assert distributed.parse("") is distributed.parse("auto") is None


@pytest.mark.parametrize(
    "value",
    [
        "localhost",
        "localhost,2,0",
        "localhost:port,2,0",
        "localhost:1234",
        "localhost:1234,2",
        ":1234,2,0",
        "localhost:1234,2,0,1",
        "localhost:1234,two,0",
        "localhost:1234,2,-1",
        "localhost:70000,2,0",
        "Auto",
    ],
)
def test_an_invalid_address_is_an_error(value):
    with pytest.raises(ValueError, match=f"--distributed={re.escape(value)}: must be '' .*HOST:PORT"):
        distributed.parse(value)


@pytest.mark.parametrize("value", ["localhost:1234,2,2", "localhost:1234,0,0"])
def test_an_index_counts_from_zero(value):
    with pytest.raises(ValueError, match=r"INDEX \d must be below PROCESSES \d"):
        distributed.parse(value)


def test_the_commands_error_for_an_invalid_address(capsys):
    with pytest.raises(SystemExit) as stopped:
        main.parse_flags(["main", "--config=configs/align_l2.py:tiny", "--workdir=x", "--distributed=1,2"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("flag --distributed=1,2: must be ")


def _start(value, seconds=1, platform="cpu"):
    """(exit code, last line) of a process that only starts up."""
    code = f"from big_ssl.parallel import distributed\ndistributed.start({value!r}, seconds={seconds})"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "OMPI", "JAX", "TPU"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment | dict(JAX_PLATFORMS=platform, PYTHONPATH=str(ROOT)),
        timeout=120,
    )
    return done.returncode, done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_without_the_others_exits_with_one_line(index):
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    code, line = _start(f"localhost:{port},2,{index}")
    assert code == 2
    assert f"--distributed=localhost:{port},2,{index}: not all processes had come together after 1 s" in line


def test_a_port_in_use_and_no_cluster_are_startup_errors():
    with socket.create_server(("", 0)) as listener:
        code, line = _start(f"localhost:{listener.getsockname()[1]},2,0")
    assert (code, "StartupError: --distributed=localhost:" in line) == (1, True)
    code, line = _start("auto")
    assert (code, "StartupError: --distributed=auto: no cluster detected here" in line) == (1, True)


def test_a_process_without_a_device_is_a_startup_error():
    with socket.create_server(("", 0)) as listener:
        port = listener.getsockname()[1]
    code, line = _start(f"localhost:{port},1,0", seconds=60, platform="tpu")
    assert (code, f"StartupError: --distributed=localhost:{port},1,0: " in line) == (1, True)
    assert "nable to initialize backend 'tpu'" in line


def test_nothing_that_the_command_imports_touches_a_device():
    # Otherwise JAX refuses to start several processes.
    check = "from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized()"
    done = subprocess.run(
        [sys.executable, "-c", f"import big_ssl.main, configs.align_l2; {check}"],
        cwd=ROOT,
        env=os.environ | dict(JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT)),
        timeout=120,
    )
    assert done.returncode == 0


@pytest.mark.slow
def test_processes_may_reach_their_first_step_at_different_times(cluster):
    job = cluster.start(["tests/cluster/come_late.py"])
    assert job.wait(120) == [0, 0], job.output()
    assert job.output(0).endswith("28.0\n")
