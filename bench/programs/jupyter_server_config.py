"""The measured Jupyter server: an application behind jupyter-server-proxy, at /application/."""

from pathlib import Path

server = str(Path(__file__).with_name("raw_server.py"))
c = get_config()  # type: ignore[name-defined]  # noqa: F821
c.ServerProxy.servers = {
    "application": {
        "command": ["/usr/bin/python3", "-I", "-S", server, "127.0.0.1", "{port}"],
        "timeout": 30,
    }
}
