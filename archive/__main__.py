"""Start of the archive: put our packages on the path and run, all out of the zip file.

Replaces shiv's own start, which would unpack to the home directory first. It parses on every
Python since 2.7, so that an old one gets a sentence and not a SyntaxError.
"""

import os
import sys


def refuse_old_python():
    # type: () -> None
    if sys.version_info < (3, 8):
        message = "batchspawner-portwrap: needs Python 3.8 or newer, this is %s (%s)\n"
        version = ".".join(str(part) for part in sys.version_info[:3])
        sys.stderr.write(message % (version, sys.executable or os.readlink("/proc/self/exe")))
        sys.exit(125)


def let_ctrl_c_end_us():
    # type: () -> None
    # Python turns SIGINT into KeyboardInterrupt: a traceback, if it comes during an import.
    # An inherited "ignore" stays. (`signal` would import `enum`; `_signal` is built in.)
    import _signal

    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)


def import_from_archive():
    # type: () -> None
    # zipimport takes a directory inside an archive as an entry of sys.path, and never writes
    # byte code. The path is made absolute: we may not stay in this directory.
    archive = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, archive + "/site-packages")


if __name__ == "__main__":
    refuse_old_python()
    let_ctrl_c_end_us()
    import_from_archive()

    from batchspawner_portwrap import main

    sys.exit(main())
