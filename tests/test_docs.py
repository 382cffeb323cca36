"""The documentation: its commands parse and resolve; its links, paths and flags exist.

tests/test_docs_run.py runs the commands.
"""

import ast
import importlib
import pathlib
import re
import subprocess

import pytest
from absl import flags

from tests import commands, documentation
from tests.documentation import PAGES, ROOT, blocks

# Modules of the commands that define flags; launch/ and make have their own.
COMMANDS = ("main", "evaluate", "predict", "convert", "plan", "inspect", "curate", "train_tokenizer")
# What stands for something else in a page: (pattern of a command, replacement).
STANDS_FOR = (
    (r"(?<=big_ssl\.curate) \.\.\.(?= )", " --source.kind=parquet --texts=title --output=DIR"),
    (r"\$BUCKET", "bucket"),
)
PLACEHOLDER = re.compile(r"\.\.\.|…|\[")
# Paths that are none of the checkout: of an example, of a run's workdir, of a dataset.
ELSEWHERE = {"losses/invariance.py", "report/index.html"}
SUFFIXES = ("py", "sh", "md", "toml", "txt", "png", "html", "yaml", "yml", "tsv", "ipynb", "sbatch")
TOP_FOLDERS = ("big_ssl", "configs", "docs", "launch", "tests", "benchmarks", "notebooks", "requirements")

