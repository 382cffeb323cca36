"""The documentation as data: blocks of code with their marks, commands, links and inline code."""

import ast
import dataclasses
import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parents[1]
# In the order in which a reader meets them: later pages find what the README's commands wrote.
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]

# <!-- not run by tests: REASON -->, on a line above a block.
_MARK = re.compile(r"<!-- not run by tests: *(.*?) *-->")
_LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
_SPAN = re.compile(r"`([^`]+)`")
_VARIABLE = re.compile(r"([A-Z_]+)=(.*)", re.DOTALL)
# What tests/test_docs_run.py runs, and all that begins a line of a block of commands.
RUNNABLE = {"python", "make", "export", "launch/simulated.sh", "launch/local.sh"}
PROGRAMS = {"python", "make", "pip", "sbatch", "docker", "export", "eval", ".ci/run"}


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of code.

    page, line: where it begins. text: without indentation. reason: why tests do not run it; None if they do.
    """

    page: str
    line: int
    text: str
    reason: str | None

    @property
    def place(self) -> str:
        """Its page and line, for messages."""
        return f"{self.page}:{self.line}"

    @property
    def kind(self) -> str:
        """ "python", "shell", or "" for neither."""
        commands = [words for words in map(command_words, self.commands) if words]
        if commands and all(is_program(words[0]) for words in commands):
            return "shell"
        try:
            ast.parse(self.text)
        except SyntaxError:
            return ""
        return "python"

    @property
    def commands(self) -> list[str]:
        """Its lines, those that end with a backslash joined with the next, and comments' lines left out."""
        joined = re.sub(r"\\\n\s*", "", self.text)
        joined = re.sub(r"(?<=\s)\\\n\s*", "", joined)
        return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def command_words(command: str) -> list[str]:
    """A command's words without its comment and the variables before it; [] if quotes do not close."""
    try:
        words = shlex.split(command, comments=True)
    except ValueError:
        return []
    while words and _VARIABLE.fullmatch(words[0]):
        words = words[1:]
    return words


def is_program(word: str) -> bool:
    """Whether a block that begins with this word is one of commands."""
    return word in PROGRAMS or word.startswith("launch/")


def blocks(page: str, text: str) -> list[Block]:
    """The blocks of a page: fenced ones, and those indented by four columns after an empty line."""
    found, lines, reason, i = [], text.splitlines(), None, 0
    while i < len(lines):
        if mark := _MARK.fullmatch(lines[i].strip()):
            reason = mark[1]
        elif lines[i].startswith("```"):
            end = next(j for j in range(i + 1, len(lines)) if lines[j].startswith("```"))
            found.append(Block(page, i + 1, "\n".join(lines[i + 1 : end]), reason))
            reason, i = None, end
        elif lines[i].startswith("    ") and (i == 0 or not lines[i - 1].strip()):
            end = i
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            found.append(Block(page, i + 1, _dedented(lines[i:end]), reason))
            reason, i = None, end - 1
        elif lines[i].strip():
            reason = None
        i += 1
    return found


def _dedented(lines):
    indentation = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return "\n".join(line[indentation:] for line in lines).rstrip()


def prose(text: str) -> str:
    """A page without its blocks of code."""
    lines, page = text.splitlines(), blocks("", text)
    for block in page:
        for i in range(block.line - 1, block.line + block.text.count("\n") + 1):
            if i < len(lines) and (lines[i].startswith(("    ", "```")) or not lines[i].strip()):
                lines[i] = ""
    return "\n".join(lines)


def links(text: str) -> list[str]:
    """The targets of a page's links, those to other sites left out."""
    return [target for target in _LINK.findall(prose(text)) if "://" not in target]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ +(.*?) *$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def spans(text: str) -> list[str]:
    """The inline code of a page, each on one line."""
    return [" ".join(span.split()) for span in _SPAN.findall(prose(text))]
