#!/usr/bin/env bash
# slirp4netns with its own forwarding: slirp4netns.sh HOST_PORT GUEST_PORT COMMAND [ARG ...]
#
# Everything waits for its condition: the namespaces, --ready-fd, the answer of add_hostfwd.
# The forward leads to 10.0.2.100 inside, so the command must listen on 0.0.0.0.
set -euo pipefail
host_port=$1 guest_port=$2
shift 2
files=$(mktemp -d)
mkfifo "$files/made" "$files/ready" "$files/go"

bring_network() (
    read -r _ <"$files/made"
    slirp4netns --configure --mtu=65520 --disable-host-loopback --ready-fd=3 \
        --api-socket "$files/api" "$1" tap0 3>"$files/ready" >/dev/null &
    read -r -N 1 _ <"$files/ready"
    nc -N -U "$files/api" >/dev/null <<EOS
{"execute": "add_hostfwd", "arguments": {"proto": "tcp",
 "host_addr": "127.0.0.1", "host_port": $host_port, "guest_port": $guest_port}}
EOS
    echo >"$files/go"
    rm -r -- "$files"
)

bring_network $$ &
# shellcheck disable=SC2016  # for the inner shell
exec unshare --user --map-current-user --net \
    bash -c 'echo >"$0/made"; read -r _ <"$0/go"; exec "$@"' "$files" "$@"
