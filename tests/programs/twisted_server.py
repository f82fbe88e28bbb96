"""A Twisted server that stops listening after each client and starts again: ADDRESS PORT."""

# Twisted is in the virtual environment of servers, not in that of the linters.
# mypy: disable-error-code="import-not-found, misc, unused-ignore"

from __future__ import annotations

import json
import os
import sys

from twisted.internet import protocol, reactor


class Answer(protocol.Protocol):
    """As server.py."""

    def connectionMade(self) -> None:
        own = self.transport.getHost()
        self.transport.write(json.dumps({"pid": os.getpid(), "own": [own.host, own.port]}).encode())
        self.transport.loseConnection()
        if port.connected:
            port.stopListening().addCallback(lambda _: port.startListening())


port = reactor.listenTCP(
    int(sys.argv[2]), protocol.Factory.forProtocol(Answer), interface=sys.argv[1]
)
reactor.run()
