"""What starts a process, and where; how messages go to it and come from it; how its end is noticed."""

from dynbench.launch.environment import THREAD_VARIABLES, thread_environment
from dynbench.launch.forks import ForkedProcess, ForkServer
from dynbench.launch.launcher import PROTOCOL, Launcher, Process, ProcessLost
from dynbench.launch.local import LocalLauncher, LocalProcess

LAUNCHERS: dict[str, Launcher] = {"local": LocalLauncher()}

__all__ = [
    "LAUNCHERS",
    "PROTOCOL",
    "THREAD_VARIABLES",
    "ForkServer",
    "ForkedProcess",
    "Launcher",
    "LocalLauncher",
    "LocalProcess",
    "Process",
    "ProcessLost",
    "thread_environment",
]
