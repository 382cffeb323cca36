"""Trains a model from a config.

    python -m big_ssl.main --config=configs/align_l2.py:demo --workdir=runs/align_demo

Any value of the config can be set: --config.total_steps=1000. The same command again resumes. On SIGTERM,
Ctrl-C and a closed terminal (SIGHUP, except under nohup) it saves and stops between two steps. On several
hosts, run the same command on each with --distributed=auto (docs/launch.md).

Exit code 0: training finished, or stopped on a signal and saved; --stopped_exit_code distinguishes the two.
1: it failed, with the reason. 2: it can't run here, with the reason, before anything is compiled.
"""

import contextlib
import shlex
import sys
import traceback

import jax
from absl import app, flags, logging

from big_ssl import io, retry
from big_ssl.command_line import CONFIG, config_file, parse_flags
from big_ssl.config import ConfigError, validate
from big_ssl.parallel import distributed, hardware
from big_ssl.training import stages
from big_ssl.training.loop import train
from big_ssl.training.phases import announced
from big_ssl.training.requirements import (
    RequirementsError,
    check_requirements,
    check_same_config,
    free_space,
)
from big_ssl.training.run_report import write_run_report
from big_ssl.training.stopping import TrainingFailed

_WORKDIR = flags.DEFINE_string("workdir", None, "The folder for all output, local or gs://.")
_DISTRIBUTED = flags.DEFINE_string("distributed", "", f"Several processes: {distributed.USAGE}.")
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_seconds",
    distributed.HEARTBEAT_SECONDS,
    "Seconds of silence after which a process counts as dead.",
    1,
)
_STOPPED = flags.DEFINE_integer(
    "stopped_exit_code", 0, "Exit code of a run that stopped on a signal and saved."
)


@flags.validator("distributed")
def _check_distributed(value):
    try:
        return distributed.parse(value) is None or True
    except ValueError as error:
        raise flags.ValidationError(str(error).partition(": ")[2]) from error


def run(config, workdir: str, config_file: str, command: str, stopped: int = 0) -> int:
    """Trains and writes the report.

    Args:
      config: the training config.
      workdir: the folder for all output.
      config_file: the value of --config, for messages.
      command: the command line, for the report.
      stopped: the exit code of a run that stopped on a signal.

    Returns:
      The exit code; see the top of this file.
    """
    try:
        path = io.as_path(workdir)
        with distributed.raise_on_all_hosts(ConfigError):
            validate(config)
        check_same_config(config)
        for stage in stages.resolve(config):
            check_requirements(stage.config, config_file)
        _cache_compilations(path)
        result = train(config, path)
    except (ConfigError, RequirementsError, io.PathError) as error:
        print(error, file=sys.stderr)
        return 2
    except TrainingFailed as error:
        print(error, file=sys.stderr)
        _write_traceback(path)
        return 1
    except Exception as error:
        if not _is_storage_error(error):
            raise
        print(f"workdir {path}{free_space(path)}: {retry.one_line(error)}", file=sys.stderr)
        _write_traceback(path)
        return 1
    if not result.finished:
        return stopped
    _report(result.config, path, command, result)
    return 0


def _is_storage_error(error):
    """Whether an error comes from the workdir or another file.

    Clients of buckets have their own error types. JAX reports a lost process in the same words, so its errors
    are excluded.
    """
    return isinstance(error, OSError) or (
        retry.is_transient(error) and not isinstance(error, jax.errors.JaxRuntimeError)
    )


def _report(config, path, command, result):
    """Writes the report. Only logs errors: the run is complete, and a supervisor would restart it forever."""
    try:
        with announced("writing the report"):
            report = write_run_report(config, path, command, result)
    except Exception as error:
        logging.error(
            "no report: %s; training is complete, and this writes it again: %s",
            retry.one_line(error),
            command,
        )
        logging.debug("no report", exc_info=True)
        return
    if report:
        print(f"Report: {report}")


def _write_traceback(workdir):
    """Writes the traceback of a one-line error to the workdir, if it can be written."""
    with contextlib.suppress(Exception):  # the workdir may be what failed
        (workdir / f"failure_{jax.process_index()}.txt").write_text(traceback.format_exc())


def _cache_compilations(workdir):
    """Caches compiled programs in the workdir, for restarts, unless JAX_COMPILATION_CACHE_DIR is set."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))


def main(argv) -> None:
    del argv
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax and grain log every step of a save
        # Libraries log tracebacks of errors that they also raise, and that we print in one line.
        logging.get_absl_handler().addFilter(lambda record: not record.exc_info)
    command = shlex.join(["python", "-m", "big_ssl.main", *sys.argv[1:]])
    code = 1
    try:
        distributed.start(_DISTRIBUTED.value, _HEARTBEAT.value)
        hardware.check_backend()
        code = run(CONFIG.value.to_dict(), str(_WORKDIR.value), config_file(), command, _STOPPED.value)
    except (distributed.StartupError, hardware.BackendError) as error:
        print(error, file=sys.stderr)
        code = 2
    finally:
        distributed.shutdown(code)
    sys.exit(code)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse_flags)
