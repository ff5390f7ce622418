# make demo   the whole method on synthetic speech: corpus, teacher, student, report in runs/demo
# make test   lint, types and tests
# make quick  lint, and the tests that are not marked slow: for while you write
# make docs   the documentation site, in build/docs; a warning is an error
# All create .venv on first use and install into it, and nowhere else.
#
# make test VERSIONS=lowest   the tests with the lowest version of every package that pyproject.toml admits
# make test VERSIONS=newest   the tests with the newest versions on the index that pyproject.toml admits
# Each has an environment of its own, .venv-lowest and .venv-newest.
#
# PYTHON=python3.12   the interpreter that the environment is made from (3.11 to 3.14)
# TORCH_INDEX=URL     where torch comes from, in addition to pip's configured index. By default PyTorch's CPU builds on a
#                     Linux machine without an NVIDIA driver: the package index alone would bring several GB of CUDA.
#                     TORCH_INDEX= (empty) takes torch from the configured index.
# PROCESSES=1         make demo in one process, as it is where there is a GPU, one core or another system than Linux

PYTHON ?= python3
VERSIONS ?= pinned

VENV_pinned := .venv
VENV_lowest := .venv-lowest
VENV_newest := .venv-newest
VENV := $(VENV_$(VERSIONS))
ifeq ($(VENV),)
$(error VERSIONS is lowest, pinned or newest, not '$(VERSIONS)')
endif
BIN := $(VENV)/bin

CONSTRAINTS_pinned := constraints.txt
CONSTRAINTS_lowest := constraints-lowest.txt
CONSTRAINTS := $(CONSTRAINTS_$(VERSIONS))
INSTALL := $(BIN)/pip install $(if $(CONSTRAINTS),-c $(CONSTRAINTS),--upgrade)

ifeq ($(shell uname -s)-$(shell command -v nvidia-smi),Linux-)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
endif

.PHONY: demo test types tests quick docs

# The network of the demo is too small for two threads to share its layers. So two processes of one thread each share the
# utterances of a step, on a Linux machine that has two cores and no NVIDIA driver. Elsewhere one process does it all, on
# the GPU if there is one. Its threads sleep while they wait: where another program has one of the cores, those that look
# for work all the time keep it from the threads that they wait for.
PROCESSES ?= $(if $(filter Linux-,$(shell uname -s)-$(shell command -v nvidia-smi)),$(if $(filter-out 1,$(shell nproc)),2,1),1)
DEMO_1 := OMP_WAIT_POLICY=passive $(BIN)/python train_distill.py recipes/demo.yaml
DEMO_2 := OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=1 $(BIN)/torchrun --standalone --nproc_per_node 2 train_distill.py \
	recipes/demo.yaml --batch_size 16

demo: $(VENV)/.installed-demo
	$(or $(DEMO_$(PROCESSES)),$(error PROCESSES is 1 or 2, not '$(PROCESSES)'))

# A file of tests stays in one process, for its fixtures; the longest begin first, see tests/conftest.py. There are more
# processes than cores that they are made for, which is two: some wait, for programs that they started.
# What Python compiles is kept, whatever the environment says: else every process compiles what it imports again.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

# The linter and the type checker are asked once, in the versions that are pinned: what they say changes with theirs.
test: $(VENV)/.installed-dev
ifeq ($(VERSIONS),pinned)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory -j 2 types tests
else
	$(PYTEST)
endif

types:
	$(BIN)/mypy

tests:
	$(PYTEST)

quick: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYTEST) -m "not slow"

# What the tests need includes what the site needs, so that who has the one does not install again for the other.
docs: $(or $(wildcard $(VENV)/.installed-dev),$(VENV)/.installed-docs)
	$(BIN)/python -m sphinx -b html -W --keep-going -q -d build/doctrees docs build/docs

EXTRAS_demo := demo
EXTRAS_dev := demo,dev,docs
EXTRAS_docs := docs

# torch goes first and alone, so that TORCH_INDEX is asked for this one package: pip asks every index for every package
# and keeps retrying, minutes in all, where one cannot be reached. So it is asked once, for 15 seconds at most; after that
# pip takes torch from the configured index.
$(VENV)/.installed-%: pyproject.toml $(CONSTRAINTS) | $(BIN)/pip
	$(if $(TORCH_INDEX),$(INSTALL) --retries 0 --timeout 15 --no-deps --extra-index-url $(TORCH_INDEX) torch)
	$(INSTALL) -e ".[$(EXTRAS_$*)]"
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || \
	  { echo "cmkd needs Python 3.11 to 3.14, and '$(PYTHON)' is not: name one, for example make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "'$(PYTHON)' cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
