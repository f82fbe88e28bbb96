#!/usr/bin/env bash
# Run a linter in the version that tests/requirements.txt pins: tests/tool.sh ruff check .
set -euo pipefail
# shellcheck source=tests/environment.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
PATH=$(dirname -- "$runner"):$PATH
if [[ ! -x $runner ]]; then
    printf 'tests/tool.sh: no %s; run tests/setup.sh\n' "$runner" >&2
    exit 1
fi
exec "$@"
