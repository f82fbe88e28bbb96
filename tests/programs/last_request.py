"""A server on the port of its argument that answers one request, once it has been told to end.

It says "ready" when it listens and "in flight" when it has the request; on SIGTERM it answers with
a megabyte, closes and says "clean".
"""

import signal
import socket
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
    print("ready", flush=True)
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        print("in flight", flush=True)
        signal.sigwait({signal.SIGTERM})
        body = b"x" * 1_000_000
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
print("clean", flush=True)
