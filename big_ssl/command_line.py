"""What every command that takes a config does with its command line."""

import sys

from absl import flags
from ml_collections import config_flags

# Here, once: two commands in one process, as in the tests, cannot both define it.
OUTPUT = flags.DEFINE_string("output", None, "The file or the folder to write.")
CONFIG = config_flags.DEFINE_config_file("config", None, "FILE[:PRESET], a recipe.", lock_config=True)


def parse_flags(argv):
    """The command line and the config it names, with a mistake in either told in one line.

    Exits with 2 where there is a mistake.
    """
    try:
        arguments = flags.FLAGS(argv)
        getattr(CONFIG.value, "name", None)  # a file that didn't load says so when it is read
        return arguments
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        print(str(error).strip().splitlines()[-1].strip(), file=sys.stderr)
        sys.exit(2)
