"""The documentation says what is there: names, files, decisions, the notebook. `make docs` builds the site from them."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jupytext
import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "results" not in page.parts)
FOLDERS = "|".join(
    ["tests", "benchmarks", "examples", *(link.name for link in (ROOT / "multifacet").iterdir() if link.is_symlink())]
)
PHRASES = (
    "is true too often must not be kept",
    "think about the server what the error",
    "of which that is so",
    "numbers are any",
    "no more than the machine does",
)


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The part of the site's build that writes the reference."""
    spec = importlib.util.spec_from_file_location("site_reference", DOCS / "generate" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_is_documented(reference: ModuleType):
    assert [name for room in reference.ROOMS for name in reference.undocumented(room)] == []


def test_an_undocumented_name_is_found(reference: ModuleType, monkeypatch: pytest.MonkeyPatch):
    kge = importlib.import_module("multifacet.kge")
    monkeypatch.setattr(kge.LinkPredictor.top_tails, "__doc__", None)
    monkeypatch.setattr(kge.train, "__doc__", None)
    assert list(reference.undocumented("kge")) == ["multifacet.kge.LinkPredictor.top_tails", "multifacet.kge.train"]


def test_the_reference_has_every_command_and_every_field(reference: ModuleType):
    pages = reference.pages()
    for command in ("graph load", "pretrain kge", "rollout advance", "serve ranker", "train"):
        assert f"## multifacet {command}\n" in pages["reference/commands.md"]
    for name, config in reference.configurations().items():
        section = pages["reference/configuration.md"].split(f"## {name} ")[1].split("\n## ")[0]
        assert all(f"<code>{field}</code>" in section for field in config.model_fields), name
    assert "::: multifacet.graphdb.store.GraphStore\n" in pages["reference/graphdb.md"]
    assert "::: multifacet.kge.training.train\n" in pages["reference/kge.md"]


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    missing = [page for page in PAGES if page.parent.name != "adr" and f"{page.relative_to(DOCS).as_posix()}" not in text]
    assert missing == []
    assert yaml.safe_load(text)["strict"] is True


def test_the_indexes_list_every_decision_and_every_result():
    for folder in ("adr", "results"):
        listed = set(re.findall(r"\]\(([^)]+)\)", (DOCS / folder / "index.md").read_text()))
        assert {page.name for page in (DOCS / folder).glob("*.md")} - {"index.md"} <= listed


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path):
    named = set(re.findall(rf"`((?:{FOLDERS})/[\w./-]+\.(?:py|toml|proto|md))`", page.read_text()))
    new = set(re.findall(r"^\+\+\+ (\S+)", page.read_text(), flags=re.MULTILINE))
    assert [name for name in sorted(named - new) if not (ROOT / name).exists()] == []


def find(path: str) -> object:
    """Find what `room.name` or `room.module.name` means below multifacet; AttributeError where it means nothing."""
    first, *names = path.split(".")
    module, found = f"multifacet.{first}", importlib.import_module(f"multifacet.{first}")
    for name in names:
        module = f"{module}.{name}"
        if not hasattr(found, name) and isinstance(found, ModuleType) and importlib.util.find_spec(module):
            importlib.import_module(module)
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_names_that_a_page_uses_exist(page: Path):
    text = page.read_text()
    rooms = "kge|contrastive|ranking|serving|training|tables|artifacts|inputs"
    for path in set(re.findall(rf"`((?:{rooms})(?:\.[A-Za-z_]+)+)[(`]", text)):
        find(path)
    diffs = "".join(re.findall(r"^```diff\n.*?^```$", text, flags=re.MULTILINE | re.DOTALL))
    for module, names in re.findall(
        r"^ *from multifacet\.([\w.]+) import ([\w, ]+)$", text.replace(diffs, ""), flags=re.MULTILINE
    ):
        for name in names.split(", "):
            find(f"{module}.{name}")


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_into_a_page_find_their_heading(page: Path):
    for target, heading in re.findall(r"\]\(([^)#\s]*\.md)?#([^)]+)\)", page.read_text()):
        text = (page.parent / target if target else page).read_text()
        titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
        assert heading in anchors, f"{page.name}: {target}#{heading}"


def test_the_tutorial_is_a_notebook_of_the_same_blocks():
    notebook = jupytext.read(DOCS / "tutorial.md")
    nbformat.validate(notebook)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    text = (DOCS / "tutorial.md").read_text()
    blocks = re.findall(r"^```(?:python|bash)\n(.*?)\n```$", text, flags=re.MULTILINE | re.DOTALL)
    assert [cell.removeprefix("%%bash\n") for cell in cells] == blocks
    assert sum(cell.startswith("%%bash") for cell in cells) == text.count("```bash")


def test_phrases_that_readers_stumbled_over_are_gone():
    files = [*PAGES, ROOT / "README.md"]
    for room in (ROOT / "multifacet").iterdir():
        files += room.rglob("*.py") if room.is_dir() else []
    # A phrase may be broken over two lines.
    texts = {file: re.sub(r"\s+", " ", file.read_text()) for file in files}
    assert [(file.name, phrase) for file, text in texts.items() for phrase in PHRASES if phrase in text] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("script", "says"),
    [("own_torchrec_model.py", "20 bytes a row"), ("serve_and_rank.py", "50 served scores equal the offline ones")],
)
def test_examples_run(tmp_path: Path, script: str, says: str):
    command = [sys.executable, "-W", "ignore", str(ROOT / "examples" / script), str(tmp_path / "out")]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert says in ran.stdout
