# make demo | make run UPSTREAM=http://127.0.0.1:8000 | make test
# Each target creates its own environment (.venv) and installs what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
NODE_DIR := tests/e2e/node

# Debian packages that the tests use, and one command of each that shows it is there.
TEST_COMMANDS := redis-server:redis-server prometheus:prometheus promtool:prometheus chromium:chromium node:nodejs npm:npm curl:curl nginx:nginx \
  haproxy:haproxy systemd-analyze:systemd ps:procps tmux:tmux

.PHONY: help demo run test check soak bench bench-check bench-record lock format clean
help:
	@sed -n '1,2s/^# //p' Makefile

demo: $(VENV)/.runtime
	$(BIN)/meter-proxy demo $(ARGS)

run: $(VENV)/.runtime
	@test -n "$(UPSTREAM)" || { echo "usage: make run UPSTREAM=http://127.0.0.1:8000"; exit 2; }
	$(BIN)/meter-proxy serve --upstream $(UPSTREAM) $(ARGS)

test: $(VENV)/.dev $(NODE_DIR)/node_modules debian
	$(MAKE) --no-print-directory check

# All tests: on two cores side by side, then, one by one, those that look at the clock. With ARGS what they say, one by one.
check:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
ifeq ($(strip $(ARGS)),)
	$(BIN)/pytest --numprocesses 2 --dist worksteal -m 'not alone'
	$(BIN)/pytest -m alone
else
	$(BIN)/pytest $(ARGS)
endif

# The long form of tests/soak: about an hour. SOAK_ROUNDS=50 for a shorter one.
SOAK_ROUNDS ?= 1000
soak: $(VENV)/.dev debian
	$(BIN)/python -m tests.soak.chaos --faults workers --rounds $(SOAK_ROUNDS)
	$(BIN)/python -m tests.soak.chaos --faults redis --rounds 100
	$(BIN)/python -m tests.soak.chaos --faults workers,redis,network,hang-ups --exchanges 100000
	$(BIN)/python -m tests.soak.races all --rounds 20

# Proxies side by side; ARGS='--help' says what there is. The gate compares with tests/bench/recorded.json.
bench: $(VENV)/.dev
	$(BIN)/python -m tests.bench.compare $(ARGS)

bench-check: $(VENV)/.dev
	$(BIN)/python -m tests.bench.check $(ARGS)

bench-record: $(VENV)/.dev
	$(BIN)/python -m tests.bench.check --record $(ARGS)

# What the container image installs: every package with its version and hashes. Again whenever dependencies change.
UV_COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
  --no-emit-index-url --custom-compile-command 'make lock'
lock: $(VENV)/.dev
	$(UV_COMPILE) pyproject.toml --output-file deploy/requirements.lock
	echo 'hatchling>=1.25' | $(UV_COMPILE) - --output-file deploy/requirements-build.lock

format:
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(NODE_DIR)/node_modules build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(VENV)/.runtime: pyproject.toml | venv
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml | venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $(VENV)/.runtime $@

$(NODE_DIR)/node_modules: $(NODE_DIR)/package.json | debian
	npm install --prefix $(NODE_DIR) --no-package-lock --no-audit --no-fund --silent
	@touch $@

.PHONY: venv debian
venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || { \
	  $(PYTHON) -c 'import ensurepip' 2>/dev/null || $(call apt_install,python3-venv); \
	  $(PYTHON) -m venv $(VENV); }

debian:
	@missing=; for pair in $(TEST_COMMANDS); do \
	  PATH="$$PATH:/usr/sbin" command -v $${pair%%:*} >/dev/null 2>&1 || missing="$$missing $${pair##*:}"; done; \
	test -z "$$missing" || $(call apt_install,$$missing)

# As root: install. Otherwise: say the exact line, and stop.
define apt_install
{ packages=$$(echo $(1) | tr ' ' '\n' | sort -u | tr '\n' ' '); \
  if [ "$$(id -u)" = 0 ]; then \
    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$packages; \
  else \
    echo "Missing Debian packages. Run:  sudo apt-get install -y $$packages"; exit 1; \
  fi; }
endef
