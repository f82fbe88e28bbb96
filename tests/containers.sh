# shellcheck shell=bash disable=SC2154  # variables of environment.sh
# Sourced by setup.sh: a container image, and Apptainer, which Debian has in sid only.

image=$PORTWRAP_TEST_ROOT/image
apptainer=$PORTWRAP_TEST_ROOT/apptainer

# A system of its own for the tests' containers, as a directory: Debian's Python, slirp4netns, and the
# hub's virtual environment with all that a single-user server needs.
make_image() {
    local venv=$PORTWRAP_TEST_ROOT/hub-venv recipe packages=(bash coreutils dash libacl1 libattr1
        libbz2-1.0 libc6 libc-bin libcom-err2 libcrypt1 libdb5.3 libexpat1 libffi8 libgcc-s1 libglib2.0-0
        libgmp10 libgssapi-krb5-2 libk5crypto3 libkeyutils1 libkrb5-3 libkrb5support0 liblzma5
        libncursesw6 libnsl2 libpcre2-8-0 libpython3.11-minimal libpython3.11-stdlib libreadline8
        libseccomp2 libselinux1 libslirp0 libsqlite3-0 libssl3 libstdc++6 libtinfo6 libtirpc3 libuuid1
        python3 python3-minimal python3.11 python3.11-minimal slirp4netns zlib1g)
    recipe="${packages[*]} $(<"$venv/.complete") $(<"$project/demo/constraints.txt") byte code"
    [[ ! -f $image.complete || $(<"$image.complete") != "$recipe" ]] || return 0
    # The virtual environment runs in the image's Python only if that is the system's, too.
    grep -q '^VERSION_CODENAME=bookworm' /etc/os-release && type -P dpkg >/dev/null || return 0
    say "making a container image in $image"
    rm -f -- "$image.complete" "$image.sif"
    extract_packages "$image" "" "${packages[@]}"
    mkdir -p -- "$image"/{dev,home,mnt,proc,root,run,sys,tmp,usr/local/bin,var/tmp,"$PORTWRAP_TEST_ROOT"}
    tar -C "$PORTWRAP_TEST_ROOT" -c --exclude=hub-venv/share/jupyter/lab hub-venv |
        tar -C "$image/$PORTWRAP_TEST_ROOT" -x
    # Nobody who starts it may write byte code there.
    "$system_python" -m compileall -q -s "$image" -p / "$image"/usr/lib/python3* ||
        die "the Python in $image does not compile"
    ln -s -- "$venv"/bin/{batchspawner,jupyterhub}-singleuser "$image/usr/local/bin/"
    # The engines write the user's entry and the host's names over these.
    echo 'root:x:0:0:root:/root:/bin/sh' >"$image/etc/passwd"
    echo 'root:x:0:' >"$image/etc/group"
    touch -- "$image"/etc/{hosts,resolv.conf,image-of-the-tests}
    chmod -R a+rX -- "$image"
    printf '%s\n' "$recipe" >"$image.complete"
}

# As its package lays it out below /usr, it finds its files relative to itself. It is not pinned: sid
# has one version at a time, and a mirror has no older ones.
fetch_apptainer() {
    local libraries version packages=(apptainer libc6 libseccomp2 libsqlite3-0)
    [[ ! -f $apptainer/.complete || $(<"$apptainer/.complete") != "${packages[*]}" ]] || return 0
    can_use_newer_packages || return 0
    say "fetching Apptainer into $apptainer"
    extract_packages "$apptainer" sid "${packages[@]}"
    libraries=$(dirname -- "$(find "$apptainer" -name 'libc.so.6')")
    relink "$libraries" "$apptainer/usr/bin/apptainer" "$libraries/apptainer/bin/starter"
    ln -s -- ../etc ../var "$apptainer/usr/"
    ln -s -- ../../etc ../../var "$apptainer/usr/lib/" # for its starter, two directories below
    chmod -R a+rX -- "$apptainer"
    version=$(runuser -u "$owner" -- "$apptainer/usr/bin/apptainer" --version) ||
        die "the Apptainer in $apptainer does not run"
    say "$version"
    printf '%s\n' "${packages[*]}" >"$apptainer/.complete"
}

# The same image as a single file.
make_sif() {
    [[ -f $image.complete && -f $apptainer/.complete && ! -f $image.sif ]] || return 0
    say "making a container image in $image.sif"
    quietly env "HOME=$TMPDIR" "$apptainer/usr/bin/apptainer" build \
        --mksquashfs-args '-comp gzip -Xcompression-level 1' "$image.sif.new" "$image"
    chmod 644 "$image.sif.new"
    mv -- "$image.sif.new" "$image.sif"
}
