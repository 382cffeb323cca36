"""Like `python -m big_ssl.main`, but process 1 alone fails to use the workdir.

python tests/cluster/fail_alone.py WORKDIR --distributed=ADDRESS
"""

import sys

import jax
from absl import app

from big_ssl import main
from big_ssl.training import requirements


def _check_workdir(*_):
    if jax.process_index() == 1:
        raise requirements.RequirementsError("no room on this host")


if __name__ == "__main__":
    requirements.check_workdir = _check_workdir
    workdir, address = sys.argv[1:]
    argv = [sys.argv[0], "--config=tests/training/micro.py", f"--workdir={workdir}", address]
    app.run(main.main, argv=argv, flags_parser=main.parse_flags)
