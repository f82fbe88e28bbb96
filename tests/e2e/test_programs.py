"""Programs that connect to servers: each natively, or named here as not.

With `--network direct` nothing but a native connection leaves the session: a program that gets its
page there has got it natively. The controls are those that cannot, and have it by a network driver.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Iterator

import pytest
from networks import SERVER, Host
from ssh_site import Site

from conftest import TEST_ROOT, make_world_dir, why_namespaces_fail
from helpers import OWNER, PROJECT, SYSTEM_PATH, as_user, cannot, end, identity, needs, run_as
from sessions import unused_port

pytestmark = [pytest.mark.e2e, pytest.mark.apps, pytest.mark.timeout(300)]

PYTHON = TEST_ROOT / "versions" / "programs" / "bin" / "python"
PAGE = "a page"
URL = f"http://{SERVER}:8000/page"
CHROMIUM = "--headless --no-sandbox --disable-gpu --no-proxy-server --no-first-run --disable-quic"
NGINX = f"""
daemon off; pid nginx.pid; error_log stderr; events {{}}
http {{
    access_log off;
    {" ".join(f"{name}_temp_path tmp;" for name in ("client_body", "fastcgi", "uwsgi", "scgi"))}
    proxy_temp_path tmp;
    server {{ listen 127.0.0.1:8080; location / {{ proxy_pass http://{SERVER}:8000; }} }}
}}
"""
BY_NGINX = (
    "/usr/sbin/nginx -p . -c nginx.conf & until curl -sf http://127.0.0.1:8080/page; do :; done;"
    " kill $!; wait"
)
APT = (
    "apt-get -q -o Dir::Etc::sourcelist=$PWD/sources.list -o Dir::Etc::sourceparts=- "
    "-o Dir::State=$PWD/apt -o Dir::Cache=$PWD/apt -o Debug::NoLocking=1 update 2>&1 "
    "| grep -q '^Get:.*Packages' && echo a page"
)

NATIVE = {  # what the shell runs, in a folder of the owner's; it prints the page
    "curl": f"curl -sS {URL}",
    "curl, https": f"curl -sSk https://{SERVER}:8443/page",
    "wget": f"wget -qO- {URL}",
    "pip": f"pip download -q --no-deps --trusted-host {SERVER} -i http://{SERVER}:8000/simple page "
    "&& unzip -p page-1-py3-none-any.whl page.txt",
    "git, http": f"git clone -q http://{SERVER}:8000/pages.git made && cat made/page",
    "git, https": "git -c http.sslVerify=false clone -q"
    f" https://{SERVER}:8443/pages.git made && cat made/page",
    "git, ssh": "GIT_SSH_COMMAND='ssh -F ssh.conf' git clone -q site:{folder}/pages.git made"
    " && cat made/page",
    "ssh": "ssh -F ssh.conf site cat {folder}/page",
    "rsync, ssh": "rsync -e 'ssh -F ssh.conf' site:{folder}/page made && cat made",
    "rsync": f"rsync rsync://{SERVER}:8730/pages/page made && cat made",
    "requests": f"{{python}} {{programs}}/connected_by.py requests {SERVER}",
    "aiohttp, 50 at once": f"{{python}} {{programs}}/connected_by.py aiohttp {SERVER}",
    "grpcio": f"{{python}} {{programs}}/connected_by.py grpcio {SERVER}",
    "pyzmq": f"{{python}} {{programs}}/connected_by.py pyzmq {SERVER}",
    "psycopg": f"{{python}} {{programs}}/connected_by.py psycopg {SERVER}",
    "redis": f"{{python}} {{programs}}/connected_by.py redis {SERVER}",
    "boto3": f"{{python}} {{programs}}/connected_by.py boto3 {SERVER}",
    "node": f"node -e \"require('http').get('{URL}', a => a.pipe(process.stdout))\"",
    "Java HttpClient": f"java -cp {{built}} HttpClientOnce {URL}",
    "Java NIO, registered early": f"java -cp {{built}} RegisteredEarly {SERVER} 8000 /page",
    "Go net/http, 1,000 dials": f"{{built}}/many_dials {URL} 1000",
    "Rust": f"{{built}}/fetch {SERVER}:8000 /page",
    "Boost.Asio": f"{{built}}/asio_client {SERVER} 8000 /page",
    "nginx, as a proxy": BY_NGINX,
    "Chromium": f"chromium {CHROMIUM} --user-data-dir=$PWD/profile --dump-dom {URL}.html",
    "apt": APT,
}
NOT_NATIVE = {
    "curl, from the driver's address": f"curl -sS --interface 198.18.2.100 {URL}",
    "a socket that a child has too": "{python} {programs}/shared_socket.py " + f"{SERVER} 8000",
}
BUILDS = {
    "HttpClientOnce.class": "javac -d {built} {programs}/HttpClientOnce.java",
    "RegisteredEarly.class": "javac -d {built} {programs}/RegisteredEarly.java",
    "many_dials": "CGO_ENABLED=0 GO111MODULE=off GOCACHE={built}/go go build -o {built}/many_dials"
    " {programs}/many_dials.go",
    "fetch": "rustc -o {built}/fetch {programs}/fetch.rs",
    "asio_client": "g++ -O1 -pthread -o {built}/asio_client {programs}/asio_client.cpp",
}


class World:
    """Servers on one host; a home on another one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pages, self.built, self.home = (folder / name for name in ("pages", "built", "home"))
        for made in (self.pages, self.built, self.home, folder / "ssh"):
            made.mkdir()
        self.programs = Path(shutil.copytree(PROJECT / "tests" / "programs", folder / "programs"))
        with ExitStack() as stack:
            self.host = Host()
            stack.callback(self.host.close)
            self.site = Site(self.host, folder / "ssh")
            stack.callback(self.site.close)
            self.write_pages()
            with self.host.entered(self.host.server):
                program = self.programs / "many_servers.py"
                servers = as_user(OWNER, [PYTHON, program, SERVER, self.pages])
                stack.callback(end, servers)
                rsync = ["rsync", "--daemon", "--no-detach", f"--config={folder}/rsyncd.conf"]
                words = [*rsync, f"--address={SERVER}", "--port=8730"]
                stack.callback(end, as_user(OWNER, words))
            assert servers.stdout is not None and servers.stderr is not None
            assert servers.stdout.readline() == "listening\n", servers.stderr.read()
            self.stack = stack.pop_all()

    def close(self) -> None:
        self.stack.close()

    def write_pages(self) -> None:
        for name in ("page", "page.html"):
            (self.pages / name).write_text(PAGE)
        (self.pages / "simple" / "page").mkdir(parents=True)
        wheel = "page-1-py3-none-any.whl"
        link = f'<a href="{wheel}">{wheel}</a>'
        (self.pages / "simple" / "page" / "index.html").write_text(link)
        with zipfile.ZipFile(self.pages / "simple" / "page" / wheel, "w") as packed:
            packed.writestr("page.txt", PAGE)
            packed.writestr(
                "page-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: page\nVersion: 1\n"
            )
            packed.writestr("page-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            packed.writestr("page-1.dist-info/RECORD", "")
        (self.pages / "apt").mkdir()
        (self.pages / "apt" / "Packages").write_text(
            "Package: page\nVersion: 1\nArchitecture: all\n"
        )
        module = f"[pages]\npath = {self.pages}\nuse chroot = no\nlog file = /dev/null\n"
        (self.folder / "rsyncd.conf").write_text(module)
        self.shell(
            "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=pages -keyout key.pem"
            " -out certificate.pem 2>/dev/null && cat key.pem >>certificate.pem",
            f"git init -q {self.folder}/work && cp page {self.folder}/work",
            f"cd {self.folder}/work && git add page"
            " && git -c user.name=me -c user.email=me commit -qm page",
            f"git clone -q --bare {self.folder}/work pages.git",
            "git -C pages.git update-server-info",
        )
        shutil.rmtree(self.folder / "work")
        ids = identity(OWNER)
        for path in (self.home, *self.pages.rglob("*"), self.pages):
            os.chown(path, ids["user"], ids["group"])

    def shell(self, *lines: str) -> None:
        for line in lines:
            subprocess.run(["sh", "-c", line], cwd=self.pages, check=True)

    def fill(self, text: str) -> str:
        places = {"folder": self.pages, "built": self.built, "programs": self.programs}
        places["python"] = PYTHON
        for name, path in places.items():
            text = text.replace(f"{{{name}}}", str(path))
        return text

    def run(self, pyz: Path, script: str, network: str) -> subprocess.CompletedProcess[str]:
        """Run this in a session, in an empty folder."""
        shutil.rmtree(self.home)
        self.home.mkdir()
        (self.home / "tmp").mkdir()
        (self.home / "apt" / "lists" / "partial").mkdir(parents=True)
        (self.home / "nginx.conf").write_text(NGINX)
        (self.home / "ssh.conf").write_text(self.site.settings)
        (self.home / "sources.list").write_text(f"deb [trusted=yes] http://{SERVER}:8000/apt ./\n")
        ids = identity(OWNER)
        for path in (self.home, *self.home.rglob("*")):
            os.chown(path, ids["user"], ids["group"])
        words: list[str | Path] = [
            pyz,
            "--port",
            str(unused_port()),
            "--network",
            network,
            "env",
            "G={guest-port}",
        ]
        environ = {"HOME": str(self.home), "TMPDIR": str(self.home / "tmp"), "PATH": SYSTEM_PATH}
        with self.host.entered(self.host.host):
            return run_as(
                OWNER,
                [*words, "sh", "-c", self.fill(script)],
                seconds=120,
                extra_env=environ,
                cwd=self.home,
            )


@pytest.fixture(scope="module")
def world(pyz: Path) -> Iterator[World]:
    reason = why_namespaces_fail()
    if not reason and not PYTHON.exists():
        reason = f"not installed: {PYTHON}; tests/setup.sh matrix installs it"
    if reason:
        cannot(reason)
    needs("curl", "wget", "git", "rsync", "node", "openssl", "unzip", "chromium")
    folder = make_world_dir()
    try:
        made = World(folder)
        try:
            yield made
        finally:
            made.close()
    finally:
        shutil.rmtree(folder)


def build(world: World, script: str) -> None:
    """What it runs, if that has to be compiled."""
    for name, command in BUILDS.items():
        if name.partition(".")[0] in script and not (world.built / name).exists():
            needs(
                command.replace("CGO_ENABLED=0 GO111MODULE=off GOCACHE={built}/go ", "").split()[0]
            )
            world.shell(world.fill(command))


@pytest.mark.parametrize("program", NATIVE)
def test_a_program_is_native(world: World, pyz: Path, program: str) -> None:
    build(world, NATIVE[program])
    result = world.run(pyz, NATIVE[program], "direct")
    assert PAGE in result.stdout, result


@pytest.mark.parametrize("program", NOT_NATIVE)
def test_a_program_that_is_not(world: World, pyz: Path, program: str) -> None:
    """The controls: it fails where nothing but native connections leave the session."""
    result = world.run(pyz, NOT_NATIVE[program], "direct")
    assert PAGE not in result.stdout and result.returncode != 0
    result = world.run(pyz, NOT_NATIVE[program], "slirp4netns")
    assert PAGE in result.stdout, result
