"""Network interfaces by ioctl(2): netdevice(7), and tun devices (linux/if_tun.h)."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8913, 0x8914  # linux/sockios.h
IFF_UP = 0x1  # linux/if.h
TUN = "/dev/net/tun"
IFF_TUN, IFF_TAP, IFF_NO_PI = 0x1, 0x2, 0x1000
TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB
IFREQ = struct.Struct("=16sH22x")  # struct ifreq: name, flags


def bring_up_loopback() -> None:
    """Set the interface lo of this network namespace up. Raises OSError."""
    control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        request = fcntl.ioctl(control.fileno(), SIOCGIFFLAGS, IFREQ.pack(b"lo", 0))
        name, flags = IFREQ.unpack(request)
        fcntl.ioctl(control.fileno(), SIOCSIFFLAGS, IFREQ.pack(name, flags | IFF_UP))
    finally:
        control.close()


def open_tun() -> int:
    """A descriptor that a device can be made with. Raises OSError."""
    return os.open(TUN, os.O_RDWR | os.O_CLOEXEC)


def make_device(tun: int, name: str, kind: int) -> None:
    """Make a device of this name, IFF_TUN or IFF_TAP, which goes when the descriptor is closed.
    Raises OSError."""
    fcntl.ioctl(tun, TUNSETIFF, IFREQ.pack(os.fsencode(name), kind | IFF_NO_PI))


def keep_device(tun: int) -> None:
    """Have it stay after that. Raises OSError."""
    fcntl.ioctl(tun, TUNSETPERSIST, 1)
