# shellcheck shell=bash disable=SC2154  # variables of environment.sh
# Sourced by setup.sh: Pythons newer than this machine's, of Debian's sid.

# Without pip: they start our programs, and the tests run in another one.
fetch_newest_pythons() {
    local minor path libraries packages=(libc6 libexpat1 libffi8 libgcc-s1 libssl3t64 libzstd1 zlib1g)
    for minor in 3.14 3.15; do
        packages+=("python$minor-minimal" "libpython$minor-minimal" "libpython$minor-stdlib")
    done
    [[ ! -f $newest_pythons/.complete || $(<"$newest_pythons/.complete") != "${packages[*]}" ]] ||
        return 0
    can_use_newer_packages || return 0
    say "fetching newer Pythons into $newest_pythons"
    extract_packages "$newest_pythons" sid "${packages[@]}"
    libraries=$(dirname -- "$(find "$newest_pythons" -name 'libc.so.6')")
    relink "$libraries" "$newest_pythons"/usr/bin/python3.*
    chmod -R a+rX -- "$newest_pythons"
    while read -r minor path; do
        runuser -u "$owner" -- "$path" -I -c 'import ctypes, socket, ssl' ||
            die "Python $minor in $newest_pythons does not run"
    done < <(fetched_pythons)
    printf '%s\n' "${packages[*]}" >"$newest_pythons/.complete"
}
