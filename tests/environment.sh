# shellcheck shell=bash disable=SC2034  # variables for those who source this
# Sourced by setup.sh and run.sh: where the tests' own things are, and which Pythons there are.
umask 022

tests=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
project=$(dirname -- "$tests")

# Other accounts run what is in here, so it cannot be below root's home.
if [[ -z ${PORTWRAP_TEST_ROOT:-} ]]; then
    if [[ $EUID == 0 ]]; then
        PORTWRAP_TEST_ROOT=/opt/portwrap-tests
    else
        PORTWRAP_TEST_ROOT=${XDG_CACHE_HOME:-$HOME/.cache}/portwrap-tests
    fi
fi
export PORTWRAP_TEST_ROOT

# The Python that runs the tests. Every account can run the system's.
system_python=/usr/bin/python3
runner=$PORTWRAP_TEST_ROOT/venv/bin/python

# For what fetches something: the network, or another package manager, may be in the way for a moment.
patiently() {
    local pause
    for pause in 10 20; do
        if "$@"; then return 0; fi
        sleep "$pause"
    done
    "$@"
}

# "3.8" for a Python of ours to test with; nothing for an older one or none at all.
minor_version() {
    "$1" -I -c 'import sys
if sys.version_info >= (3, 8): print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

# Lines "MINOR PATH" of the Pythons on PATH and in pyenv besides the system's, oldest first.
other_pythons() {
    local path minor pyenv=${PYENV_ROOT:-$HOME/.pyenv}
    local -A found=()
    found[$(minor_version "$system_python")]=$system_python
    while read -r path; do
        # pyenv's shims are on PATH too; the Pythons behind them come from `versions`.
        [[ $path != */shims/* && -x $path ]] || continue
        minor=$(minor_version "$path")
        [[ -n $minor && -z ${found[$minor]:-} ]] || continue
        found[$minor]=$path
        printf '%s %s\n' "$minor" "$path"
    done < <(
        compgen -G "$pyenv/versions/3.*/bin/python3" | sort --version-sort --reverse
        type -ap python3.{8..20} || true
    ) | sort --version-sort
}

# The same lines for the Pythons that the tests use besides the system's: PORTWRAP_PYTHONS, a list
# of paths, or "all", or "none"; by default the oldest and the newest.
chosen_pythons() {
    local path
    case ${PORTWRAP_PYTHONS:-} in
        '') other_pythons | sed -n '1p;$p' | uniq ;;
        all) other_pythons ;;
        none) ;;
        *) for path in $PORTWRAP_PYTHONS; do printf '%s %s\n' "$(minor_version "$path")" "$path"; done ;;
    esac
}

# setup.sh makes what these two name.
venv_of() { printf '%s/venv-%s\n' "$PORTWRAP_TEST_ROOT" "$1"; }
python_of() { readlink -e -- "$(venv_of "$1")/bin/python"; }

newest_pythons=$PORTWRAP_TEST_ROOT/newest-pythons
# Lines "MINOR PATH" of the Pythons newer than this machine's that setup.sh has fetched.
fetched_pythons() {
    local path
    for path in "$newest_pythons"/usr/bin/python3.*; do
        [[ ! -x $path ]] || printf '%s %s\n' "${path##*python}" "$path"
    done
}
