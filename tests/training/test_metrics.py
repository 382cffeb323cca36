"""metrics.jsonl: written, resumed, and truncated by a kill."""

import json

from big_ssl import io
from big_ssl.training.metrics import MetricsWriter, read_lines
from big_ssl.training.wall_time import ALL_PARTS
from tests.training.test_tensorboard import events


def test_lines_are_on_disk_at_once_and_nan_is_null(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"train/loss": 2.5})
    # On disk before the writer is closed: a kill loses no line.
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "train/loss": 2.5}
    writer.write(2, {"train/loss": float("nan"), "train/rate": float("inf")})
    writer.close()
    assert read_lines(tmp_path / "metrics.jsonl")[1] == {"step": 2, "train/loss": None, "train/rate": None}


def test_a_resumed_run_drops_later_lines(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in range(1, 6):
        writer.write(step, {"x": step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "x": 6.')  # killed while writing
    resumed = MetricsWriter(tmp_path, start_step=3)
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    resumed.write(4, {"x": 40})
    resumed.close()
    assert read_lines(tmp_path / "metrics.jsonl")[-1] == {"step": 4, "x": 40.0}


def test_a_bucket_has_all_lines_and_events_after_a_restart(gcs_folder):
    """Object stores overwrite where a disk appends, which would keep only the last line."""
    for start, last in ((0, 5), (3, 6)):
        writer = MetricsWriter(gcs_folder, start_step=start)
        for step in range(start + 1, last + 1):
            writer.write(step, {"x": step, "time/compute": step})
            writer.flush()
        writer.close()
    folder = io.as_path(gcs_folder)
    assert [line["step"] for line in read_lines(folder / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    # The second segment repeats steps 4 and 5.
    assert writer.seconds_before == dict.fromkeys(ALL_PARTS, 0.0) | {"compute": 3.0, "lost": 2.0}
    steps = [event.step for file in sorted(folder.glob("events*")) for event in events(file.read_bytes())]
    assert steps == [0, 1, 1, 2, 3, 4, 5, 0, 4, 4, 5, 6]


def test_lines_are_sent_before_a_checkpoint(gcs_folder):
    writer = MetricsWriter(gcs_folder)
    writer.write(1, {"x": 1})
    path = io.as_path(gcs_folder) / "metrics.jsonl"
    assert not path.exists()
    writer.flush()
    assert read_lines(path) == [{"step": 1, "x": 1.0}]


def test_a_new_run_keeps_the_earlier_runs_metrics(tmp_path, capsys):
    """Each in a numbered file; a first run writes no second file."""
    for run in (1, 2, 3):
        writer = MetricsWriter(tmp_path)
        writer.write(5, {"run": run})
        writer.close()
    kept = {path.name: read_lines(path)[0]["run"] for path in tmp_path.glob("*.jsonl")}
    assert kept == {"metrics_1.jsonl": 1, "metrics_2.jsonl": 2, "metrics.jsonl": 3}
    output = capsys.readouterr().out.splitlines()
    assert output[-1] == "no checkpoint: starting at step 0; the earlier run's metrics are in metrics_2.jsonl"
    assert len(output) == 2
    MetricsWriter(tmp_path, start_step=5).close()
    assert len(list(tmp_path.glob("*.jsonl"))) == 3


def test_read_lines_without_a_file_is_empty(tmp_path):
    assert read_lines(tmp_path / "metrics.jsonl") == []
