"""What every command that takes a config does with its command line."""

import sys

from absl import flags


def parse_flags(config: flags.FlagHolder, argv):
    """The command line and the config it names, with a mistake in either told in one line.

    config: what config_flags.DEFINE_config_file gave. Exits with 2 where there is a mistake.
    """
    try:
        arguments = flags.FLAGS(argv)
        getattr(config.value, "name", None)  # a file that didn't load says so when it is read
        return arguments
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        print(str(error).strip().splitlines()[-1].strip(), file=sys.stderr)
        sys.exit(2)
