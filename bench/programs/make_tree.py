"""Make a folder of small files, a git repository if git is there: make_tree.py FOLDER COUNT"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

LEAF = 100  # files of one folder
OLD = 1_500_000_000  # git reads files anew that are as young as its index


def git(*words: str) -> None:
    identity = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")
    subprocess.run(["git", *identity, *words], cwd=top, stdout=sys.stderr, check=True)


top, count = sys.argv[1], int(sys.argv[2])
for number in range(count):
    folder = os.path.join(top, f"folder{number // LEAF}")
    if number % LEAF == 0:
        os.makedirs(folder)
    path = os.path.join(folder, f"file{number % LEAF}.txt")
    with open(path, "w") as file:
        file.write("The quick brown fox jumps over the lazy dog.\n" * 10)
    os.utime(path, (OLD, OLD))
if shutil.which("git"):
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "all")
    git("status", "--short")  # which completes its index
print("made", flush=True)
