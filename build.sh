#!/usr/bin/env bash
# Build the single file: ./build.sh [--for PYTHON]... [OUTPUT]
#
# OUTPUT is dist/batchspawner-portwrap.pyz by default. --for adds byte code for that Python, which
# starts a session faster; every other Python >= 3.8 compiles the sources in the same file.
#
# Needs bash, Python >= 3.8 with venv, and a package index. PYTHON selects the Python to build with;
# the result is the same with any. SOURCE_DATE_EPOCH sets the timestamps in the archive.
set -euo pipefail
umask 022

project=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# One fixed time, so that a build from a git checkout and one from a tarball are the same.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1577836800}
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_USER

die() {
    printf 'build.sh: %s\n' "$@" >&2
    exit 1
}

usage() {
    printf 'build.sh: %s\n  usage: ./build.sh [--for PYTHON]... [OUTPUT]\n' "$1" >&2
    exit 2
}

compile_for=() output=

add_python() {
    [[ $1 ]] || usage "--for needs a Python"
    compile_for+=("$1")
}

while (($#)); do
    case $1 in
        --for) add_python "${2:-}" && shift ;;
        --for=*) add_python "${1#--for=}" ;;
        -*) usage "unknown option: $1" ;;
        *) [[ -z $output ]] || usage "more than one OUTPUT: $1" && output=$1 ;;
    esac
    shift
done
output=${output:-$project/dist/batchspawner-portwrap.pyz}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.{14,13,12,11,10,9,8}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 8))' \
            2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "no Python 3.8 or newer with venv found" \
        "  on Debian and Ubuntu: apt-get install python3-venv; or name one with PYTHON=..."
}

# Run a command; its output is shown only if it fails.
quietly() {
    "$@" >"$work/log" 2>&1 || {
        cat "$work/log" >&2
        die "failed: $*"
    }
}

check_compilers() {
    local python
    for python in "${compile_for[@]}"; do
        [[ $("$python" -c 'import sys; print(sys.version_info >= (3, 8))' 2>/dev/null) == True ]] ||
            die "--for $python: not a Python 3.8 or newer that runs here"
    done
}

# Compile the modules of a folder for each --for; prints which Pythons that is for.
compile() {
    local python
    for python in "${compile_for[@]}"; do
        # Before Python 3.11 the order of a set in byte code depends on the seed of hashes.
        PYTHONHASHSEED=0 quietly "$python" -s -S -X no_debug_ranges \
            "$project/archive/byte_code.py" "$1" "$2"
        cat "$work/log"
    done | paste -sd, | sed 's/,/, /g'
}

check_compilers
python=$(find_python)
work=$(mktemp -d)
staged=
trap 'rm -rf -- "$work" ${staged:+"$staged"}' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# The pip that Python 3.8 brings along leaves its list of authorities there.
export TMPDIR=$work

quietly "$python" -m venv "$work/venv"
venv=$work/venv/bin/python
quietly "$venv" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --require-hashes -r "$project/archive/requirements.txt"

cd -- "$project"
quietly "$venv" -m hatchling build --target wheel --directory "$work/wheel"
# A wheel of pure Python is installed by unpacking it. pip would add records of this build's
# paths and times.
quietly "$venv" -m zipfile -e "$work"/wheel/*.whl "$work/site-packages"
rm -r -- "$work"/site-packages/*.data # manual pages and completions
cd -- "$OLDPWD"
mkdir "$work/byte-code"
compiled=$(compile "$work/site-packages" "$work/byte-code")
quietly "$venv" -m shiv --reproducible --uncompressed --site-packages "$work/site-packages" \
    --entry-point batchspawner_portwrap:main --output-file "$work/shiv.pyz"

mkdir -p -- "$(dirname -- "$output")"
staged=$(mktemp "$output.XXXXXX")
quietly "$venv" "$project/archive/pack.py" "$work/shiv.pyz" "$project/archive/__main__.py" \
    "$work/byte-code" "$staged"
# A rename: whoever is running the old file keeps it whole.
mv -f -- "$staged" "$output"
staged=

printf '%s\n' "$output"
printf '%s bytes, sha256 %s\n' "$(stat -c %s -- "$output")" "$(sha256sum <"$output" | cut -d' ' -f1)"
if [[ $compiled ]]; then
    printf 'byte code for %s; other Pythons compile the sources at each start\n' "$compiled"
else
    printf 'no byte code: each start compiles the sources; --for PYTHON adds it for that Python\n'
fi
