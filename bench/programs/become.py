#!/usr/bin/python3
"""Become the words that follow: become.py WORD ...

{service-port} in them is the port of JUPYTERHUB_SERVICE_URL. For commands that are not written in
Python, under a batchspawner-singleuser that runs what it is given in its own interpreter.
"""

from __future__ import annotations

import os
import sys
from urllib.parse import urlsplit

port = str(urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"]).port)
words = [word.replace("{service-port}", port) for word in sys.argv[1:]]
os.execvp(words[0], words)
