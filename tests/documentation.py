"""README.md and the pages in docs/: their blocks, links, headings and sentences."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
LANGUAGES = ("bash", "python", "text", "json", "yaml")  # only the first two are run
SECOND = (["inspect"], ["verify"])  # commands that are the second word after the script of another
_FENCE = re.compile(r'^( *)```(\w*)(?: title="([^"]*)")?\n(.*?)^\1```$', re.M | re.S)
_SHELL = re.compile(r"[|;<>&`]|\$\(")
_ASSIGNED = re.compile(r"[A-Z_]+=.*")


def pages() -> list[Path]:
    """Return README.md and all pages of the site; those that begin with _ are drafts."""
    return [README, *(path for path in sorted((ROOT / "docs").rglob("*.md")) if not path.name.startswith("_"))]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    title: str
    text: str

    @property
    def only_composes(self) -> bool:
        """Whether its title says that it needs what a test machine lacks, such as a GPU."""
        return self.title.startswith("needs ")

    @property
    def included(self) -> str:
        """The path of the file that the block shows; empty if it has text of its own."""
        found = re.fullmatch(r'\s*--8<-- "([^"]+)"\s*', self.text)
        return found[1] if found else ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A line of a bash block, as words."""

    block: Block
    line: str
    environment: dict[str, str]
    words: list[str]

    @property
    def is_ours(self) -> bool:
        return self.name != ""

    @property
    def name(self) -> str:
        """The command of pretrain, such as train; empty if another program is called."""
        program, *rest = self.words
        script = next((word for word in rest if re.fullmatch(r"src/\w+\.py", word)), "")
        if program == "sbatch":
            return "train"
        if program == "pretrain":
            return rest[0]
        return rest[1] if rest[1:2] in SECOND else Path(script).stem

    @property
    def overrides(self) -> list[str]:
        """What follows the name of the command."""
        first = 1 + next((i for i, word in enumerate(self.words) if word.endswith((".py", ".sh"))), 1)
        return self.words[first + (self.words[first : first + 1] in SECOND) :]


def blocks(page: Path, text: str | None = None) -> list[Block]:
    """Return the fenced blocks of a page, or of `text` in its place."""
    text = page.read_text(encoding="utf8") if text is None else text
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, match[2], match[3] or "", match[4])
        for match in _FENCE.finditer(text)
    ]


def commands(block: Block) -> Iterator[Command]:
    """Yield the commands of a bash block. Raises ValueError for what only a shell understands."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        count = next((i for i, word in enumerate(words) if not _ASSIGNED.fullmatch(word)), len(words))
        environment = dict(word.split("=", 1) for word in words[:count])
        if _SHELL.search(line.partition(" #")[0].replace("<time>", "")) and not re.search(r"'[^']*[<>|;&]", line):
            raise ValueError(f"{block}: {line} needs a shell. Write one command a line.")
        yield Command(block, line.strip(), environment, words[count:])


def prose(text: str) -> str:
    """Return a page without fenced blocks."""
    return _FENCE.sub("", text)


def code_spans(text: str) -> list[str]:
    """Return the inline code of a page."""
    return [match[2] for match in re.finditer(r"(`+)(.+?)\1", prose(text))]


def links(text: str) -> list[str]:
    """Return the targets of a page's links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "``", prose(text)))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as Python-Markdown and GitHub name them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text(encoding="utf8")), re.M):
        own = re.search(r"\{ *#([\w-]+) *\}", heading)
        text = re.sub(r"&lt;", "<", re.sub(r"[`*]|\]\(.*?\)|\[", "", heading))
        found.add(own[1] if own else re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower()))
    return found


def broken_links(page: Path, text: str | None = None) -> list[str]:
    """Return the links to files and headings that do not exist; other hosts are not asked."""
    wrong = []
    for target in links(page.read_text(encoding="utf8") if text is None else text):
        path, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            wrong.append(target)
    return wrong


def sentences(text: str) -> list[list[str]]:
    """Return the words of each sentence of a page: its paragraphs and list items, without tables, code and headings."""
    plain = re.sub(r"^(\||#|<!--|!\[).*$", "\n", prose(text), flags=re.M)
    plain = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "code", plain))
    parts = re.split(r"(?<=[.!?:])[\s*_]+(?=[A-Z\[`*\d])|\n\s*\n|\n *(?:-|\d+\.) ", plain)
    return [words for part in parts if len(words := re.findall(r"[\w'-]+", part)) > 1]
