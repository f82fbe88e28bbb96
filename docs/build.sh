#!/usr/bin/env bash
# Build the pages of docs/ as a web site: docs/build.sh [FOLDER]
#
# FOLDER is build/site by default. Every warning is an error: each link and anchor leads somewhere.
# mkdocs comes from PORTWRAP_TEST_ROOT (/opt/portwrap-tests) if tests/setup.sh has put it there,
# otherwise from a package index, for this run only.
set -euo pipefail
project=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
site=$(realpath -m -- "${1:-$project/build/site}")
venv=${PORTWRAP_TEST_ROOT:-/opt/portwrap-tests}/docs-venv

if [[ ! -x $venv/bin/mkdocs ]]; then
    venv=$(mktemp -d)
    trap 'rm -rf -- "$venv"' EXIT
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --requirement "$project/docs/requirements.txt"
fi
# Its authors' notices about other programs of theirs are no warnings.
NO_MKDOCS_2_WARNING=1 PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" -m mkdocs build \
    --strict --clean --config-file "$project/mkdocs.yml" --site-dir "$site"
printf '%s\n' "$site/index.html"
