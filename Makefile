# Every target makes what it needs; what is there already is not made again, and needs no network.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
PIP     = $(BIN)/python -m pip --disable-pip-version-check
KEY    ?=
MODEL  ?=
OUT    ?= out/tour.html
CONFIG  = settings.ini setup.py pyproject.toml constraints.txt
OFFLINE = HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help tour test lab claims bench gpu checkpoints paper wheel clean distclean readme export

help:
	@echo "make tour            analyse a real language model with the four flagships, write $(OUT)  (MODEL=name or folder)"
	@echo "make lab             open JupyterLab on the explorer"
	@echo "make test            check everything: exports, notebooks, style, tests"
	@echo "make claims          run every paper's claim (KEY=... for one), write data/claims.json"
	@echo "make bench           run the benchmarks, write data/benchmarks/"
	@echo "make gpu             check and time the CUDA kernels on this machine's GPU"
	@echo "make checkpoints     train the reference models into data/checkpoints/ (resumes)"
	@echo "make paper KEY=...   write the skeleton notebook of a paper of the catalog"
	@echo "make export          write arlm_nb/ from the notebooks and clean them"
	@echo "make readme          write README.md from nbs/index.ipynb"
	@echo "make wheel           build dist/*.whl"
	@echo "make clean           remove what was built (never data/); make distclean removes .venv too"

# --- the environment: one stamp for each set of packages -------------------------------------------------------------
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed, $$($(PYTHON) --version) is not: make PYTHON=python3.11 ..."; exit 2; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.tools: constraints.txt | $(VENV)/.made
	@$(PIP) install -qq -c constraints.txt setuptools wheel
	@touch $@

$(VENV)/.base: $(CONFIG) $(VENV)/.tools
	@echo "installing the package and what it needs (once; some minutes)"
	@$(PIP) install -qq --no-build-isolation -c constraints.txt torch -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@echo "installing the notebook and test tools (once)"
	@$(PIP) install -qq --no-build-isolation -c constraints.txt -e ".[dev]"
	@touch $@

$(VENV)/.all: $(VENV)/.dev
	@echo "installing Ray, Dask and the CUDA kernel compiler (once)"
	@$(PIP) install -qq --no-build-isolation -c constraints.txt -e ".[dev,scale,gpu,peers]"
	@touch $@

# --- for everybody ---------------------------------------------------------------------------------------------------
tour: $(VENV)/.base
	@mkdir -p $(dir $(OUT))
	@$(BIN)/arlm tour --out $(OUT) $(if $(MODEL),--model "$(MODEL)")

lab: $(VENV)/.dev
	@$(BIN)/jupyter lab $$(ls nbs/explorer.ipynb 2>/dev/null || echo nbs/tour.ipynb)

claims: $(VENV)/.base
	@$(BIN)/arlm claims $(KEY)

bench: $(VENV)/.base
	@$(BIN)/arlm bench $(KEY)

checkpoints: $(VENV)/.base
	@$(BIN)/python -m arlm_nb.train_checkpoints $(KEY)

# --- for the package's authors ---------------------------------------------------------------------------------------
test: $(VENV)/.all
	@$(OFFLINE) $(BIN)/python -m pytest tests --continue-on-collection-errors

export: $(VENV)/.dev
	@$(BIN)/nbdev_export && $(BIN)/nbdev_clean

readme: $(VENV)/.dev
	@$(OFFLINE) $(BIN)/python tools/readme.py

paper: $(VENV)/.dev
	@test -n "$(KEY)" || { echo "which paper? make paper KEY=tuned_lens (arlm list shows the keys)"; exit 2; }
	@$(BIN)/arlm paper $(KEY)

wheel: $(VENV)/.dev
	@rm -rf build dist
	@$(BIN)/python -m build --wheel --no-isolation --outdir dist . >/dev/null
	@ls -l dist/*.whl

# The GPU machine's own Python where its torch sees a CUDA device; else the environment above, whose GPU tests skip.
HAS_CUDA = $(PYTHON) -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null
gpu:
	@if $(HAS_CUDA); then $(MAKE) --no-print-directory gpu-run RUN=$(PYTHON); \
	 else $(MAKE) --no-print-directory $(VENV)/.all && $(MAKE) --no-print-directory gpu-run RUN=$(BIN)/python; fi

.PHONY: gpu-run
gpu-run:
	@if [ -d tests/gpu ]; then $(OFFLINE) PYTHONPATH=. $(RUN) -m pytest tests/gpu -q -p no:cacheprovider; fi
	@$(OFFLINE) PYTHONPATH=. $(RUN) -m arlm_nb.core.bench --gpu

clean:
	@rm -rf build dist out .arlm _proc _docs *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -path ./$(VENV) -prune -o -path ./data -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +

distclean: clean
	@rm -rf $(VENV)
