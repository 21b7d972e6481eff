"""What `make docs` does beside writing the pages that lie in docs.

It writes the reference, makes the README the site's first page, and gives a page to each file of the repository that a page
links to, so that every link leads somewhere on the site as it does in the repository. It refuses public names that nobody
has documented.
"""

import posixpath
import re
import shutil
from pathlib import Path
from typing import Any

import reference  # its neighbour: mkdocs imports hooks with their folder on the path
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?\)")
WHOLE_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]+)\)")
FENCE = re.compile(r"^```.*?^```$|^    .*?$", flags=re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".sh": "bash", ".txt": "text", "": "text"}


def on_config(config: Any) -> Any:
    """List every decision and every result, and copy the rooms for the reference, which follows no links."""
    for section in config.nav:
        if "Explanation" in section:
            section["Explanation"][-1] = {"Decisions": ["adr/index.md", *_listed("adr", "*.md")]}
        if "Results" in section:
            reports = _listed("results", "2*.md")[::-1]
            section["Results"] = ["results/index.md", {"Notes": _listed("results", "notes-*.md")}, {"Reports": reports}]
    tree = ROOT / "build" / "reference" / "multifacet"
    shutil.rmtree(tree, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.parquet", "*.so")
    shutil.copytree(ROOT / "multifacet", tree, ignore=ignored)
    for module in tree.rglob("*.py"):  # "Examples" is the section that mkdocstrings shows as code
        text = module.read_text()
        module.write_text(re.sub(r"^( +)Example:$", r"\1Examples:", text, flags=re.MULTILINE))
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add what is written by the build; refuse what is undocumented."""
    unsaid = [name for room in reference.ROOMS for name in reference.undocumented(room)]
    if unsaid:
        raise PluginError("public names without documentation:\n  " + "\n  ".join(unsaid))
    for uri, text in reference.pages().items():
        files.append(File.generated(config, uri, content=text))
    files.append(File.generated(config, "index.md", content=_moved((ROOT / "README.md").read_text(), "", "index.md")))
    waiting = [target for page in files.documentation_pages() for target in _outside(page.content_string, page.src_uri)]
    done = set()
    while waiting:
        path = waiting.pop()
        if path in done:
            continue
        done.add(path)
        text = (ROOT / path).read_text()
        uri = _source_page(path)
        if path.endswith(".md"):
            text = _moved(text, posixpath.dirname(path), uri)
            waiting += _outside(text, uri)
        else:
            text = f"# {path}\n\n````{LANGUAGES.get(Path(path).suffix, 'text')}\n{text}````\n"
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to files of the repository to their pages, and links to folders to their index."""

    def lead(match: re.Match[str]) -> str:
        path = _path_of(match[2], page.file.src_uri)
        if path is None:
            return match[0]
        target = posixpath.relpath(_source_page(path), posixpath.dirname(page.file.src_uri) or ".")
        return f"{match[1]}{target}{match[3] or ''})"

    def unfold(match: re.Match[str]) -> str:
        folder = DOCS / posixpath.dirname(page.file.src_uri) / match[2]
        if not folder.is_dir():
            return match[0]
        return f"[{match[1]}]({match[2].rstrip('/')}/index.md)" if (folder / "index.md").exists() else match[1]

    return LINK.sub(lead, WHOLE_LINK.sub(unfold, markdown))


def _listed(folder: str, pattern: str) -> list[Any]:
    pages = sorted(page for page in (DOCS / folder).glob(pattern) if page.name != "index.md")
    names = {page: page.read_text().splitlines()[0].removeprefix("# ").removeprefix("Notes: ") for page in pages}
    return [{name[0].upper() + name[1:]: f"{folder}/{page.name}"} for page, name in names.items()]


def _path_of(target: str, uri: str) -> str | None:
    """Give the path, from the repository's root, of a link's target outside docs; None for a page, a picture or an address."""
    if re.match(r"[a-z]+:", target):
        return None
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(uri), target))
    return None if path.startswith("docs/") else path


def _outside(text: str, uri: str) -> list[str]:
    found = (_path_of(match[2], uri) for match in LINK.finditer(FENCE.sub("", text)))
    return [path for path in found if path and (ROOT / path).is_file()]


def _source_page(path: str) -> str:
    return f"source/{path.removesuffix('.md')}.md" if path.endswith(".md") else f"source/{path}.md"


def _moved(text: str, folder: str, uri: str) -> str:
    """Rewrite the links of a file that lies in `folder` of the repository, for its page at `uri` of docs."""

    def lead(match: re.Match[str]) -> str:
        if re.match(r"[a-z]+:", match[2]):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, match[2]))
        target = posixpath.relpath(path, posixpath.join("docs", posixpath.dirname(uri)))
        return f"{match[1]}{target}{match[3] or ''})"

    return LINK.sub(lead, text)