every_page = pytest.mark.parametrize("page", PAGES)


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def folder_like_a_checkout(folder):
    """Links to what commands read by a relative path."""
    for name in ("configs", "tests", "launch", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def problem(command: str, folder: pathlib.Path) -> str:
    """What is wrong with a command, without running it; "" if nothing is."""
    for pattern, replacement in STANDS_FOR:
        command = re.sub(pattern, replacement, command)
    words = documentation.command_words(command)
    if words[:2] == ["python", "-m"]:
        return _parsing_problem(words[2:], folder)
    if words[0] == "make":
        return _make_problem(words[1:])
    if words[0] == "pip":
        return _pip_problem(words[1:])
    return _launch_problem(words, folder)


def _parsing_problem(words, folder):
    if PLACEHOLDER.search(" ".join(words)):
        return "a placeholder; mark the block"
    module = ROOT / f"{words[0].replace('.', '/')}.py"
    if not module.exists():
        return f"no module {words[0]}"
    if "app.run(" not in module.read_text():  # it has no flags, and would run
        return f"{words[0]} has no flags" if words[1:] else ""
    result = commands.execute([str(ROOT / "tests" / "parse_only.py"), *words], folder=folder)
    return result.stderr.strip().splitlines()[-1] if result.returncode else ""


def _make_problem(words):
    targets = re.search(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    missing = [word for word in words if "=" not in word and word not in targets]
    return f"make has no target {missing[0]}" if missing else ""


def _pip_problem(words):
    """An extra that setup.py does not define, a package that it does not name."""
    setup = (ROOT / "setup.py").read_text()
    for word in words:
        extra = re.search(r"\[(.*)\]", word)
        if extra and f'"{extra[1]}": ' not in setup:
            return f"setup.py has no extra {extra[1]}"
        if not extra and not word.startswith("-") and word != "install" and f'"{word}' not in setup:
            return f"setup.py does not name {word}"
    return ""


def _launch_problem(words, folder):
    """A file that is not there, a target that the Dockerfile lacks, flags that big_ssl.main does not have."""
    for word in words:
        if word.startswith(("launch/", ".ci/")) and not (ROOT / word).exists():
            return f"no file {word}"
    for target in re.findall(r"--target (\S+)", " ".join(words)):
        if not re.search(rf"^FROM .* AS {target}$", (ROOT / "launch/Dockerfile").read_text(), re.MULTILINE):
            return f"launch/Dockerfile has no target {target}"
    if words[0] == "launch/rehearse.sh":
        config = words[1] + (",rehearsal" if ":" in words[1] else ":rehearsal")
        options = (word.replace("--init_from=", "--config.init_from.path=") for word in words[2:])
        return _parsing_problem(["big_ssl.main", f"--config={config}", *options], folder)
    start = next((i for i, word in enumerate(words) if word.startswith("--config=")), None)
    return "" if start is None else _parsing_problem(["big_ssl.main", *words[start:]], folder)


@every_page
def test_a_block_is_run_or_marked(page):
    """A block is commands or Python; what is neither, and what tests cannot run, has a mark with a reason."""
    for block in blocks(page, text_of(page)):
        assert block.reason is None or len(block.reason.split()) > 1, (
            f"{block.place}: a mark without a reason"
        )
        assert block.kind or block.reason, f"{block.place}: no commands, no Python, and no mark"
        if block.kind == "shell" and not block.reason:
            programs = [documentation.command_words(line)[0] for line in block.commands]
            others = [program for program in programs if program not in documentation.RUNNABLE]
            assert not others, f"{block.place}: tests can't run {others[0]}; mark the block"


@every_page
def test_commands_parse_and_their_configs_resolve(page, tmp_path):
    """Also those of marked blocks, unless they hold a placeholder, and those within sentences."""
    folder = folder_like_a_checkout(tmp_path)
    lines = [
        (block.place, line)
        for block in blocks(page, text_of(page))
        if block.kind == "shell"
        for line in block.commands
        if not (block.reason and PLACEHOLDER.search(line))
    ]
    starts = ("python -m ", "pip install ", "make ")
    inline = [span for span in documentation.spans(text_of(page)) if span.startswith(starts)]
    lines += [(page, span) for span in inline if not PLACEHOLDER.search(span)]
    problems = [f"{place}: {line}: {text}" for place, line in lines if (text := problem(line, folder))]
    assert not problems, "\n".join(problems)


@every_page
def test_links_and_anchors_exist(page):
    for target in documentation.links(text_of(page)):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: no {path}"
        if anchor:
            assert anchor in documentation.anchors(file.read_text(encoding="utf-8")), f"{page}: no {target}"


@pytest.fixture(scope="module")
def repository():
    """The names of all files and folders of the checkout's parts."""
    found = [path for part in TOP_FOLDERS for path in (ROOT / part).rglob("*")]
    return {str(path.relative_to(ROOT)) for path in found} | {path.name for path in ROOT.iterdir()}


@every_page
def test_paths_in_sentences_exist(page, repository):
    """`docs/evaluate.md`, `configs/clip.py:vitl14,demo`, and `losses/gram.py` of the package."""
    for span in documentation.spans(text_of(page)):
        path, _, argument = span.partition(":")
        suffix = path.rpartition(".")[2]
        is_path = re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?", path) and (
            path.startswith(TOP_FOLDERS) or suffix in SUFFIXES
        )
        if not is_path or path in ELSEWHERE or path.startswith("runs/"):
            continue
        known = any(name == path.rstrip("/") or name.endswith("/" + path.rstrip("/")) for name in repository)
        assert known, f"{page}: no {path}"
        if path.startswith("configs/") and argument:
            module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
            assert module.get_config(argument), f"{page}: {span}"


@every_page
def test_files_in_blocks_exist(page, repository):
    """The files that architecture.md lists."""
    for block in blocks(page, text_of(page)):
        if not block.kind:
            for name in re.findall(r"[\w/]+\.(?:py|md)\b", block.text):
                known = any(f"/{path}".endswith(f"/{name}") for path in repository)
                assert known, f"{block.place}: no {name}"


@pytest.fixture(scope="module")
def config_keys():
    """All dotted paths of all recipes, and of their subtrees."""
    lines = [path.read_text().splitlines() for path in (ROOT / "tests/configs/golden").glob("*.txt")]
    keys = {line.partition(" = ")[0] for file in lines for line in file}
    return {".".join(key.split(".")[:n]) for key in keys for n in range(1, key.count(".") + 2)}


@every_page
def test_flags_in_sentences_exist(page, config_keys):
    for command in COMMANDS:
        importlib.import_module(f"big_ssl.{command}")
    scripts = [
        *(ROOT / "launch").iterdir(),
        ROOT / "Makefile",
        ROOT / "pyproject.toml",
        *ROOT.glob("requirements/*.sh"),
    ]
    others = "".join(path.read_text() for path in scripts if path.is_file())
    for span in documentation.spans(text_of(page)):
        match = re.match(r"--([a-z][\w.]*)", span)
        if not match:
            continue
        name, _, key = match[1].rstrip(".").partition(".")
        if name == "config" and key:
            assert key in config_keys, f"{page}: no recipe has {key} of {span}"
        elif name != "eval":  # an evaluator's options are its own; their table is beside them
            assert name in flags.FLAGS or f"--{name}" in others, f"{page}: no flag --{name}"
            if key:
                assert key.split(".")[0] in flags.FLAGS[name].value, f"{page}: no key {key} of --{name}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("    L = a [, b] + c\n", "no commands, no Python, and no mark"),
        ("<!-- not run by tests: -->\n\n    make demo\n", "a mark without a reason"),
        ("    pip install a\n", "tests can't run pip; mark the block"),
    ],
)
def test_a_block_that_is_neither_run_nor_marked_is_an_error(text, message, monkeypatch):
    monkeypatch.setattr(f"{__name__}.text_of", lambda page: text)
    with pytest.raises(AssertionError, match=f"x.md:[13]: {message}"):
        test_a_block_is_run_or_marked("x.md")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("python -m big_ssl.main --config=configs/clip.py:dmo --workdir=a", "no model or preset 'dmo'"),
        ("python -m big_ssl.main --config=configs/clop.py --workdir=a", "configs/clop.py"),
        ("python -m big_ssl.main --config=configs/clip.py:tiny --workdir=a --config.sed=1", "sed"),
        ("python -m big_ssl.main --config=configs/clip.py:tiny --workdirs=a", "workdirs"),
        ("python -m big_ssl.main --config=configs/clip.py:tiny", "workdir"),
        ("python -m big_ssl.main --config=configs/clip.py:tiny --workdir=a --config.dtype=float8", "float8"),
        (
            "python -m big_ssl.evaluate --checkpoint=a --eval=emoji --eval.style=b --output=c",
            "did you mean styles",
        ),
        ("python -m big_ssl.convert --from=hf_clop --input=a --output=b", "hf_clop"),
        ("python -m big_ssl.plan --config=configs/clip.py --topology=v5e:2x2 stray", "stray is no flag"),
        ("python -m benchmarks.multicrop --picture=1", "picture"),
        ("python -m big_ssl.maine --config=configs/clip.py", "no module big_ssl.maine"),
        ("python -m benchmarks.mbconv_cpu --batch=1", "benchmarks.mbconv_cpu has no flags"),
        ("make dmeo", "make has no target dmeo"),
        ("pip install -e '.[gsc]'", "setup.py has no extra gsc"),
        ("launch/locals.sh 2", "no file launch/locals.sh"),
        ("launch/local.sh 2 --config=configs/clip.py:dmo --workdir=a", "'dmo'"),
        ("launch/rehearse.sh configs/clip.py:vitl15 --workdir=a", "vitl15"),
        ("docker build --target cpus --file launch/Dockerfile .", "no target cpus"),
    ],
)
def test_a_mistake_in_a_command_is_found(command, message, tmp_path):
    assert message in problem(command, folder_like_a_checkout(tmp_path))


def test_blocks_and_their_marks():
    text = (
        "# Title\n\n    make demo  \\\n        test\n\n    make lint\n\n- a list\n    of two lines\n\n"
        "<!-- not run by tests: needs a TPU -->\n\n    x = [1,\n         2]\n\n```\npip install a\n```\n"
    )
    first, second, third = blocks("a.md", text)
    assert first.commands == ["make demo  test", "make lint"]
    assert [block.kind for block in (first, second, third)] == ["shell", "python", "shell"]
    assert [block.reason for block in (first, second, third)] == [None, "needs a TPU", None]
    assert [block.line for block in (first, second, third)] == [3, 13, 16]
    assert ast.literal_eval(second.text.partition("= ")[2]) == [1, 2]
    assert documentation.anchors("## `knn` and: more\n") == {"knn-and-more"}
    assert documentation.spans("a `b\nc`\n\n    `d`\n") == ["b c"]
    assert documentation.links("[a](b.md#c) ![d](e.png) [f](https://g)") == ["b.md#c", "e.png"]


def test_every_page_is_tracked_and_linked_from_the_readme():
    listed = subprocess.run(["git", "ls-files", "docs/*.md"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert set(listed.stdout.split()) <= set(documentation.links(text_of("README.md")))
