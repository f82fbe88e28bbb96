# mypy: ignore-errors
"""Servers of many protocols, each as much of it as a client needs: many_servers.py ADDRESS FOLDER

The folder has the pages, and certificate.pem with its key. Needs grpcio and pyzmq. Prints a line
when all of them listen.
"""

from __future__ import annotations

import os
import socket
import socketserver
import ssl
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import zmq

ADDRESS, FOLDER = sys.argv[1:]
HTTP, HTTPS, REDIS, POSTGRES, GRPC, ZMQ = 8000, 8443, 6379, 5432, 50051, 5555
BUCKETS = b"""<?xml version="1.0" encoding="UTF-8"?><ListAllMyBucketsResult><Buckets><Bucket>
<Name>a-page</Name></Bucket></Buckets><Owner><ID>1</ID></Owner></ListAllMyBucketsResult>"""


class Pages(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if not self.headers.get("Authorization", "").startswith("AWS4"):
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(BUCKETS)))
        self.end_headers()
        self.wfile.write(BUCKETS)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 4096


class Redis(socketserver.StreamRequestHandler):
    """Each command is an array of strings; +OK is an answer to all that a client asks first."""

    def handle(self) -> None:
        while True:
            head = self.rfile.readline()
            if not head:
                return
            words = []
            for _ in range(int(head[1:])):
                self.rfile.readline()
                words.append(self.rfile.readline().strip().upper())
            self.wfile.write(b"+a page\r\n" if words[0] == b"ECHO" else b"+OK\r\n")


class Postgres(socketserver.BaseRequestHandler):
    """Whoever asks gets in, and nothing else."""

    def handle(self) -> None:
        while True:
            (length,) = struct.unpack("!i", self.request.recv(4, socket.MSG_WAITALL))
            (code,) = struct.unpack("!i", self.request.recv(length - 4, socket.MSG_WAITALL)[:4])
            if code >> 16 == 3:
                break
            self.request.sendall(b"N")  # no encryption
        version = b"server_version\x0015.0\x00"
        encoding = b"client_encoding\x00UTF8\x00"
        self.request.sendall(b"R" + struct.pack("!ii", 8, 0))
        for setting in (version, encoding):
            self.request.sendall(b"S" + struct.pack("!i", 4 + len(setting)) + setting)
        self.request.sendall(b"Z" + struct.pack("!i", 5) + b"I")
        self.request.recv(99)


class Tcp(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def begin(server: Any) -> None:
    threading.Thread(target=server.serve_forever, daemon=True).start()


def serve_grpc() -> Any:
    def say(request: bytes, _: object) -> bytes:
        return b"a page"

    methods = {"Say": grpc.unary_unary_rpc_method_handler(say)}
    made = grpc.server(ThreadPoolExecutor(2))
    made.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Page", methods),))
    made.add_insecure_port(f"{ADDRESS}:{GRPC}")
    made.start()
    return made


os.chdir(FOLDER)
begin(Server((ADDRESS, HTTP), Pages))
secure = Server((ADDRESS, HTTPS), Pages)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("certificate.pem")
secure.socket = context.wrap_socket(secure.socket, server_side=True)
begin(secure)
begin(Tcp((ADDRESS, REDIS), Redis))
begin(Tcp((ADDRESS, POSTGRES), Postgres))
kept = serve_grpc()
questions = zmq.Context().socket(zmq.REP)
questions.bind(f"tcp://{ADDRESS}:{ZMQ}")
print("listening", flush=True)
while True:
    questions.recv()
    questions.send(b"a page")
