"""Where the server listens, and who can reach it there."""

import ipaddress
import os
import socket

from chatgot.errors import ConfigError


def is_loopback(host: str) -> bool:
    """Return whether a host is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """Return whether a host stands for all addresses of this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return host == ""


def in_address(host: str) -> str:
    """Return a host as it is written in an address: an IPv6 one in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound, not yet listening; port 0: a free one.

    Raises: ConfigError.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"--host {host}: no such address: {error.strerror}") from error
    taken = socket.socket(family, kind, protocol)
    try:
        if os.name != "nt":  # there it would let two servers have one port
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        taken.close()
        raise ConfigError(
            f"{in_address(host)}:{port} cannot be listened on: {error.strerror}; "
            "choose another --port, or 0 for a free one"
        ) from error
    return taken


def address_of(host: str, taken: socket.socket) -> str:
    """Return the address of the page, as a browser on this machine takes it."""
    name = "127.0.0.1" if is_wildcard(host) else in_address(host)
    return f"http://{name}:{taken.getsockname()[1]}/"
