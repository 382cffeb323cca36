"""Writes the figures of a run of all parity tests into a page: `make parity-table`."""

import pathlib

import pytest

from tests.parity import figures


def pytest_addoption(parser):
    """--parity-table=FILE, for `pytest -m parity tests/parity`."""
    parser.addoption("--parity-table", help="A Markdown file whose table of parity figures is written.")


def pytest_sessionfinish(session, exitstatus):
    """Writes the table if all tests passed: a figure of a failed comparison is none."""
    # None where this folder was not named on the command line, and so not asked for options.
    page = session.config.getoption("--parity-table", None)
    if page and exitstatus == pytest.ExitCode.OK:
        figures.write(pathlib.Path(page))
