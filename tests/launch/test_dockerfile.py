"""The Docker image's definition; building it needs Docker and a network, so no test builds it."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
LINES = (ROOT / "launch" / "Dockerfile").read_text().splitlines()


def test_the_targets_are_named():
    stages = [line.split() for line in LINES if line.startswith("FROM")]
    assert stages[0][1].startswith("python:3.12-")
    assert [(words[1], words[3]) for words in stages[1:]] == [
        ("base", name) for name in ("cpu", "tpu", "cuda")
    ]


def test_copied_files_exist_and_are_not_ignored():
    sources = [word for line in LINES if line.startswith("COPY") for word in line.split()[1:-1]]
    assert {"big_ssl", "configs", "setup.py"} <= set(sources)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in allowed, source


def test_the_image_contains_all_files_that_setup_reads():
    copied = " ".join(line for line in LINES if line.startswith("COPY"))
    named = re.search(r"license_files=\[(.*)\]", (ROOT / "setup.py").read_text())[1]
    assert all(file.strip(' "') in copied for file in named.split(","))


def test_every_installation_uses_the_lock_file():
    installs = [line for line in LINES if line.startswith("RUN pip install")]
    assert len(installs) == 4
    assert all("requirements/py3.12.txt" in line or "--no-deps" in line for line in installs)
    assert (ROOT / "requirements/py3.12.txt").exists()


def test_the_extras_exist():
    extras = re.findall(r"\.\[(\w+)\]", "\n".join(LINES))
    assert extras == ["tpu", "cuda"]
    assert all(f'"{extra}": [' in (ROOT / "setup.py").read_text() for extra in extras)
