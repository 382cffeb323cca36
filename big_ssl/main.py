"""Trains what a config describes.

    python -m big_ssl.main --config=configs/align_l2.py:demo --workdir=runs/align_demo

Any value of the config can be set: --config.total_steps=1000. The same command again resumes. SIGTERM,
Ctrl-C and a closed terminal (SIGHUP, but under nohup) make it save and stop between two steps.
On several hosts, the same command on each with --distributed=auto (docs/launch.md).

Exit code 0: training finished, or was asked to stop and saved; --stopped_exit_code tells the two
apart. 1: it failed, and says why. 2: it can't run here as asked, said before anything is compiled.
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

_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is written: a folder or gs://.")
_DISTRIBUTED = flags.DEFINE_string("distributed", "", f"Several processes: {distributed.USAGE}.")
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_seconds", distributed.HEARTBEAT_SECONDS, "Silence after which a process counts as dead.", 1
)
_STOPPED = flags.DEFINE_integer(
    "stopped_exit_code", 0, "Exit code of a run that was asked to stop and saved."
)


@flags.validator("distributed")
def _check_distributed(value):
    try:
        return distributed.parse(value) is None or True
    except ValueError as error:
        raise flags.ValidationError(str(error).partition(": ")[2]) from error


def run(config, workdir: str, config_file: str, command: str, stopped: int = 0) -> int:
    """Trains and writes the report. Returns the exit code; see the top of this file."""
    try:
        path = io.as_path(workdir)
        with distributed.raise_on_all_hosts(ConfigError):
            validate(config)
        check_same_config(config)
        for stage in stages.resolve(config):
            check_requirements(stage.config, config_file)
        _keep_compiled(path)
        result = train(config, path)
    except (ConfigError, RequirementsError, io.PathError) as error:
        print(error, file=sys.stderr)
        return 2
    except TrainingFailed as error:
        print(error, file=sys.stderr)
        _keep_traceback(path)
        return 1
    except Exception as error:
        if not _is_of_storage(error):
            raise
        print(f"workdir {path}{free_space(path)}: {retry.one_line(error)}", file=sys.stderr)
        _keep_traceback(path)
        return 1
    if not result.finished:
        return stopped
    _report(result.config, path, command, result)
    return 0


def _is_of_storage(error):
    """Whether it comes from the workdir, or from a file that was there at the start. Clients of buckets
    have errors of their own; JAX's tell of a lost process with the same words."""
    return isinstance(error, OSError) or (
        retry.is_transient(error) and not isinstance(error, jax.errors.JaxRuntimeError)
    )


def _report(config, path, command, result):
    """Writes the report. What goes wrong in it is said and no more: the run is complete, and would be started
    again and again by what supervises it."""
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


def _keep_traceback(workdir):
    """Where an error of one line came from, for who looks for more; nowhere where it can't be written."""
    with contextlib.suppress(Exception):  # what it would be written to may be what has failed
        (workdir / f"failure_{jax.process_index()}.txt").write_text(traceback.format_exc())


def _keep_compiled(workdir):
    """Compiled programs stay in the workdir, so that a restart does not compile again; elsewhere
    where JAX_COMPILATION_CACHE_DIR says so."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))


def main(argv) -> None:
    del argv
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax and grain log every step of a save
        # Tracebacks that libraries log are of errors that they raise as well, and that end in one line.
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
