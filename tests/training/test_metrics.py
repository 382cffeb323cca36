"""The numbers of a run, and what a kill leaves of them."""

import json

from big_ssl import io
from big_ssl.training.metrics import MetricsWriter, read_lines
from big_ssl.training.wall_time import ALL_PARTS
from tests.training.test_tensorboard import events


def test_lines_survive_and_nan_is_null(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"train/loss": 2.5})
    # On disk before anything is closed: a kill loses nothing that was said.
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "train/loss": 2.5}
    writer.write(2, {"train/loss": float("nan"), "train/rate": float("inf")})
    writer.close()
    assert read_lines(tmp_path / "metrics.jsonl")[1] == {"step": 2, "train/loss": None, "train/rate": None}


def test_a_resumed_run_drops_what_it_will_write_again(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in range(1, 6):
        writer.write(step, {"x": step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "x": 6.')  # killed while it wrote
    resumed = MetricsWriter(tmp_path, start_step=3)
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    resumed.write(4, {"x": 40})
    resumed.close()
    assert read_lines(tmp_path / "metrics.jsonl")[-1] == {"step": 4, "x": 40.0}


def test_a_bucket_holds_all_lines_and_events_over_a_restart(gcs_folder):
    """Object stores overwrite where a disk appends: only the last line was left."""
    for start, last in ((0, 5), (3, 6)):
        writer = MetricsWriter(gcs_folder, start_step=start)
        for step in range(start + 1, last + 1):
            writer.write(step, {"x": step, "time/compute": step})
            writer.flush()
        writer.close()
    folder = io.as_path(gcs_folder)
    assert [line["step"] for line in read_lines(folder / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    # The second stretch does steps 4 and 5 again.
    assert writer.seconds_before == dict.fromkeys(ALL_PARTS, 0.0) | {"compute": 3.0, "lost": 2.0}
    steps = [event.step for file in sorted(folder.glob("events*")) for event in events(file.read_bytes())]
    assert steps == [0, 1, 1, 2, 3, 4, 5, 0, 4, 4, 5, 6]


def test_a_checkpoint_finds_what_was_logged_before_it(gcs_folder):
    writer = MetricsWriter(gcs_folder)
    writer.write(1, {"x": 1})
    path = io.as_path(gcs_folder) / "metrics.jsonl"
    assert not path.exists()
    writer.flush()
    assert read_lines(path) == [{"step": 1, "x": 1.0}]


def test_a_run_that_starts_anew_keeps_the_metrics_of_the_one_before(tmp_path, capsys):
    """Each under a number of its own; a first run leaves no second file."""
    for run in (1, 2, 3):
        writer = MetricsWriter(tmp_path)
        writer.write(5, {"run": run})
        writer.close()
    kept = {path.name: read_lines(path)[0]["run"] for path in tmp_path.glob("*.jsonl")}
    assert kept == {"metrics_1.jsonl": 1, "metrics_2.jsonl": 2, "metrics.jsonl": 3}
    said = capsys.readouterr().out.splitlines()
    assert (
        said[-1] == "no checkpoint: starting at step 0; the metrics of the run before are in metrics_2.jsonl"
    )
    assert len(said) == 2
    MetricsWriter(tmp_path, start_step=5).close()
    assert len(list(tmp_path.glob("*.jsonl"))) == 3


def test_no_file_is_no_lines(tmp_path):
    assert read_lines(tmp_path / "metrics.jsonl") == []
