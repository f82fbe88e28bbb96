"""JUPYTERHUB_SERVICE_URL, as JupyterHub writes it and as batchspawner breaks it."""

from __future__ import annotations

import pytest

from batchspawner_portwrap import ServiceUrl


@pytest.mark.parametrize(
    ("text", "address", "port", "inside"),
    [
        ("http://127.0.0.1:1234/", "127.0.0.1", 1234, "http://127.0.0.1:8888/"),
        ("http://0.0.0.0:1234/user/a/", "0.0.0.0", 1234, "http://127.0.0.1:8888/user/a/"),
        ("https://node7:1234/x", "node7", 1234, "https://127.0.0.1:8888/x"),
        ("http://:1234/", "", 1234, "http://127.0.0.1:8888/"),
        ("http://*:1234/", "", 1234, "http://127.0.0.1:8888/"),
        ("http://[::]:1234/", "::", 1234, "http://127.0.0.1:8888/"),
        ("http://[::1]:1234/", "::1", 1234, "http://127.0.0.1:8888/"),
        ("http://[fe80::1%eth0]:1234/", "fe80::1%eth0", 1234, "http://127.0.0.1:8888/"),
        # what batchspawner makes of a host in brackets, and of none
        ("http://:::1234/", "::", 1234, "http://127.0.0.1:8888/"),
        ("http://::1:1234/", "::1", 1234, "http://127.0.0.1:8888/"),
        ("http://None:1234/", "", 1234, "http://127.0.0.1:8888/"),
        # without a port, or with one that is none
        ("http://127.0.0.1/", "127.0.0.1", None, "http://127.0.0.1:8888/"),
        ("http://127.0.0.1:0/", "127.0.0.1", None, "http://127.0.0.1:8888/"),
        ("http://127.0.0.1:/", "127.0.0.1", None, "http://127.0.0.1:8888/"),
        ("http://127.0.0.1:None/", "127.0.0.1", None, "http://127.0.0.1:8888/"),
        ("http://[::]/", "::", None, "http://127.0.0.1:8888/"),
        ("http://None/", "", None, "http://127.0.0.1:8888/"),
        ("http://", "", None, "http://127.0.0.1:8888"),
        # without a scheme, or without a path
        ("127.0.0.1:1234/x", "127.0.0.1", 1234, "http://127.0.0.1:8888/x"),
        ("http://127.0.0.1:1234", "127.0.0.1", 1234, "http://127.0.0.1:8888"),
        # the rest stays as it is
        ("http://h:1/user/a%40b/?x=1&y=:2/#z", "h", 1, "http://127.0.0.1:8888/user/a%40b/?x=1&y=:2/#z"),
        ("http://h:1/a://b:2/", "h", 1, "http://127.0.0.1:8888/a://b:2/"),
        ("http://h:1?x=/2", "h", 1, "http://127.0.0.1:8888?x=/2"),
    ],
)  # fmt: skip
def test_parts(text: str, address: str, port: int | None, inside: str) -> None:
    url = ServiceUrl(text)
    assert url.bind_address == address
    assert url.host_port == port
    assert url.with_place("127.0.0.1", 8888) == inside
