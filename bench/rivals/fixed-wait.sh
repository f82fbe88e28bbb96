#!/usr/bin/env bash
# bubblewrap, slirp4netns and a fixed wait: fixed-wait.sh HOST_PORT GUEST_PORT COMMAND [ARG ...]
#
# Nothing tells when the network is there, so everybody waits two seconds for it. That bubblewrap
# has finished is waited for: slirp4netns would sometimes disturb it while it sets up the loopback.
set -euo pipefail
host_port=$1 guest_port=$2
shift 2
files=$(mktemp -d)
mkfifo "$files/made"

bring_network() (
    read -r pid <"$files/made"
    slirp4netns --configure --mtu=65520 --disable-host-loopback \
        --api-socket "$files/api" "$pid" tap0 >/dev/null &
    sleep 2
    nc -N -U "$files/api" >/dev/null <<EOS
{"execute": "add_hostfwd", "arguments": {"proto": "tcp",
 "host_addr": "127.0.0.1", "host_port": $host_port, "guest_port": $guest_port}}
EOS
    rm -r -- "$files"
)

bring_network &
# shellcheck disable=SC2016  # for the inner shell
exec bwrap --dev-bind / / --unshare-user --unshare-net \
    bash -c 'echo $$ >"$0/made"; sleep 2.1; exec "$@"' "$files" "$@"
