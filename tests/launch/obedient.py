"""The process that the contract's tests start: it does what a message says. See `test_contract.py`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from dynbench.launch.channel import Channel, end_with_parent, parent_channel

at_start = dict(os.environ)


def serve(channel: Channel) -> None:
    """Answers until the input ends."""
    interrupted: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: interrupted.append(number))
    for message in channel:
        match message["do"]:
            case "echo":
                channel.send({"echo": message["what"]})
            case "events":
                for n in range(message["count"]):
                    channel.send({"event": n})
                channel.send({"event": "done"})
            case "print":
                print("not a message", flush=True)
                os.write(1, b"neither is this\n")
                channel.send({"read": sys.stdin.read()})
            case "facts":
                named = {name: at_start.get(name) for name in message["names"]}
                channel.send({"pid": os.getpid(), "environment": named, "folder": os.getcwd()})
            case "child":
                channel.send({"pid": subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid})
            case "exit":
                print(message["words"], file=sys.stderr, flush=True)
                os._exit(message["code"])
            case "die":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "garble":
                os.write(channel.write_fd, b"no JSON\n[1]\n")
            case "spin":
                while True:
                    pass
            case "hang":
                time.sleep(600)
            case "until interrupted":
                channel.send({"waiting": True})
                while not interrupted:
                    time.sleep(0.01)
                channel.send({"interrupted": len(interrupted)})


if __name__ == "__main__":
    to_parent = parent_channel()
    end_with_parent(to_parent)
    serve(to_parent)
