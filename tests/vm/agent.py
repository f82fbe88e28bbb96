"""Runs in the virtual machine and does what the tests ask for: a line of JSON for each request and
for each answer, over a port of virtio-serial. Each request has a process of its own."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import signal
import subprocess
from typing import Any

PORT = "/dev/virtio-ports/tests"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # as a login of root has it


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    with open(PORT, "rb+", buffering=0) as port:
        answer(port, {"ready": os.uname().release})
        requests = b""
        while True:
            requests += port.read(65536)
            *lines, requests = requests.split(b"\n")
            for line in lines:
                if os.fork() == 0:
                    try:
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                        answer(port, done(json.loads(line)))
                    finally:
                        os._exit(0)


def done(request: dict[str, Any]) -> dict[str, Any]:
    if "path" in request:
        return {"id": request["id"], **written(request)}
    return {"id": request["id"], **run(request)}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """The output goes into files: what the command leaves behind may keep it open."""
    account = request["account"]
    become = ["setpriv", f"--reuid={account}", f"--regid={account}", "--init-groups"]
    words = [*(become if account != "root" else []), *request["argv"]]
    home = "/root" if account == "root" else f"/home/{account}"
    environ = {"PATH": PATH, "HOME": home, "USER": account, "LC_ALL": "C.UTF-8"}
    files = [os.open("/tmp", os.O_TMPFILE | os.O_RDWR, 0o600) for _ in range(2)]
    result = subprocess.run(
        words,
        env={**environ, **request["environ"]},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=files[0],
        stderr=files[1],
        start_new_session=True,
    )
    output, errors = (os.pread(file, os.fstat(file).st_size, 0).decode() for file in files)
    return {"status": result.returncode, "output": output, "errors": errors}


def written(request: dict[str, Any]) -> dict[str, Any]:
    """Replaces the file as a whole: the old one may be running."""
    os.makedirs(os.path.dirname(request["path"]), exist_ok=True)
    new = request["path"] + ".new"
    with open(new, "wb") as file:
        file.write(base64.b64decode(request["content"]))
    os.chmod(new, request["mode"])
    os.rename(new, request["path"])
    return {"status": 0, "output": "", "errors": ""}


def answer(port: Any, facts: dict[str, Any]) -> None:
    line = json.dumps(facts).encode() + b"\n"
    with open("/run/tests-agent.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # processes answer at the same time
        while line:
            line = line[port.write(line) :]


if __name__ == "__main__":
    main()
