#!/usr/bin/env bash
# systemd-socket-proxyd on a socket of the host: socket-proxyd.sh HOST_PORT GUEST_PORT COMMAND ...
#
# slirp4netns is for outbound only. The proxy starts with the first connection.
set -euo pipefail
host_port=$1 guest_port=$2
shift 2
files=$(mktemp -d)
mkfifo "$files/made" "$files/ready" "$files/go"

bring_network() (
    read -r _ <"$files/made"
    slirp4netns --configure --mtu=65520 --disable-host-loopback --ready-fd=3 \
        "$1" tap0 3>"$files/ready" >/dev/null &
    read -r -N 1 _ <"$files/ready"
    # The command may go on as soon as the port is bound: wait for the word that it is.
    mkfifo "$files/bound"
    SYSTEMD_LOG_TARGET=console systemd-socket-activate --listen="127.0.0.1:$host_port" \
        nsenter --target "$1" --user --net --preserve-credentials \
        /lib/systemd/systemd-socket-proxyd --connections-max=1024 "127.0.0.1:$guest_port" \
        2>"$files/bound" >/dev/null &
    exec 4<"$files/bound"
    read -r _ <&4
    echo >"$files/go"
    rm -r -- "$files"
    exec cat <&4 >/dev/null
)

bring_network $$ &
# shellcheck disable=SC2016  # for the inner shell
exec unshare --user --map-current-user --net \
    bash -c 'echo >"$0/made"; read -r _ <"$0/go"; exec "$@"' "$files" "$@"
