"""Start of the archive: put our packages on the path and run, all out of the zip file.

Replaces shiv's own start, which would unpack to the home directory first. It parses on every
Python since 2.7, so that an old one gets a sentence and not a SyntaxError.
"""

import os
import sys

WITHOUT_A_SESSION = frozenset(("-h", "--help", "--version", "--check"))
SOURCES = "/site-packages"
BYTE_CODE = "/byte-code-%s.bin"
"""Of the Pythons with this cache tag (`build.sh --for`)."""
HEAD = 8
"""Bytes in front of a piece of byte code (`portwrap/bundle.py`)."""
BLOCK = 65536
"""Bytes read at a time: new memory for the whole file would take longer than the rest."""

NOT_LOADED = "Start it again; if that fails, check this Python, and 'ulimit -a'."


def refuse_old_python():
    # type: () -> None
    if sys.version_info < (3, 8):
        message = "batchspawner-portwrap: Python 3.8 or newer is required, this is %s (%s)\n"
        message += "  Run it with the Python of batchspawner-singleuser, which has to be as new:"
        message += " /path/of/python3 %s ...\n"
        version = ".".join(str(part) for part in sys.version_info[:3])
        path = sys.executable or os.readlink("/proc/self/exe")
        sys.stderr.write(message % (version, path, os.path.dirname(os.path.abspath(__file__))))
        sys.exit(125)


def let_ctrl_c_end_us():
    # type: () -> None
    # Python turns SIGINT into KeyboardInterrupt: a traceback, if it comes during an import.
    # An inherited "ignore" stays. (`signal` would import `enum`; `_signal` is built in.)
    import _signal

    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)


def use_byte_code(archive):
    # type: (str) -> bool
    import marshal
    from importlib.util import MAGIC_NUMBER
    from zipimport import zipimporter

    try:
        content = zipimporter(archive).get_data(archive + BYTE_CODE % sys.implementation.cache_tag)
    except OSError:
        return False
    # Before a Python is released, versions with the same tag may differ in their byte code.
    if not content.startswith(MAGIC_NUMBER):
        return False
    size = int.from_bytes(content[len(MAGIC_NUMBER) : HEAD], "little")
    code, index = marshal.loads(content[HEAD : HEAD + size])
    loader = {"__name__": "portwrap.bundle"}  # type: dict[str, object]
    exec(marshal.loads(code), loader)
    loader["install"](index, content, archive + SOURCES)  # type: ignore[operator]
    return True


def identity(archive):
    # type: (str) -> object
    try:
        status = os.stat(archive)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime


class Damaged(Exception):
    """Some of the file's bytes are not those that were built."""


def compare_sum(archive):
    # type: (str) -> None
    # A flipped bit in byte code may crash Python, and one in a source may change what it means.
    try:
        from zlib import crc32
    except ImportError:
        return  # a Python that was built without it
    with open(archive, "rb") as file:
        file.readline()
        wanted = file.readline()[8:16]  # written by pack.py
        total = 0
        for block in iter(lambda: file.read(BLOCK), b""):
            total = crc32(block, total)
    found = ("%08x" % total).encode("ascii")
    if found != wanted:
        raise Damaged("its checksum is %s, not %s" % (found.decode(), wanted.decode("latin-1")))


def refuse(archive, why, remedy):
    # type: (str, str, str) -> int
    sys.stderr.write("batchspawner-portwrap: %s %s\n  %s\n" % (archive, why, remedy))
    return 125


def load(archive):
    # type: (str) -> None
    import gc

    gc.disable()  # nothing of a start is garbage, and it ends with an exec
    let_ctrl_c_end_us()
    compare_sum(archive)
    if not use_byte_code(archive):
        # zipimport takes a folder inside an archive as an entry of sys.path, and never writes byte
        # code.
        sys.path.insert(0, archive + SOURCES)
        from portwrap.archive import compile_once

        compile_once()
    if len(sys.argv) > 1 and not WITHOUT_A_SESSION.intersection(sys.argv):
        from portwrap.launch import keeper_process

        keeper_process.begin("batchspawner-portwrap")
    import batchspawner_portwrap  # noqa: F401


def run(archive):
    # type: (str) -> int
    # zipimport reads the list of contents once and opens the file anew for each module. Where
    # another version stands there meanwhile, it finds nonsense, of whatever kind.
    before = identity(archive)
    loaded = False
    try:
        load(archive)
        loaded = True
        from batchspawner_portwrap import main

        return main()
    except Exception as error:
        if identity(archive) != before:
            why = "was replaced while it started: %s" % error
            return refuse(archive, why, "Start it again.")
        if isinstance(error, Damaged):
            return refuse(
                archive, "is damaged: %s" % error, "Copy it again and compare its sha256."
            )
        if not loaded:
            why = "cannot be loaded: %s: %s" % (type(error).__name__, error)
            return refuse(archive, why, NOT_LOADED)
        raise  # a fault of ours


if __name__ == "__main__":
    refuse_old_python()
    # Made absolute: we may not stay in this directory.
    sys.exit(run(os.path.dirname(os.path.abspath(__file__))))
