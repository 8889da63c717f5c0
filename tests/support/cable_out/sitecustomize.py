"""Cut off the network for every Python process that has this folder on its PYTHONPATH.

Addresses of this machine still work, because a notebook talks to its kernel. Every other host that
a program tries is written to the file that CABLE_OUT_LOG names.
"""

import errno
import os
import socket
import sys

OWN = {None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", socket.gethostname()}


def refuse(event, arguments):
    if event == "socket.connect":
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # a path is a local socket
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host in OWN:
        return
    if os.environ.get("CABLE_OUT_LOG"):
        with open(os.environ["CABLE_OUT_LOG"], "a", encoding="utf-8") as log:  # noqa: PTH123
            log.write(f"{host}\n")
    raise OSError(errno.ENETUNREACH, f"the network cable is out: {host}")


sys.addaudithook(refuse)
