"""The loader: how the keeper's process begins, in an interpreter of its own that has nothing yet.

It forks, so that the keeper is no child of the command, and again: a child of the keeper compiles
the rooms that the launching process sends as text, until the keeper has all that it needs. So the
keeper is spared the memory that this takes, 1.5 MB that an interpreter does not give back.
"""

from __future__ import annotations

import marshal
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from io import BufferedReader, BufferedWriter
    from types import ModuleType
    from typing import Any, NoReturn


class Rooms:
    """The modules that the keeper runs, as they come from the child that compiles them."""

    def __init__(self, file: BufferedReader, child: int) -> None:
        self.file = file
        self.child = child
        self.unwanted: frozenset[str] = frozenset()
        self.package = sys.modules["portwrap"] = type(sys)("portwrap")

    def take(self) -> Any:
        """What comes next. Raises EOFError."""
        size = int.from_bytes(self.file.read(4), "little")
        data = self.file.read(size)
        if not data or len(data) < size:
            raise EOFError("the process that compiles its code has ended")
        return marshal.loads(data)

    def load(self, last: str) -> ModuleType:
        """Go on until the module of this name is loaded, and return it. Raises EOFError."""
        while True:
            name, code = self.take()
            if name in self.unwanted:
                continue
            module = sys.modules[f"portwrap.{name}"] = type(sys)(name)
            module.__package__ = "portwrap"
            setattr(self.package, name, module)
            exec(code, module.__dict__)
            if name == last:
                return module

    def close(self) -> None:
        """Want no more of them."""
        posix.kill(self.child, 9)
        posix.waitpid(self.child, 0)
        self.file.close()


def main(text: BufferedReader, lifeline: int) -> None:
    """Be the keeper that has this lifeline, and its rooms in this stream, as text."""
    try:
        if posix.fork():
            posix._exit(0)
        incoming, outgoing = posix.pipe()
        child = posix.fork()
    except OSError as error:
        return give_up(lifeline, error)
    if child == 0:
        compile_rooms(text, outgoing)
    posix.close(outgoing)
    posix.dup2(1, 0)  # /dev/null
    rooms = Rooms(open(incoming, "rb"), child)
    try:
        preparing = rooms.load("preparing")
    # the launching process is gone, or the child; or there is no descriptor left for a file of the
    # standard library
    except (EOFError, ImportError) as error:
        rooms.file.close()
        return give_up(lifeline, error)
    preparing.main(lifeline, rooms)


def give_up(number: int, error: Exception) -> None:
    """Tell the launching process why there is no keeper."""
    import _socket

    lifeline = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, number)
    try:
        lifeline.send(f"the keeper failed: {error}".encode("utf-8", "replace"))
    except OSError:
        pass  # it is gone


def compile_rooms(text: BufferedReader, outgoing: int) -> NoReturn:
    """In the child: pass on what machines read of each room."""
    try:
        # The lifeline, whose closing tells that the keeper has ended, and whatever the job's
        # programs have handed on: somebody may wait for its end.
        for descriptor in map(int, posix.listdir("/proc/self/fd")):
            if descriptor not in (text.fileno(), 2, outgoing):
                try:
                    posix.close(descriptor)
                except OSError:
                    pass  # that of the listing itself
        sources = marshal.load(text)
        with open(outgoing, "wb") as file:
            for name, source in sources:
                path = f"portwrap/{name}.py"
                code = compile(source, path, "exec", dont_inherit=True, optimize=2)
                pass_on(file, (name, code))
    finally:
        posix._exit(0)  # the keeper sees by the end of the pipe whether it has got all


def pass_on(file: BufferedWriter, thing: Any) -> None:
    data = marshal.dumps(thing)
    file.write(len(data).to_bytes(4, "little") + data)
    file.flush()
