"""Listens to what a pool sends over the loopback device: which of some values can be read there."""

from __future__ import annotations

import ctypes
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_ALL_PROTOCOLS = 0x0003  # ETH_P_ALL
_SO_RCVBUFFORCE, _SO_ATTACH_FILTER = 33, 26
_SOL_PACKET, _PACKET_STATISTICS = 263, 6


class Sniffer:
    """What was heard: `found`, the values that were on the wire in clear; `packets`, how many were heard."""

    def __init__(self, port: int, values: Sequence[bytes]) -> None:
        self.found: set[bytes] = set()
        self.packets = self.lost = 0
        self._values = values
        self._over = threading.Event()
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        _listen_to(self._socket, port)
        self._socket.bind(("lo", 0))
        self._socket.settimeout(0.1)
        self._thread = threading.Thread(target=self._run, name="sniffer", daemon=True)

    def _run(self) -> None:
        tails: dict[bytes, bytes] = {}  # the end of what each connection sent, for a value in two packets
        while True:
            try:
                packet = self._socket.recv(1 << 17)
            except TimeoutError:
                if self._over.is_set():
                    return
                continue
            self.packets += 1
            sender = packet[26:38]
            text = tails.get(sender, b"") + packet[54:]
            self.found |= {value for value in self._values if value in text}
            tails[sender] = text[-200:]

    def start(self) -> None:
        """Listen from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Until all has been heard that was sent by now."""
        self._over.set()
        self._thread.join(30)
        _, self.lost = struct.unpack("II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        self._socket.close()


def _listen_to(listener: socket.socket, port: int) -> None:
    """A filter in the kernel: TCP over IPv4, to or from this port."""
    program = [
        (0x28, 0, 0, 12),  # the kind of packet
        (0x15, 0, 8, 0x0800),
        (0x30, 0, 0, 23),  # its protocol
        (0x15, 0, 6, 6),
        (0xB1, 0, 0, 14),  # the length of its IP header
        (0x48, 0, 0, 14),
        (0x15, 2, 0, port),
        (0x48, 0, 0, 16),
        (0x15, 0, 1, port),
        (0x06, 0, 0, 0x40000),
        (0x06, 0, 0, 0),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    listener.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    )


@contextmanager
def sniffing(port: int, *values: str) -> Iterator[Sniffer]:
    """Listens while the block runs; what was heard is known behind it."""
    sniffer = Sniffer(port, [value.encode() for value in values])
    sniffer.start()
    try:
        yield sniffer
    finally:
        sniffer.stop()
