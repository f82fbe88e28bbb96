"""Start of the archive: put our packages on the path and run, all out of the zip file.

Replaces shiv's own start, which would unpack to the home directory first. It parses on every
Python since 2.7, so that an old one gets a sentence and not a SyntaxError.
"""

import os
import sys

WITHOUT_A_SESSION = frozenset(("-h", "--help", "--version", "--check"))


def refuse_old_python():
    # type: () -> None
    if sys.version_info < (3, 8):
        message = "batchspawner-portwrap: needs Python 3.8 or newer, this is %s (%s)\n"
        message += "  Run it by the Python of batchspawner-singleuser: /path/of/python3 %s ...\n"
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


def import_from(archive):
    # type: (str) -> None
    # zipimport takes a directory inside an archive as an entry of sys.path, and never writes
    # byte code.
    from zipimport import zipimporter

    class Importer(zipimporter):
        def get_filename(self, fullname):
            # type: (str) -> str
            # Asked for each module, and zipimport itself compiles the module to answer: twice the
            # work, a fifth of a start.
            if self.archive != archive:
                return zipimporter.get_filename(self, fullname)
            module = self.prefix + fullname.rpartition(".")[2]
            end = "/__init__.py" if self.is_package(fullname) else ".py"
            return self.archive + "/" + module + end

    sys.path_hooks.insert(0, Importer)
    sys.path.insert(0, archive + "/site-packages")


def identity(archive):
    # type: (str) -> object
    try:
        status = os.stat(archive)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime


def run(archive):
    # type: (str) -> int
    # zipimport reads the list of contents once and opens the file anew for each module. Where
    # another version stands there meanwhile, it finds nonsense, of whatever kind.
    before = identity(archive)
    try:
        if len(sys.argv) > 1 and not WITHOUT_A_SESSION.intersection(sys.argv):
            from portwrap.launch import lifeline

            lifeline.begin("batchspawner-portwrap")
        from batchspawner_portwrap import main

        return main()
    except Exception as error:
        if identity(archive) == before:
            raise
        message = "batchspawner-portwrap: %s was replaced while it started: %s\n  Start it again.\n"
        sys.stderr.write(message % (archive, error))
        return 125


if __name__ == "__main__":
    refuse_old_python()
    let_ctrl_c_end_us()
    # Made absolute: we may not stay in this directory.
    path = os.path.dirname(os.path.abspath(__file__))
    import_from(path)
    sys.exit(run(path))
