#!/usr/bin/env bash
# Measure batchspawner-portwrap beside the alternatives: bench/run.sh [--quick]
#
# Installs what it needs first: as root with apt-get or dnf, else it lists what is missing. As root the
# measured programs run as the account pw-owner, else as the caller. Writes bench/results.md, two
# charts and the tables of README.md and docs/performance.md. --help tells of more options; BENCH_SET_UP=no skips the installing.
set -euo pipefail

bench=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
project=$(dirname -- "$bench")
# shellcheck source=tests/environment.sh
. "$project/tests/environment.sh"
venv=$PORTWRAP_TEST_ROOT/bench-venv

for word in "$@"; do
    case $word in -h | --help) BENCH_SET_UP=no ;; esac
done
if [[ ${BENCH_SET_UP:-yes} != no ]]; then
    PORTWRAP_PYTHONS=none "$project/tests/setup.sh" >&2
    [[ -x $PORTWRAP_TEST_ROOT/hub-venv/bin/jupyter-server ]] ||
        "$project/demo/install.sh" hub "$PORTWRAP_TEST_ROOT" >&2
    "$bench/install.sh"
fi
venv_python=$venv/bin/python
[[ -x $venv_python ]] || venv_python=$system_python # without a chart then

work=$(mktemp -d)
# The runner cleans up itself; it gets Ctrl-C as we do, and we wait for it.
trap 'rm -rf -- "$work"' EXIT
trap 'kill -TERM "$runner" 2>/dev/null' TERM HUP
trap : INT
archive=$work/batchspawner-portwrap.pyz
[[ ${BENCH_SET_UP:-yes} == no && -f $project/dist/batchspawner-portwrap.pyz ]] &&
    cp -- "$project/dist/batchspawner-portwrap.pyz" "$archive"
[[ -f $archive ]] || "$project/build.sh" "$archive" >/dev/null
# Sessions and batchspawner-singleuser run in Pythons of one version.
fast=()
if [[ ${BENCH_SET_UP:-yes} != no ]]; then
    "$project/build.sh" --for "$system_python" "$work/fast.pyz" >/dev/null
    fast=(--fast-archive "$work/fast.pyz")
fi

PYTHONPATH=$project PYTHONDONTWRITEBYTECODE=1 "$venv_python" -m bench \
    --archive "$archive" "${fast[@]}" --root "$PORTWRAP_TEST_ROOT" "$@" &
runner=$!
status=0
wait "$runner" || status=$?
# A signal ends this wait before the runner has ended.
while kill -0 "$runner" 2>/dev/null; do
    wait "$runner" || status=$?
done
exit "$status"
