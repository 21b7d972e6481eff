#!/bin/sh
# Builds the wheel of a release, tries it where nothing else is, and tags the commit: sh requirements/release.sh
#
# The version is pyproject.toml's, and CHANGELOG.md has a dated heading of it. Nothing is uploaded. Run `make test` before.
set -eu
cd "$(dirname "$0")/.."

say() { printf 'release: %s\n' "$*" >&2; }
fail() {
    say "$@"
    exit 1
}

version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml | head -n 1)
[ -n "$version" ] || fail "pyproject.toml has no version"
[ -z "$(git status --porcelain)" ] || fail "there are changes that are not committed: commit or stash them"
grep -q "^## $version - [0-9]\{4\}-[0-9]\{2\}-[0-9]\{2\}$" CHANGELOG.md ||
    fail "CHANGELOG.md has no heading '## $version - YYYY-MM-DD': date what is under Unreleased"
[ -z "$(git tag --list "v$version")" ] || fail "the tag v$version exists: raise the version in pyproject.toml"

rm -rf dist
.venv/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
wheel=$(ls dist/multifacet-"$version"-*.whl)
others=$(.venv/bin/python -m zipfile --list "$wheel" | awk 'NR > 1 { split($1, part, "/"); print part[1] }' | sort -u |
    grep -v -e '^multifacet$' -e "^multifacet-$version.dist-info\$" || true)
[ -z "$others" ] || fail "$wheel holds more than the package: $others"

clean=$(mktemp -d)
trap 'rm -rf "$clean"' EXIT
say "trying $wheel in a clean venv"
.venv/bin/python -m venv "$clean/venv"
"$clean/venv/bin/python" -m pip install --quiet --disable-pip-version-check ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} \
    "$(sed -n 's/^ *"\(torch==[^"]*\)",/\1/p' pyproject.toml)"
"$clean/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/cpu.txt "$wheel"
(
    cd "$clean"
    [ "$(venv/bin/multifacet --version)" = "multifacet $version" ] || fail "the wheel's command says $(venv/bin/multifacet --version)"
    venv/bin/multifacet doctor
    sample=$(venv/bin/python -c 'import multifacet, pathlib; print(pathlib.Path(multifacet.__file__).parent / "data" / "sample")')
    venv/bin/multifacet graph init shop.duckdb --recipe completejourney --source "$sample"
    venv/bin/multifacet pretrain contrastive shop.duckdb snapshot --set epochs=1 --set dim=16
    venv/bin/multifacet snapshot verify snapshot
)

git tag --annotate "v$version" --message "multifacet $version"
say "$wheel is tried, and this commit is v$version. Publish both: git push origin v$version, and the wheel where you keep yours"
