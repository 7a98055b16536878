"""A `python` that has the fork server run its words; it imports nothing but a few modules of the library."""

import array
import json
import os
import socket
import sys


def send(connection: socket.socket, request: "dict[str, object]", files: "list[int]") -> None:
    """Send a request with the standard input, output and error of the process that it asks for."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
    text = json.dumps(request).encode() + b"\n"
    sent = connection.sendmsg([text], rights)
    connection.sendall(text[sent:])


def line(connection: socket.socket) -> bytes:
    """Return the next answer: the number of the process or its exit code, and the seconds of processors it used."""
    text = b""
    while not text.endswith(b"\n") and (more := connection.recv(1)):
        text += more
    return text or b"-9 0"


def main() -> None:
    """Run this command in a fork of the server to its end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(os.environ["FORK_SERVER"])
        request = {
            "words": sys.argv,
            "folder": os.getcwd(),  # noqa: PTH109  (pathlib takes long to import)
            "environment": dict(os.environ),
            "umask": -1,
            "group": False,
        }
        send(connection, request, [0, 1, 2])
        line(connection)
        code = int(line(connection).split()[0])
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
