# Two commands do everything on a fresh machine with Python 3.11:
#   make demo   set up .venv, then run the main job on the embedded network
#   make test   set up .venv, then run all tests
# Set-up happens once; later calls go straight to the work.

VENV   ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip
# Other fault injectors, which `make bench` measures beside fsim.
RIVALS := .bench-rivals

# Where there is no GPU the CPU build is taken: 0.2 GB instead of several.
TORCH           ?= torch==2.13.0
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

DEMO  ?= inject --accel systolic --ber 1e-5 --out out/demo
TESTS ?= tests
# Test processes; 1 runs them in this one.
JOBS  ?= 2
# Benchmarks by name (all of them by default) and options of `python -m bench`.
BENCH ?=
# RTL simulator (the one installed by default); designs and options of tests/rtl/verify_rtl.py.
RTL_SIM ?=
RTL     ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast bench bench-rivals verify verify-rtl docs lint clean

help:
	@echo 'make demo       set up, then inject faults into the embedded network'
	@echo 'make test       set up, then run all tests (TESTS=tests/test_x.py for some)'
	@echo 'make test-fast  the tests without those marked slow'
	@echo 'make bench      set up, then measure against limits and rivals: table, out/bench'
	@echo '                (BENCH=tile for one, BENCH=--quick for a short look)'
	@echo 'make verify     check this installation against the RTL vectors'
	@echo 'make verify-rtl run our own arrays in Verilator or Icarus and compare every register'
	@echo '                (RTL_SIM=verilator or icarus; RTL=os-4x4 for one design, or options)'
	@echo 'make docs       the documentation as a site, in site/'
	@echo 'make lint       ruff'
	@echo 'make setup      only set up $(VENV)'
	@echo 'make clean      remove what was built or written here, environments excepted'

setup: $(VENV)/.ok

# torch into the environment $(1). "+cpu" resolves where such wheels are on the configured
# index or in a folder of wheels.
define install-torch
	@if $(1)/bin/python -c 'import torch' 2>/dev/null; then :; \
	elif nvidia-smi -L >/dev/null 2>&1; then $(1)/bin/python -m pip install -q '$(TORCH)'; \
	elif $(1)/bin/python -m pip install -q --retries 0 '$(TORCH)+cpu' 2>/dev/null; then :; \
	elif $(1)/bin/python -m pip install -q --retries 0 --index-url '$(TORCH_CPU_INDEX)' '$(TORCH)' 2>/dev/null; then :; \
	else $(1)/bin/python -m pip install -q '$(TORCH)'; fi
endef

# torch first: the requirement of setup.cfg is then met and no second build is fetched.
$(VENV)/.ok: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "fsim needs Python >= 3.11, got %d.%d (set PYTHON=)" % v[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(call install-torch,$(VENV))
	@$(PIP) install -q -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/fsim $(DEMO)

test: setup
	$(BIN)/python -m pytest -n $(JOBS) $(TESTS)

test-fast: setup
	$(BIN)/python -m pytest -n $(JOBS) -m 'not slow' $(TESTS)

# Without a network the rivals cannot be installed: the bench says so and goes on.
bench: setup
	@$(MAKE) --no-print-directory bench-rivals || echo 'bench: no rivals here; going on without them' >&2
	$(BIN)/python -m bench $(BENCH)

bench-rivals: $(RIVALS)/.ok

$(RIVALS)/.ok: bench/rivals/requirements.txt
	@test -x $(RIVALS)/bin/python || $(PYTHON) -m venv $(RIVALS)
	$(call install-torch,$(RIVALS))
	@$(RIVALS)/bin/python -m pip install -q --retries 0 --no-deps -r $<
	@touch $@

verify: setup
	$(BIN)/fsim verify

verify-rtl: setup
	RTL_SIM='$(RTL_SIM)' $(BIN)/python -m tests.rtl.verify_rtl $(RTL)

# Outputs that the pages show are checked by tests/test_docs_site.py.
docs: setup
	@$(BIN)/python -c 'import mkdocs' 2>/dev/null || $(PIP) install -q -e '.[docs]'
	$(BIN)/python -m mkdocs build --strict

lint: setup
	$(BIN)/ruff check .

clean:
	rm -rf build dist out site *.egg-info .pytest_cache .hypothesis .ruff_cache .benchmarks
	find . -path './$(VENV)' -prune -o -path './$(RIVALS)' -prune -o -name __pycache__ -type d -exec rm -rf {} +
