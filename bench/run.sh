#!/usr/bin/env bash
# Measure batchspawner-portwrap beside what a site could use instead: bench/run.sh [--quick]
#
# Installs what it needs first: as root with apt-get or dnf, else it names what is missing. The
# measured programs run as the account pw-owner then, else as the caller. Writes bench/results.md and
# bench/results.svg. --help tells of more options; BENCH_SET_UP=no skips the installing.
set -euo pipefail

bench=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
project=$(dirname -- "$bench")
# shellcheck source=tests/environment.sh
. "$project/tests/environment.sh"
venv=$PORTWRAP_TEST_ROOT/bench-venv

say() { printf 'bench: %s\n' "$*" >&2; }

# One line per missing thing: what is missing, Debian's package for it, Fedora's ("-" for none).
missing_things() {
    local command debian fedora
    while read -r command debian fedora; do
        type -P "$command" >/dev/null || echo "$command $debian $fedora"
    done <<'TABLE'
bwrap bubblewrap bubblewrap
nc netcat-openbsd nmap-ncat
newuidmap uidmap shadow-utils
pasta passt passt
rootlesskit rootlesskit -
systemd-socket-activate systemd systemd
wrk wrk wrk
TABLE
}

column() { cut -d' ' -f"$1" | grep -vx -e - | sort -u | paste -sd' '; }

# A package manager that is interrupted half-way leaves the system's packages broken.
undisturbed() { (trap '' INT TERM HUP && "$@" </dev/null >/dev/null); }

# The rivals are optional: one that has no package here is left out of the table.
install_rivals() {
    local things package
    things=$(missing_things)
    [[ -n $things ]] || return 0
    if [[ $EUID != 0 ]]; then
        say "not installed, so left out: $(column 1 <<<"$things")"
        say "  as root: apt-get install $(column 2 <<<"$things")"
        return 0
    fi
    say "installing $(column 1 <<<"$things")"
    if type -P apt-get >/dev/null; then
        undisturbed apt-get -qq update
        for package in $(column 2 <<<"$things"); do
            undisturbed env DEBIAN_FRONTEND=noninteractive \
                apt-get -qq install --yes --no-install-recommends "$package" || say "no $package"
        done
    elif type -P dnf >/dev/null; then
        for package in $(column 3 <<<"$things"); do
            undisturbed dnf --quiet --assumeyes install "$package" || say "no $package"
        done
    fi
}

# --copies: an interpreter of its own, so that what is measured shares no memory with what measures.
make_venv() {
    local recipe
    recipe=$("$system_python" -VV && cat "$bench/requirements.txt")
    [[ -f $venv/.complete && $(<"$venv/.complete") == "$recipe" ]] && return
    say "installing the plotting library in $venv"
    rm -rf -- "$venv"
    "$system_python" -m venv --copies "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        -r "$bench/requirements.txt" </dev/null
    printf '%s\n' "$recipe" >"$venv/.complete"
}

for word in "$@"; do
    case $word in -h | --help) BENCH_SET_UP=no ;; esac
done
if [[ ${BENCH_SET_UP:-yes} != no ]]; then
    PORTWRAP_PYTHONS=none "$project/tests/setup.sh" >&2
    [[ -x $PORTWRAP_TEST_ROOT/hub-venv/bin/jupyter-server ]] ||
        "$project/demo/install.sh" hub "$PORTWRAP_TEST_ROOT" >&2
    install_rivals
    make_venv
fi
if [[ ! -x $venv/bin/python ]]; then
    venv_python=$system_python
else
    venv_python=$venv/bin/python
fi

work=$(mktemp -d)
# The runner cleans up itself; it gets Ctrl-C as we do, and we wait for it.
trap 'rm -rf -- "$work"' EXIT
trap 'kill -TERM "$runner" 2>/dev/null' TERM HUP
trap : INT
archive=$work/batchspawner-portwrap.pyz
[[ ${BENCH_SET_UP:-yes} == no && -f $project/dist/batchspawner-portwrap.pyz ]] &&
    cp -- "$project/dist/batchspawner-portwrap.pyz" "$archive"
[[ -f $archive ]] || "$project/build.sh" "$archive" >/dev/null

PYTHONPATH=$project PYTHONDONTWRITEBYTECODE=1 "$venv_python" -m bench \
    --archive "$archive" --root "$PORTWRAP_TEST_ROOT" "$@" &
runner=$!
status=0
wait "$runner" || status=$?
# A signal ends this wait before the runner has ended.
while kill -0 "$runner" 2>/dev/null; do
    wait "$runner" || status=$?
done
exit "$status"
