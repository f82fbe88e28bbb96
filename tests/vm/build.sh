#!/usr/bin/env bash
# Build the virtual machines of the tests in DIRECTORY, as root on Debian: tests/vm/build.sh DIRECTORY
#
# Each is a disk, a kernel and an initial RAM disk, NAME.img, .kernel and .initrd:
#   trixie     Debian 13 with AppArmor, systemd, Slurm and a JupyterHub with systemdspawner
#   bullseye   Debian 11 with its kernel 5.10
# What is there already, made by the same script, is left alone. Nothing is written elsewhere.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/environment.sh
. "$here/../environment.sh"

common='linux-image-cloud-amd64 initramfs-tools systemd-sysv udev dbus kmod iproute2 procps python3'
common+=' curl sudo slirp4netns strace'
declare -A packages=(
    [trixie]="$common apparmor passt nodejs munge slurmctld slurmd slurm-client"
    [bullseye]=$common
)
accounts=(pw-owner pw-neighbour)

say() { printf 'vm: %s\n' "$*"; }

# Where this machine's apt has Debian's packages from.
mirror() {
    # shellcheck disable=SC2016  # apt fills these in
    apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL) $(COMPONENT)' 'Identifier: Packages' |
        awk '$2 == "Debian" && $3 == "Debian" && $4 == "main" {print $1; exit}'
}

make_tree() {
    local name=$1 tree=$2 source
    source="deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) $name main"
    mmdebstrap --quiet --mode=root --variant=apt --include="${packages[$name]}" \
        --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$name" "$tree" "$source"
}

furnish() {
    local tree=$1 account unit
    for account in "${accounts[@]}"; do
        chroot "$tree" useradd --create-home --shell /bin/bash "$account"
    done
    echo node01 >"$tree/etc/hostname"
    printf '127.0.0.1 localhost\n10.77.0.1 node01\n10.77.0.2 hub01\n' >"$tree/etc/hosts"
    echo 'nameserver 10.77.0.2' >"$tree/etc/resolv.conf"
    echo '/dev/vda / ext4 defaults 0 1' >"$tree/etc/fstab"
    install -m 644 "$here/agent.py" "$tree/usr/local/lib/tests-agent.py"
    install -m 644 "$here/agent.service" "$tree/etc/systemd/system/tests-agent.service"
    ln -s ../tests-agent.service "$tree/etc/systemd/system/graphical.target.wants/" 2>/dev/null ||
        install -d "$tree/etc/systemd/system/graphical.target.wants"
    ln -sf ../tests-agent.service "$tree/etc/systemd/system/graphical.target.wants/"
    for unit in munge slurmctld slurmd apt-daily.timer apt-daily-upgrade.timer; do
        rm -f "$tree/etc/systemd/system/"*.wants/"$unit"*
    done
}

# The hub's packages, for the Python of the tree, which need not run for that.
add_hub() {
    local tree=$1
    patiently "$runner" -m pip install -qq --disable-pip-version-check --no-compile \
        --only-binary :all: --python-version 3.13 --implementation cp --abi cp313 --abi abi3 \
        --abi none --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
        --target "$tree/usr/local/lib/python3.13/dist-packages" -r "$here/requirements.txt"
    # An emulated processor would take minutes for it. Not all files are modules.
    chroot "$tree" python3 -m compileall -qq /usr/local/lib/python3.13/dist-packages || true
    cp -a "$PORTWRAP_TEST_ROOT/chp" "$tree/opt/chp"
    chown -R 0:0 "$tree/opt/chp" "$tree/usr/local"
}

make_disk() {
    local name=$1 tree=$2 place=$3
    cp --dereference "$tree/vmlinuz" "$place/$name.kernel"
    cp --dereference "$tree/initrd.img" "$place/$name.initrd"
    mke2fs -q -t ext4 -d "$tree" "$place/$name.img" 3G
}

make_machine() {
    local name=$1 place=$2 tree=$2/$1.tree recipe
    recipe=$(cat "$here"/{build.sh,agent.py,agent.service,requirements.txt} | sha256sum)
    [[ ! -f $place/$name.complete || $(<"$place/$name.complete") != "$recipe" ]] || return 0
    say "building a virtual machine of Debian $name in $place"
    rm -rf -- "$tree" "$place/$name".*
    make_tree "$name" "$tree"
    furnish "$tree"
    [[ $name != trixie ]] || add_hub "$tree"
    make_disk "$name" "$tree" "$place"
    rm -rf -- "$tree"
    printf '%s\n' "$recipe" >"$place/$name.complete"
}

place=$1
mkdir -p -- "$place"
for name in "${!packages[@]}"; do make_machine "$name" "$place"; done
