"""Which requests a local server answers: those of its own pages and of programs, not of other sites.

Any web page may send requests to 127.0.0.1 from the browser that shows it. Its Origin gives it away.
A page whose name was pointed at 127.0.0.1 (DNS rebinding) has a matching Origin, but that name is in
the Host header.
"""

import ipaddress
import re
import socket


def refusal(host: str | None, origin: str | None, served: str) -> str | None:
    """Return why to refuse a request, or None to answer it.

    Args:
        host: the request's Host header.
        origin: its Origin header. Only browsers send one.
        served: the address that the server listens on, as the user gave it.
    """
    if not _is_own_name(host or "", served):
        return f"Host {host}: expected an IP address, localhost or the name of this machine"
    if origin is not None and origin.lower().partition("://")[2] != str(host).lower():
        return f"Origin {origin}: expected a request of this server's own page"
    return None


def _is_own_name(host: str, served: str) -> bool:
    matched = re.fullmatch(r"(\[[0-9a-f:]+\]|[\w.-]+)(:\d+)?", host.lower())
    name = matched[1] if matched else ""
    if name and name in ("localhost", served.lower(), socket.gethostname().lower()):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))  # no name, so nobody can point it elsewhere
    except ValueError:
        return False
    return True
