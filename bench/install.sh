#!/usr/bin/env bash
# Install what bench/run.sh needs besides the tests' things: the rivals, wrk, a plotting library.
#
# As root with apt-get or dnf, else it names what is missing: that is left out of the results.
set -euo pipefail

bench=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/environment.sh
. "$bench/../tests/environment.sh"
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
    [[ ! -f $venv/.complete || $(<"$venv/.complete") != "$recipe" ]] || return 0
    say "installing the plotting library in $venv"
    rm -rf -- "$venv"
    "$system_python" -m venv --copies "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        -r "$bench/requirements.txt" </dev/null
    printf '%s\n' "$recipe" >"$venv/.complete"
}

install_rivals
make_venv
