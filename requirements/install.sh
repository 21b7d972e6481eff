#!/bin/sh
# Makes .venv ready: sh requirements/install.sh [--dev]
#
# Called by the Makefile before everything else; returns at once when .venv already answers to the lists. A stamp in
# .venv holds the hash of what it was installed from; while an installation runs, .venv/.incomplete marks it, so that
# the next call throws an interrupted one away and starts afresh. Environment:
#   PYTHON           the interpreter to build .venv from (otherwise the first of 3.11 to 3.13 found)
#   TORCH_INDEX_URL  one more package index to take torch from (the CPU build's, for instance)
set -eu
cd "$(dirname "$0")/.."

lists=run
[ "${1:-}" = "--dev" ] && lists=dev
venv_python=.venv/bin/python
python=

say() { printf 'multifacet: %s\n' "$*" >&2; }
fail() {
    say "$@"
    exit 1
}

# One installation at a time: `make demo` and `make test` may be started together.
if command -v flock >/dev/null 2>&1; then
    exec 9<requirements/install.sh
    flock 9
fi

version_of() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }
is_supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; }
can_make_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

find_python() {
    found=""
    for candidate in ${PYTHON:-python3.11 python3 python python3.12 python3.13}; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        if ! is_supported "$candidate"; then
            found="$found $candidate is $(version_of "$candidate" || echo 'not a working Python');"
        elif ! can_make_venv "$candidate"; then
            found="$found $candidate has no venv module (Debian, Ubuntu: apt-get install python3-venv);"
        else
            command -v "$candidate"
            return 0
        fi
    done
    say "needs Python 3.11, 3.12 or 3.13, with its venv module.${found:+ Found:$found}"
    fail "Install it, or name one: make $([ $lists = dev ] && echo test || echo demo) PYTHON=/path/to/python3"
}

# What .venv was built from, and what was installed into it.
origin_of() { printf '%s %s' "$(version_of "$1")" "$PWD"; }
hash_of() {
    [ "$1" = dev ] && extra=requirements/dev.txt || extra=
    # shellcheck disable=SC2086
    cat requirements/install.sh requirements/cpu.txt $extra pyproject.toml | sha256sum | cut -d' ' -f1
}
discard_venv() {
    say "$1: building .venv afresh"
    python=$(find_python) # first, as nothing is gained by taking away what cannot be replaced
    rm -rf .venv.discarded
    mv .venv .venv.discarded # renamed first, so that a half-deleted .venv is never taken for a whole one
    rm -rf .venv.discarded
}

if [ -e .venv ]; then
    rm -rf .venv.discarded
    if [ -e .venv/.incomplete ]; then
        discard_venv "the last installation did not finish"
    elif ! is_supported $venv_python; then
        discard_venv ".venv has no working Python of 3.11 to 3.13"
    elif [ -n "${PYTHON:-}" ] && [ "$(version_of "$PYTHON")" != "$(version_of $venv_python)" ]; then
        discard_venv ".venv is of another Python than $PYTHON"
    elif [ -e .venv/.origin ] && [ "$(cat .venv/.origin)" != "$(origin_of $venv_python)" ]; then
        discard_venv ".venv was built in another place or with another Python"
    elif [ "$(cat .venv/.stamp-$lists 2>/dev/null)" = "$(hash_of $lists)" ]; then
        exit 0
    fi
fi

[ "$(uname -s)" = Linux ] || fail "needs Linux: FBGEMM, which holds the embedding kernels, has wheels for no other system"

if [ ! -e .venv ]; then
    python=${python:-$(find_python)}
    say "creating .venv with $python ($(version_of "$python"))"
    mkdir .venv
    touch .venv/.incomplete
    "$python" -m venv .venv
fi
touch .venv/.incomplete
"$venv_python" -m pip --version >/dev/null 2>&1 || "$venv_python" -m ensurepip >/dev/null

[ -t 2 ] && quiet= || quiet=--quiet
pip_install() {
    # shellcheck disable=SC2086
    "$venv_python" -m pip install --disable-pip-version-check --no-input --no-compile $quiet "$@" ||
        fail "pip could not install ($*): see above. Once the cause is mended, run make again."
}
# torch alone, as its build differs by machine (see requirements/README.md); then everything else, which is pinned
# whole, without pip's resolver: it would add fbgemm-gpu, the CUDA build, which overwrites the CPU build's files.
say "installing torch"
pip_install torch==2.13.0 --constraint requirements/cpu.txt ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"}
say "installing requirements/cpu.txt"
pip_install --no-deps --only-binary :all: -r requirements/cpu.txt
if [ $lists = dev ]; then
    say "installing requirements/dev.txt"
    pip_install --no-deps --only-binary :all: -r requirements/dev.txt
fi
pip_install --no-deps --no-build-isolation --editable .

# At once and on all cores, as pip would do it file by file on one; without bytecode, importing torch and torchrec takes 15
# seconds instead of 6 in every process, for good where PYTHONDONTWRITEBYTECODE is set. Some packages ship files of Python 2.
say "compiling bytecode"
"$venv_python" -m compileall -qq -j 0 .venv/lib >/dev/null || true

origin_of $venv_python >.venv/.origin
hash_of run >.venv/.stamp-run
if [ $lists = dev ]; then hash_of dev >.venv/.stamp-dev; else rm -f .venv/.stamp-dev; fi
rm .venv/.incomplete
say "ready: .venv"
