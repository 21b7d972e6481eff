"""The code of the README and of the pages in docs runs: a page's blocks, in order, in a fresh folder with what a checkout has.

Python blocks that follow one another are one program, as a reader takes them. A page with a diff changes the sources: it gets
a copy of them, which its later blocks import.

`make` commands are not run from within the tests, which `make test` itself may have started: make only resolves them
(`make -n`), so that a target that does not exist fails.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.slow

LANGUAGES = {"bash", "diff", "python"}
ROOMS = [link.name for link in (Path(__file__).parents[2] / "multifacet").iterdir() if link.is_symlink()]


class Block(NamedTuple):
    """A fenced block of code.

    Attributes:
        line: Number of its opening fence.
        language: What stands behind the fence.
        code: What stands within.
    """

    line: int
    language: str
    code: str


def read_blocks(text: str) -> list[Block]:
    fences = re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(text.count("\n", 0, fence.start()) + 1, fence[1], fence[2]) for fence in fences]


def join_python(blocks: list[Block]) -> list[Block]:
    joined: list[Block] = []
    for block in blocks:
        if joined and joined[-1].language == block.language == "python":
            joined[-1] = joined[-1]._replace(code=f"{joined[-1].code}\n{block.code}")
        else:
            joined.append(block)
    return joined


def command_of(block: Block, repository: Path) -> list[str]:
    if block.language == "python":
        return [sys.executable, "-c", block.code]
    if block.language == "diff":
        return ["git", "apply", "-p0", "-"]
    make = f'make() {{ echo "make $* (resolved, not run)"; command make -n -C "{repository}" "$@" >/dev/null; }}'
    return ["bash", "-euo", "pipefail", "-c", f"{make}\n{block.code}"]


@pytest.fixture
def checkout(tmp_path: Path, repository: Path) -> Path:
    """A folder to run in that holds links to what a reader in a checkout has: .venv and the data."""
    for name in ("data", "examples"):
        (tmp_path / name).symlink_to(repository / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("python", "multifacet"):
        (tmp_path / ".venv" / "bin" / name).symlink_to(Path(sys.executable).parent / name)
    return tmp_path


def copy_sources(repository: Path, folder: Path) -> None:
    """Copy the package and its rooms, with numba's caches, into a folder."""
    for name in ("multifacet", *ROOMS):
        (folder / name).unlink(missing_ok=True)
        shutil.copytree(repository / name, folder / name, symlinks=True)


# Without results, which tell what was. tests/ranking/test_docs.py runs docs/ranking.md, and compares what it prints with
# what the page says.
DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["README.md", *sorted(f"docs/{page.relative_to(DOCS)}" for page in DOCS.rglob("*.md") if "results" not in page.parts)]
RUN = [page for page in PAGES if page != "docs/ranking.md"]


@pytest.mark.timeout(600)  # many processes, which a busy machine makes slow
@pytest.mark.parametrize("page", RUN)
def test_every_block_of_a_page_runs(repository: Path, checkout: Path, page: str):
    blocks = read_blocks((repository / page).read_text())
    assert {block.language for block in blocks} <= LANGUAGES | {""}  # without a language: drawings, nothing to run
    sources = repository
    if any(block.language == "diff" for block in blocks):
        copy_sources(repository, checkout)
        sources = checkout
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "PYTHONPATH": str(sources), "GIT_CEILING_DIRECTORIES": str(checkout.parent)}
    for block in join_python([block for block in blocks if block.language]):
        given = block.code if block.language == "diff" else None
        command = command_of(block, repository)
        ran = subprocess.run(command, cwd=checkout, env=environ, input=given, capture_output=True, text=True, check=False)
        output = f"{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"
        assert ran.returncode == 0, f"{page}:{block.line}, {block.language} block:\n{block.code}\n{output}"


def test_the_pages_with_code_are_among_those_that_run():
    assert {"README.md", "docs/graphdb.md", "docs/tutorial.md", "docs/how-to/add-a-model.md"} <= set(RUN)


def test_the_readme_begins_with_the_two_commands_that_a_newcomer_needs(repository: Path):
    first = read_blocks((repository / "README.md").read_text())[0]
    commands = [line.split("#")[0].strip() for line in first.code.splitlines()]
    assert commands == ["make demo", "make test"]


def test_a_make_target_that_does_not_exist_fails_the_block(repository: Path, checkout: Path):
    command = command_of(Block(1, "bash", "make no-such-target\n"), repository)
    ran = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode != 0
    assert "no-such-target" in ran.stderr


@pytest.mark.parametrize("document", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "requirements/README.md"])
def test_links_to_files_lead_somewhere(repository: Path, document: str):
    path = repository / document
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)\)", prose):
        if not target.startswith("https://"):
            assert (path.parent / target).exists(), f"{document}: {target} does not exist"
