"""Cut off the network for every Python process that has this folder on its PYTHONPATH.

Addresses of this machine still work, because a notebook talks to its kernel. Every other host that
a program tries is written to the file that CABLE_OUT_LOG names.
"""

import errno
import os
import socket

OWN = {None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", socket.gethostname()}


def _refuse(host):
    if os.environ.get("CABLE_OUT_LOG"):
        with open(os.environ["CABLE_OUT_LOG"], "a", encoding="utf-8") as log:  # noqa: PTH123
            log.write(f"{host}\n")
    raise OSError(errno.ENETUNREACH, f"the network cable is out: {host}")


def _host(address):
    return address[0] if isinstance(address, tuple) else None  # a path is a local socket


class Socket(socket.socket):
    def connect(self, address):
        if _host(address) not in OWN:
            _refuse(_host(address))
        return super().connect(address)

    def connect_ex(self, address):
        if _host(address) not in OWN:
            _refuse(_host(address))
        return super().connect_ex(address)


def getaddrinfo(host, *arguments, _look_up=socket.getaddrinfo, **more):
    if (host.decode() if isinstance(host, bytes) else host) not in OWN:
        _refuse(host)
    return _look_up(host, *arguments, **more)


socket.socket = Socket
socket.getaddrinfo = getaddrinfo
