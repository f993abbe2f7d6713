"""Ports of this machine: ports.py FIRST prints the first from there on that nobody has."""

from __future__ import annotations

import itertools
import socket
import sys
import time

HERE = "127.0.0.1"
PATIENCE_S = 30.0


def is_free(port: int) -> bool:
    """May a server have it? A kernel may have given it to a client, for as long as its connection lasts."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HERE, port))
            tried.listen()
        except OSError:
            return False
        return True


def wait_until_free(port: int) -> None:
    """Wait for whoever has it, for a while: what uses the port next says what is wrong."""
    end = time.monotonic() + PATIENCE_S
    while not is_free(port) and time.monotonic() < end:
        time.sleep(0.1)


if __name__ == "__main__":
    print(next(port for port in itertools.count(int(sys.argv[1])) if is_free(port)))
