# make demo: train and translate on real text.  make test: lint and all tests.  make quick: lint and the tests without
# training.  make fuzz: damaged files and kills, with many random seeds.  All set up .venv first.

PYTHON ?= python3
EXAMPLE := examples/wmt_multilingual
INSTALLED := .venv/installed
# Programs that subnets are made for, which the tests run: not in the environment, where fairseq would import one.
PEERS := .venv/peers
# Finds the tools of the environment, and nothing of another one that may be active.
IN_VENV := env -u PYTHONPATH -u PYTHONHOME PATH="$(CURDIR)/.venv/bin:$$PATH"

# How often make fuzz tries every random case.
SEEDS ?= 20

.PHONY: demo test quick fuzz lint venv clean

demo: venv
	$(IN_VENV) $(EXAMPLE)/run.sh $(EXAMPLE)/settings/demo.sh
	$(IN_VENV) $(EXAMPLE)/next_steps.sh $(EXAMPLE)/settings/demo.sh

test: lint
	OMP_NUM_THREADS=1 $(IN_VENV) pytest -n 2 --dist worksteal

# What needs no training: in under a minute, while one writes.
QUICK := tests/moe tests/models tests/formats tests/test_errors.py tests/test_imports.py

quick: lint
	OMP_NUM_THREADS=1 $(IN_VENV) pytest -n 2 --dist worksteal -q $(QUICK)

fuzz: venv
	OMP_NUM_THREADS=1 $(IN_VENV) pytest -n 2 --dist worksteal tests/robustness --seeds $(SEEDS)

lint: venv
	$(IN_VENV) ruff check .
	$(IN_VENV) mypy

venv: $(INSTALLED)

# PyTorch goes first: with an index of CPU builds configured, pip then has no reason to fetch CUDA libraries.
$(INSTALLED): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in {(3, 11), (3, 12)})' || \
	    { echo "make: $(PYTHON) is not Python 3.11 or 3.12; name one, as in: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install "torch>=2.6,<2.14"
	.venv/bin/python -m pip install -e ".[dev,plot,ctranslate2,huggingface,argos]"
	rm -rf $(PEERS)
	.venv/bin/python -m pip install --target $(PEERS) "transformers>=5,<6"
	.venv/bin/python -m pip install --target $(PEERS) --no-deps "argostranslate==1.11.*" sacremoses joblib
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis $(EXAMPLE)/out
