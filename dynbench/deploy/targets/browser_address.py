"""At which addresses other devices reach this machine, and a QR code of one for the terminal."""

from __future__ import annotations

import io
import ipaddress
import socket

import psutil

VIRTUAL = ("docker", "br-", "veth", "virbr", "vmnet", "cni", "flannel", "podman", "lxc", "lxd")


def lan_addresses() -> list[str]:
    """IPv4 addresses of this machine that other devices may reach, the most likely one first.

    Bridges of containers and virtual machines are left out, and so is the loopback.
    """
    states = psutil.net_if_stats()
    found = []
    for name, addresses in psutil.net_if_addrs().items():
        if name.startswith(VIRTUAL) or (name in states and not states[name].isup):
            continue
        for address in addresses:
            if address.family == socket.AF_INET:
                ip = ipaddress.ip_address(address.address)
                if not (ip.is_loopback or ip.is_link_local or ip.is_unspecified):
                    found.append(address.address)
    first = _outward()
    return sorted(dict.fromkeys(found), key=lambda address: address != first)


def _outward() -> str | None:
    """The address of the interface that leads outward. Nothing is sent to find out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))  # an address for documentation (RFC 5737)
            return str(probe.getsockname()[0])
        except OSError:  # there is no network
            return None


def links(host: str, port: int, token: str) -> list[str]:
    """The links that open the page, the most likely one first.

    Args:
        host: where the server listens; empty or a wildcard: everywhere.
        port: of the server.
        token: that the link must hold.
    """
    everywhere = host in ("", "0.0.0.0", "::")
    hosts = [*lan_addresses(), "localhost"] if everywhere else [host]
    return [f"http://{f'[{h}]' if ':' in h else h}:{port}/{token}/" for h in hosts]


def qr_code(link: str) -> str:
    """A QR code of half blocks, for a dark terminal as well as for a light one."""
    import segno

    out = io.StringIO()
    segno.make(link, error="l", micro=False).terminal(out=out, border=2, compact=True)
    return out.getvalue().rstrip("\n")
