"""What a service has alone on its machine, its state directory and its port: taken, or refused and why."""

import contextlib
import errno
import fcntl
import os
import socket
import time
from pathlib import Path

BACKLOG = 2048


class CannotStart(Exception):
    """The service cannot run like this; the message is for the user."""


def claim(folder: Path) -> int:
    """Take the state directory; it is given back when this process ends, however it ends."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise CannotStart(
            f"cannot keep state in {folder}: {error.strerror}; choose another folder with --state-dir"
        ) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(fd, 32).decode().strip()
        os.close(fd)
        raise CannotStart(
            f"{folder} is in use by another `millrace up` (pid {pid}); choose another --port or --state-dir"
        ) from None
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    return fd


def held(folder: Path, fd: int) -> bool:
    """Whether it is still taken by this descriptor: who finds no lock there, or another, takes it too."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), (folder / "lock").stat())
    return False


def reclaim(folder: Path, fd: int) -> None:
    """Take it once more, with the same descriptor, where somebody has removed it."""
    if held(folder, fd):
        return
    fresh = claim(folder)
    os.dup2(fresh, fd, inheritable=False)
    os.close(fresh)


def listen(host: str, port: int) -> socket.socket:
    """The socket all gateways accept on. It stays open here, so that no connection is refused while one of
    them is replaced."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        socket.socket(family, kind).close()  # there may be no IPv6 at all
    except OSError as error:
        raise CannotStart(f"--host {host}: {error.strerror}") from None
    if _cut_off(host):
        raise CannotStart(f"--host {host}: nobody here can reach it; is the loopback interface up?")
    # Processes of a service that was killed a moment ago may still be ending.
    for left in reversed(range(10)):
        sock = socket.socket(family, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
            sock.listen(BACKLOG)
            return sock
        except OSError as error:
            sock.close()
            if error.errno != errno.EADDRINUSE or not left:
                taken = error.errno in (errno.EADDRINUSE, errno.EACCES)  # by another, or for root alone
                hint = "; choose another with --port" if taken else ""
                raise CannotStart(f"cannot listen on {host} port {port}: {error.strerror}{hint}") from None
        time.sleep(0.05)
    raise AssertionError("unreachable")


def _cut_off(host: str) -> bool:
    """Whether this machine has no way to its own address, as in a network namespace that nobody set up:
    there it can be listened on all the same."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(reached(host), 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as way:
            way.connect(address)  # this sends nothing
    except OSError as error:
        return error.errno == errno.ENETUNREACH
    return False


def reached(host: str) -> str:
    """By which address a client on this machine comes to what listens on that one. Where IPv6 is off, `::` is
    IPv4 alone."""
    any_6 = "::1" if _is_ours("::1") else "127.0.0.1"
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": any_6}.get(host, host)  # noqa: S104 (not a bind)


def public_url(host: str, port: int) -> str:
    """An address to paste into a client on this machine."""
    host = reached(host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_ours(address: str) -> bool:
    """Whether this machine has that address of IPv6."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind((address, 0))
    except OSError:
        return False
    return True
