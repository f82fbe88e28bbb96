#!/usr/bin/env bash
# Installs what a JupyterHub with batchspawner needs, in one directory.
#
#   demo/install.sh hub ROOT_DIR   ROOT_DIR/hub-venv (JupyterHub, batchspawner, jupyter_server,
#                                  jupyter-server-proxy, ipykernel) and ROOT_DIR/chp
#   demo/install.sh lab ROOT_DIR   the same, and JupyterLab for people with a browser
#
# Other accounts run what is in ROOT_DIR: every directory above it must let them in.
# As root on Debian, Ubuntu, Fedora and RHEL it installs missing system packages too;
# elsewhere it names what is missing and gives up. A second run finds its work done.
set -euo pipefail
umask 022
# `su` without `-` leaves root without these on some systems.
PATH=$PATH:/usr/sbin:/sbin

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=/usr/bin/python3
jupyterlab='jupyterlab==4.6.6 ; python_version >= "3.10"'
started=${PORTWRAP_DEMO_STARTED:-$(date +%s)}

say() {
    printf '[%3d s] %s\n' "$(($(date +%s) - started))" "$*"
}

give_up() {
    printf 'demo/install.sh: %s\n' "$1" >&2
    shift
    printf '  %s\n' "$@" >&2
    exit 1
}

# ---- system packages ------------------------------------------------------------------------

# One line per missing thing: what is missing, Debian's packages for it, Fedora's.
missing_things() {
    [[ -x $python ]] || echo 'python3|python3|python3'
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo 'python3-venv|python3-venv|python3'
    command -v slirp4netns >/dev/null || echo 'slirp4netns|slirp4netns|slirp4netns'
    command -v ip >/dev/null || echo 'ip|iproute2|iproute'
    command -v flock >/dev/null || echo 'flock|util-linux|util-linux'
    command -v node >/dev/null || echo 'node|nodejs|nodejs'
    command -v npm >/dev/null || echo 'npm|npm|npm'
    [[ ${EUID} -ne 0 ]] || command -v useradd >/dev/null || echo 'useradd|passwd|shadow-utils'
}

# A package manager that is interrupted half-way leaves the system's packages broken:
# it does not hear the signals that end us, and we end after it.
undisturbed() {
    (trap '' INT TERM HUP && exec "$@" </dev/null)
}

install_system_packages() {
    local things debian fedora
    things=$(missing_things)
    [[ -n $things ]] || return 0
    debian=$(cut -d'|' -f2 <<<"$things" | sort -u | tr '\n' ' ')
    fedora=$(cut -d'|' -f3 <<<"$things" | sort -u | tr '\n' ' ')
    if [[ ${EUID} -ne 0 ]]; then
        give_up "not installed: $(cut -d'|' -f1 <<<"$things" | tr '\n' ' ')" \
            "as root: apt-get install $debian" "      or: dnf install $fedora"
    fi
    say "Installing system packages: $debian"
    if command -v apt-get >/dev/null; then
        undisturbed apt-get -qq update
        # shellcheck disable=SC2086  # a list of package names
        undisturbed env DEBIAN_FRONTEND=noninteractive \
            apt-get -qq install --yes --no-install-recommends $debian >/dev/null
    elif command -v dnf >/dev/null; then
        # shellcheck disable=SC2086
        undisturbed dnf --quiet --assumeyes install $fedora
    else
        give_up "neither apt-get nor dnf is here" "install these yourself: $debian"
    fi
    things=$(missing_things)
    [[ -z $things ]] || give_up "still missing: $(cut -d'|' -f1 <<<"$things" | tr '\n' ' ')" \
        "the packages are installed; PATH is $PATH"
}

# ---- JupyterHub and its proxy ---------------------------------------------------------------

# Whoever ends us in the middle of something finds none of it afterwards, or an older state.
unfinished=
trap '[[ -z $unfinished ]] || rm -rf -- "$unfinished"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Does what the rest of the arguments say, unless the stamp shows that the same was done before.
unless_done() {
    local stamp=$1 recipe=$2
    shift 2
    [[ ! -f $stamp || $(<"$stamp") != "$recipe" ]] || return 0
    unfinished=$(dirname -- "$stamp")
    "$@"
    printf '%s\n' "$recipe" >"$stamp"
    unfinished=
}

# Minutes without a word look like a hang: the number of packages so far, every three seconds.
pip_progress() {
    local line count=0 last=$SECONDS
    while IFS= read -r line; do
        printf '%s\n' "$line" >>"$1"
        case $line in
            Collecting*) count=$((count + 1)) ;;
            Installing*) say "  unpacking $count packages" ;;
        esac
        if ((SECONDS - last >= 3)); then
            say "  fetching packages: $count so far"
            last=$SECONDS
        fi
    done
}

pip_install() {
    local venv=$1 log=$1/install.log pause
    shift
    : >"$log"
    mkdir -p "$venv/tmp"
    for pause in 5 20 0; do # the network may be gone for a moment
        if TMPDIR=$venv/tmp "$venv/bin/python" -m pip install --progress-bar off --disable-pip-version-check \
            --constraint "$here/constraints.txt" "$@" </dev/null 2>&1 | pip_progress "$log"; then
            return
        fi
        sleep "$pause"
    done
    tail -n 15 "$log" >&2
    give_up "pip could not install $*" "its last lines stand above"
}

make_venv() {
    say "Installing JupyterHub, batchspawner and a single-user server"
    rm -rf "$1"
    "$python" -m venv "$1"
    pip_install "$1" --requirement "$here/requirements.txt"
}

add_lab() {
    unfinished= # the hub is there, whatever comes of this; what is missing is got the next time
    say "Installing JupyterLab"
    pip_install "$1" "$jupyterlab"
}

# Version 5 needs Node 20.
proxy_version() {
    local major
    major=$(node --version | sed 's/^v\([0-9]*\).*/\1/')
    if ((major >= 20)); then echo 5.3.0; else echo 4.6.3; fi
}

make_proxy() {
    say "Installing configurable-http-proxy $2 (Node $(node --version))"
    local pause
    for pause in 5 20 0; do
        rm -rf "$1"
        if npm install --global --silent --no-audit --no-fund --prefix "$1" \
            "configurable-http-proxy@$2" </dev/null; then
            return
        fi
        sleep "$pause"
    done
    give_up "npm could not install configurable-http-proxy@$2" "run: npm view configurable-http-proxy"
}

main() {
    [[ $# -eq 2 && ($1 == hub || $1 == lab) ]] ||
        give_up "wrong arguments" "usage: demo/install.sh hub|lab ROOT_DIR"
    install_system_packages
    mkdir -p "$2"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 8))' ||
        give_up "$("$python" -V) is too old for JupyterHub" "Python 3.8 or newer is needed"
    local root venv version
    root=$(cd "$2" && pwd)
    venv=$root/hub-venv
    exec {lock}>"$root/install.lock"
    flock "$lock"
    unless_done "$venv/.complete" "$("$python" -VV) $(<"$here/requirements.txt")" make_venv "$venv"
    if [[ $1 == lab ]]; then
        unless_done "$venv/.complete-lab" "$jupyterlab" add_lab "$venv"
    fi
    version=$(proxy_version)
    unless_done "$root/chp/.complete" "$version $(node --version)" \
        make_proxy "$root/chp" "$version"
    say "JupyterHub $("$venv/bin/python" -c 'import jupyterhub; print(jupyterhub.__version__)') is in $root"
}

main "$@"
