# `make demo` trains, tests and pictures a small PS-ViT; `make test` runs all tests.
# Both set up what they need in $(VENV).

PYTHON ?= python3
VENV ?= .venv
# Of `make test-openmmlab`.
OPENMMLAB_PYTHON ?= python3.10
OPENMMLAB_VENV ?= .venv-openmmlab
# Compiled wheels of mmcv, kept between clones.
WHEEL_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mmpsvit/wheels

PY := $(VENV)/bin/python
PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
OPENMMLAB_PY := $(OPENMMLAB_VENV)/bin/python
OPENMMLAB_INSTALL := $(OPENMMLAB_PY) -m pip install --quiet --disable-pip-version-check \
	-c constraints-openmmlab.txt

# A process for each core, of one thread each.
SHARED := -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile
PYTEST := OMP_NUM_THREADS=1 $(PY) $(SHARED)
OPENMMLAB_PYTEST := OMP_NUM_THREADS=1 $(OPENMMLAB_PY) $(SHARED)

.PHONY: help setup setup-test demo test test-openmmlab soak reproduce-mini docs-check \
	lint clean

help:
	@echo 'make demo    train, test and picture a small PS-ViT'
	@echo 'make setup   what the demo needs; make setup-test   and what the tests need'
	@echo 'make test    compile mmcv once, then run all tests'
	@echo "make test-openmmlab   run all tests with OpenMMLab's original releases"
	@echo 'make lint    check style'
	@echo 'make soak    kill trainings 20 times, and compare what comes out'
	@echo "make reproduce-mini   the paper's experiments on generated data"
	@echo 'make docs-check   check all pages, and run the walk-through'
	@echo 'make clean   remove the environment, the data and the results of the demo'

setup: $(VENV)/.ready
setup-test: $(VENV)/.test-ready

# Without --no-cache-dir, pip would keep the mmcv that this builds, which has no
# compiled ops, and offer it later where compiled ops are wanted.
$(VENV)/.ready: constraints.txt constraints-common.txt setup.py pyproject.toml
	@echo '[1/3] creating the environment in $(VENV)'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo 'mmpsvit needs Python >= 3.10: make PYTHON=python3.12 ...'; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo '[2/3] installing PyTorch'
	@$(PIP_INSTALL) torch torchvision numpy setuptools wheel ninja psutil
	@echo '[3/3] installing OpenMMLab and mmpsvit'
	@$(PIP_INSTALL) --no-cache-dir onedl-mmengine onedl-mmcv onedl-mmpretrain
	@$(PIP_INSTALL) --no-build-isolation -e '.[demo]'
	@touch $@

$(VENV)/.test-ready: $(VENV)/.ready tools/install_mmcv_ops.sh
	@echo '[1/2] installing the test tools, mmdet and mmseg'
	@$(PIP_INSTALL) --no-build-isolation -e '.[app,cam,demo,export,mmdet,mmseg,test]'
	@echo '[2/2] installing mmcv with compiled ops'
	@tools/install_mmcv_ops.sh $(PY) '$(WHEEL_DIR)'
	@touch $@

demo: setup
	@PYTHON='$(PY)' tools/run_demo.sh

test: setup-test
	@$(PYTEST)

# The original mmcv cannot be built without torch, nor by the newest setuptools: it is
# compiled, once, or not installed.
$(OPENMMLAB_VENV)/.test-ready: constraints-openmmlab.txt constraints-common.txt \
		setup.py pyproject.toml tools/install_mmcv_ops.sh
	@echo '[1/3] creating the environment in $(OPENMMLAB_VENV)'
	@$(OPENMMLAB_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' \
		|| { echo 'PyTorch 2.1 needs Python 3.10 or 3.11: make OPENMMLAB_PYTHON=python3.11 ...'; exit 1; }
	@test -x $(OPENMMLAB_PY) || $(OPENMMLAB_PYTHON) -m venv $(OPENMMLAB_VENV)
	@echo '[2/3] installing PyTorch, OpenMMLab and mmpsvit'
	@$(OPENMMLAB_INSTALL) torch torchvision numpy setuptools wheel ninja psutil
	@$(OPENMMLAB_INSTALL) mmengine mmpretrain mmdet mmsegmentation ftfy regex
	@$(OPENMMLAB_INSTALL) --no-build-isolation -e '.[app,demo,test]'
	@echo '[3/3] installing mmcv with compiled ops'
	@tools/install_mmcv_ops.sh $(OPENMMLAB_PY) '$(WHEEL_DIR)' constraints-openmmlab.txt
	@touch $@

test-openmmlab: $(OPENMMLAB_VENV)/.test-ready
	@$(OPENMMLAB_PYTEST)

soak: setup-test
	@$(PY) tests/soak/soak_resume.py --kills 20

reproduce-mini: setup
	@$(PY) projects/miniature/run.py --only a b c d e g h --out work_dirs/miniature
	@$(PY) projects/miniature/report.py work_dirs/miniature

docs-check: setup-test
	@$(PY) -m pytest -m '' tests/test_docs.py

lint: setup-test
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .

clean:
	rm -rf $(VENV) $(OPENMMLAB_VENV) data/cluttered_digits work_dirs/demo
