"""Help is quick: it needs none of the heavy libraries."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dynbench.cli import main
from tests.cli import call

HEAVY = {
    "torch",
    "pandas",
    "matplotlib",
    "numpy",
    "scipy",
    "sqlalchemy",
    "sklearn",
    "seaborn",
    "pyarrow",
    "pydantic",
    "jinja2",
    "rich",
}
MODULES = """
import json, sys
from dynbench.cli import main
main(sys.argv[1:], standalone_mode=False)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.mark.parametrize("args", ["--help", "run --help", "partition --help", "history --help", "--version"])
def test_help_imports_no_heavy_library(args: str) -> None:
    done = subprocess.run([sys.executable, "-c", MODULES, *args.split()], capture_output=True, text=True, check=True)
    imported = set(json.loads(done.stdout.splitlines()[-1]))
    assert "click" in imported
    assert not imported & HEAVY


def test_help_names_every_command_with_a_whole_sentence() -> None:
    text = call("--help").stdout
    assert " ".join(main.commands) == (
        "run list cost partition search verify compile convert doctor calibrate train report whatif advise trace check "
        "compare reproduce history export"
    )
    assert all(f"  {name} " in text for name in main.commands)
    assert "..." not in text.partition("Commands:")[2]


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "dynbench", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("dynbench, version ")
