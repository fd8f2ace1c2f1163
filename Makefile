# make demo       makes the phantom, trains CoraNet on it with 8 labels, tests it, draws the result    about 10 minutes
# make test       checks the code's style and runs all tests                                           about 20 minutes
# make quick      runs the tests that train nothing                                                    a minute or two
# make sanitize   runs the operations' tests under the sanitizers, with the CUDA kernels emulated      about 10 minutes
# The first of these creates .venv, which later ones reuse. PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc tests/native -name '*.cpp' -o -name '*.h' -o -name '*.cu')
RUN := runs/phantom/coranet_8/seed1337

.PHONY: demo test quick sanitize env lint
.DELETE_ON_ERROR:

env: $(VENV)/.ready

$(VENV)/.ready: constraints.txt pyproject.toml setup.py $(wildcard csrc/*.* csrc/*/*.*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is older than Python 3.10: choose another with make PYTHON=python3.11"; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch setuptools ninja
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[test]'
	@touch $@

demo: env
	$(BIN)/python code/prepare_phantom.py --preview data/phantom/preview.png
	$(BIN)/python code/train_coranet.py --dataset phantom --labelnum 8 --labeled_bs 2 --unlabeled_bs 2 --n_filters 8 \
		--pretrain_epochs 40 --selftrain_epochs 80 --relabel_epochs 20 --resume
	$(BIN)/python code/test_LA.py --run $(RUN)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(SOURCES)

test: lint
	$(BIN)/python -m pytest -n 2

quick: env
	$(BIN)/python -m pytest -n 2 -m "not slow"

sanitize: env
	$(BIN)/python tests/native/sanitize.py
