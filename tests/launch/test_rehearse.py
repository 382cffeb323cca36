"""launch/rehearse.sh for real: two processes and an emulated bucket, from the data to a converted model."""

import os
import subprocess
import sys

import pytest

from big_ssl import io
from big_ssl.training.metrics import read_lines
from tests.commands import ROOT


def rehearse(config, workdir, *arguments):
    """What launch/rehearse.sh prints, which must end well."""
    done = subprocess.run(
        [ROOT / "launch/rehearse.sh", f"configs/{config}", f"--workdir={workdir}", *arguments],
        cwd=ROOT,
        env=os.environ | dict(PYTHON=sys.executable),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_complete(workdir, ends=()):
    """All steps are there after the kill, evaluated and reported; the last run began with the first.

    ends: last steps of stages, where a run evaluates too.
    """
    for name in ("killed", "whole", "continued"):
        lines = read_lines(io.as_path(workdir) / name / "metrics.jsonl")
        assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 13))
        evaluated = {line["step"] for line in lines if any(key.startswith("eval/") for key in line)}
        assert evaluated == {6, 12, *ends}
        assert "</html>" in (io.as_path(workdir) / name / "report" / "index.html").read_text()
    assert (io.as_path(workdir) / "knn.json").exists()


@pytest.mark.slow
def test_a_rehearsal_of_clip_in_a_bucket(gcs_folder):
    printed = rehearse("clip.py:vitb32", gcs_folder)
    assert "arrays are equal to the last bit" in printed
    assert "rehearsed" in printed.splitlines()[-1]
    assert_complete(gcs_folder)


@pytest.mark.soak
@pytest.mark.parametrize("config", ["align_l2.py", "ibot.py"])
def test_a_rehearsal_in_a_bucket(config, gcs_folder):
    assert "arrays are equal to the last bit" in rehearse(config, gcs_folder)
    assert_complete(gcs_folder)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("config", "ends"),
    [("unicl.py:swint_in1k_gcc3m", ()), ("florence.py", (4, 8)), ("hybrid_unicl_ibot.py", ())],
)
def test_a_rehearsal_of_a_mixture(config, ends, tmp_path):
    assert "arrays are equal to the last bit" in rehearse(config, tmp_path)
    assert_complete(tmp_path, ends)


@pytest.mark.soak
def test_a_distillation_is_rehearsed_from_its_teachers_rehearsal(gcs_folder):
    rehearse("dinov2.py:vitg14", f"{gcs_folder}/teacher")
    printed = rehearse(
        "dinov2_distill.py", f"{gcs_folder}/student", f"--init_from={gcs_folder}/teacher/killed"
    )
    assert "arrays are equal to the last bit" in printed
    assert_complete(f"{gcs_folder}/student")
