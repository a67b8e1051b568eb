# On a new machine, `make run` makes .venv, installs dynbench there and measures the default suite on the CPU.
#
#   make run       measure and write a report        make run ARGS="--device cuda"
#   make report    write the report of the newest run again
#   make test      the tests                         make test ARGS="tests/cli -k help"
#   make test-devices  the tests with real peers: browsers, an ssh server, adbd, qemu
#   make fuzz      damaged files through the commands, for 2 minutes; make fuzz ARGS="--seconds 3600 --seed 7"
#   make lint      style, types, layers
#   make verify-all    check that all workloads give the same answers under all strategies
#   make bench     the overhead of dynbench itself, as ratios
#   make gpu       all that can be shown on an NVIDIA GPU, in at most 9 minutes: docs/cuda.md
#   make clean     remove .venv and the caches of tools, but not runs/
#
# SYSTEM_TORCH=1 uses the torch that $(PYTHON) can import and installs everything else.

PYTHON ?= python3
SYSTEM_TORCH ?=
ARGS ?=
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: run test test-devices fuzz lint verify-all bench gpu report clean
.DELETE_ON_ERROR:

run: $(INSTALLED)
	$(BIN)/dynbench run $(ARGS)

report: $(INSTALLED)
	$(BIN)/dynbench report $(ARGS)

# One thread per process: small tensors do not gain from more. One process more than there are cores, as some tests wait.
WORKERS = $(shell nproc 2>/dev/null | awk '{ print $$1 < 4 ? $$1 + 1 : 4 }')
test: $(INSTALLED)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(or $(WORKERS),2) --dist loadfile --no-loadscope-reorder \
		--ignore tests/peers $(ARGS)

# Slow ones, one after the other: each starts a browser or another peer.
test-devices: $(INSTALLED)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest tests/peers $(ARGS)

# One process, one thread. Exit code 1: something ended in a traceback or not at all; it is named by kind, seed and number.
fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m tests.faults.fuzz $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

verify-all: $(INSTALLED)
	$(BIN)/dynbench verify all $(ARGS)

bench: $(INSTALLED)
	$(BIN)/python -m bench $(ARGS)

gpu: $(INSTALLED)
	$(BIN)/python -m bench.gpu --out runs/gpu-$(shell date +%Y-%m-%d-%H%M) $(ARGS)

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# An environment that uses the machine's torch has a file .venv/system-torch, which contains that torch's version.
$(INSTALLED): pyproject.toml constraints.txt
	@$(check)
	@$(make_venv)
	@$(install)
	@touch $@

# The machine's torch is wanted, but .venv has its own: install again.
ifneq ($(SYSTEM_TORCH),)
ifeq ($(wildcard .venv/system-torch),)
.PHONY: $(INSTALLED)
endif
endif

define check
fail() { echo "dynbench: $$*" >&2; exit 1; }; \
command -v $(PYTHON) >/dev/null || \
    fail "there is no $(PYTHON); Python 3.11 or newer is needed (apt install python3 python3-venv)"; \
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
    fail "$$($(PYTHON) --version) is too old: Python 3.11 or newer is needed (make PYTHON=python3.12 ...)"; \
$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
    fail "Python's venv module is missing (apt install python3-venv)"; \
command -v git >/dev/null || \
    fail "git is missing; results record the revision that was measured (apt install git)"
endef

define find_torch
import pathlib, sys
try:
    import torch
except ImportError as e:
    sys.exit(f"dynbench: SYSTEM_TORCH=1, but {sys.executable} cannot import torch: {e}")
if not (2, 11) <= tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14):
    sys.exit(f"dynbench: SYSTEM_TORCH=1, but torch is {torch.__version__}; supported are 2.11 to 2.13")
print(torch.__version__, pathlib.Path(torch.__file__).parents[1])
endef
export find_torch

define make_venv
set -e; \
if [ -n "$(SYSTEM_TORCH)" ] && [ ! -f .venv/system-torch ]; then \
    found=$$($(PYTHON) -c "$$find_torch"); \
    $(PYTHON) -m venv --clear --system-site-packages .venv; \
    echo "$${found#* }" > "$$(echo .venv/lib/python3*/site-packages)/system-torch.pth"; \
    echo "$${found%% *}" > .venv/system-torch; \
elif [ ! -x $(BIN)/python ]; then \
    $(PYTHON) -m venv .venv; \
fi
endef

# torch is named in the same command as everything else, so that pip never installs a second one.
define install
set -e; \
torch=$$(sed -n 's/^torch==//p' constraints.txt); \
[ ! -f .venv/system-torch ] || torch=$$(cat .venv/system-torch); \
sed "s/^torch==.*/torch==$$torch/" constraints.txt > .venv/constraints.txt; \
$(BIN)/python -m pip install --disable-pip-version-check -c .venv/constraints.txt "torch==$$torch" -e '.[dev]'
endef
