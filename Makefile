# make demo   the whole method on synthetic speech: corpus, teacher, student, report in runs/demo
# make test   lint, types and tests
# Both create .venv on first use and install into it, and nowhere else.
#
# PYTHON=python3.12   the interpreter that .venv is made from (3.10 to 3.13)
# TORCH_INDEX=URL     where torch comes from, in addition to pip's configured index. By default PyTorch's CPU builds on a
#                     Linux machine without an NVIDIA driver: the package index alone would bring several GB of CUDA.
#                     TORCH_INDEX= (empty) takes torch from the configured index.

PYTHON ?= python3
BIN := .venv/bin

ifeq ($(shell uname -s)-$(shell command -v nvidia-smi),Linux-)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
endif

.PHONY: demo test

demo: .venv/.installed-demo
	$(BIN)/python train_distill.py recipes/demo.yaml

test: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

EXTRAS_demo := demo
EXTRAS_dev := demo,dev

# torch goes first and alone, so that TORCH_INDEX is asked for this one package: pip asks every index for every package
# and keeps retrying, minutes in all, where one cannot be reached. So it is asked once, for 15 seconds at most; after that
# pip takes torch from the configured index.
.venv/.installed-%: pyproject.toml constraints.txt | $(BIN)/pip
	$(if $(TORCH_INDEX),$(BIN)/pip install --retries 0 --timeout 15 --no-deps -c constraints.txt --extra-index-url $(TORCH_INDEX) torch)
	$(BIN)/pip install -c constraints.txt -e ".[$(EXTRAS_$*)]"
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "cmkd needs Python 3.10 to 3.13, and '$(PYTHON)' is not: name one, for example make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "'$(PYTHON)' cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
