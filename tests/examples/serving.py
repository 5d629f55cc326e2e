"""Serves the commands that the example's steps call.

A step calls a dozen commands, each of which would take seconds to import fairseq. Instead each is a small program that
has a process do it that is forked from one with fairseq imported: with its arguments, directory, environment and
standard streams, and ends with that one's exit status. All else of a step is as its user has it.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import socket
import sys
import tempfile
from functools import cache
from multiprocessing.connection import wait
from multiprocessing.reduction import DupFd
from pathlib import Path
from threading import Thread
from typing import Any

from tests.helpers.entry_points import ENTRY_POINTS, run_command
from tests.helpers.forking import context

STREAMS = (0, 1, 2)
CLIENT = f"""#!{sys.executable} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({{address!r}})
message = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [b"%8d" % len(message)], {STREAMS})
server.sendall(message)
status = server.recv(1)
sys.exit(status[0] if status else 137)
"""


@cache
def serve() -> Path:
    """Start to serve, for as long as this process lives, and return the directory to put first on the path."""
    directory = Path(tempfile.mkdtemp(prefix="commands-"))
    atexit.register(shutil.rmtree, directory)
    address = str(directory / "socket")
    for name in ENTRY_POINTS:
        client = directory / name
        client.write_text(CLIENT.format(address=address))
        client.chmod(0o755)
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    Thread(target=_accept, args=(server,), daemon=True).start()
    return directory


def _accept(server: socket.socket) -> None:
    while True:
        connection, _ = server.accept()
        Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    """Run what a client asks for; end it if the client ends first."""
    with connection:
        length, streams, _, _ = socket.recv_fds(connection, 8, len(STREAMS))
        message = json.loads(connection.makefile("rb").read(int(length)))
        process = context.Process(target=_be, args=(*message, [DupFd(each) for each in streams]))
        process.start()
        for each in streams:
            os.close(each)
        wait([process.sentinel, connection])
        if process.is_alive():
            process.kill()
        process.join()
        if process.exitcode is not None and process.exitcode >= 0:
            connection.sendall(bytes([process.exitcode]))


def _be(command: list[str], directory: str, environment: dict[str, str], streams: list[Any]) -> None:
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    first, second, third = (each.detach() for each in streams)
    run_command(command, (first, second, third))
