# Every target does the set-up first, unless it is done already.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready

SUDO := $(shell test "$$(id -u)" = 0 || echo sudo)

.PHONY: setup sweep test test-browser test-postgres test-cluster lint types check

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

sweep: setup
	$(BIN)/python -m mnist_sweep -m model=simple,deeper,vgg trainer=quick data.train_size=4000

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not browser and not postgres and not cluster"

# In Debian's Chromium. MNIST_SWEEP_SCREENSHOTS=docs/images takes the pictures in docs/ again.
test-browser: setup
	command -v chromium >/dev/null || { $(SUDO) apt-get update -qq && \
	  $(SUDO) apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; }
	$(BIN)/python -m pytest -m browser

# With a PostgreSQL server that the tests start and stop.
test-postgres: setup
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || { $(SUDO) apt-get update -qq && \
	  $(SUDO) apt-get install -y -qq --no-install-recommends postgresql; }
	$(BIN)/python -m pytest -n 2 -m postgres

# With SLURM, Ray and PostgreSQL servers on hosts made of network namespaces. Needs root.
test-cluster: setup
	{ command -v slurmctld && command -v ip && ls /usr/lib/postgresql/*/bin/initdb; } >/dev/null 2>&1 || { \
	  $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends \
	  slurm-wlm munge iproute2 postgresql; }
	$(BIN)/python -m pytest -m cluster

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: setup
	$(BIN)/mypy

check: lint types test test-browser test-postgres test-cluster
