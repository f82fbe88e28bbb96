#!/usr/bin/env bash
# Demonstration: a real JupyterHub with batchspawner on this machine, one session in the sandbox and
# one without it, and what another account on the machine can reach in each.
#
#   ./demo.sh            print the proof, then the URL to open, and wait for Ctrl-C
#   ./demo.sh --once     print the proof and exit: status 0 if it holds
#   --root DIR           where the hub's programs are kept between runs (about 500 MB)
#
# Run as root it creates two accounts and a network interface, and removes them at the end.
# The hub's programs stay, so that the next start is fast.
set -euo pipefail
# `su` without `-` leaves root without these on some systems.
export PATH=$PATH:/usr/sbin:/sbin

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ ${EUID} -eq 0 ]]; then
    root=/var/cache/batchspawner-portwrap-demo
else
    root=${XDG_CACHE_HOME:-$HOME/.cache}/batchspawner-portwrap-demo
fi
once=()
PORTWRAP_DEMO_STARTED=$(date +%s)
export PORTWRAP_DEMO_STARTED

usage() {
    sed -n '2,/^set /{/^# \{0,1\}/s///p}' "${BASH_SOURCE[0]}"
}

while (($#)); do
    case $1 in
        --once) once=(--once) ;;
        --root)
            root=${2:?demo.sh: --root needs a directory}
            shift
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        *)
            printf 'demo.sh: unknown argument: %s\n' "$1" >&2
            usage >&2
            exit 2
            ;;
    esac
    shift
done

# A step runs in a process group of its own: whoever ends us ends all of it, at once.
step=
end_step() {
    trap '' INT TERM HUP
    if [[ -n $step ]]; then
        kill -TERM -- "-$step" 2>/dev/null || true
        wait "$step" 2>/dev/null || true
    fi
    printf 'demo.sh: interrupted\n' >&2
    exit 130
}
trap end_step INT TERM HUP

in_own_group() {
    local status=0
    set -m
    "$@" </dev/null &
    step=$!
    set +m
    wait "$step" || status=$?
    step=
    return "$status"
}

in_own_group "$here/demo/install.sh" lab "$root"
printf '[%3d s] Building batchspawner-portwrap.pyz\n' "$(($(date +%s) - PORTWRAP_DEMO_STARTED))"
in_own_group "$here/build.sh"

# From here on one process owns everything that is set up, and takes it down again.
cd "$here"
exec /usr/bin/python3 -B -m demo "${once[@]}" --root "$root" \
    --archive "$here/dist/batchspawner-portwrap.pyz"
