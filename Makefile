# make run | test | check | browser | lab | app | bench | site | constraints | fmt: each sets up .venv by itself.
PROFILE ?= fast
DATASET ?=
ROOT ?=
JOBS ?=
# The Python of .venv, such as python3.12; empty takes the first one that is found.
PYTHON ?=
# With uv, the build of PyTorch to install: cpu, cu128 ... (`uv pip install --torch-backend`); empty takes the default one.
TORCH ?=
# With uv, `lowest-direct` installs the oldest versions that pyproject.toml allows; empty takes the newest.
RESOLUTION ?=
# A file of exact versions to install, such as constraints.txt, which lists those that were tested.
CONSTRAINTS ?=
# A file for `make run` to write as JUnit XML.
JUNIT ?=
BIN := .venv/bin
READY := .venv/.ready

.PHONY: run test check browser lab app bench site constraints fmt clean
.DELETE_ON_ERROR:

run: $(READY)
	$(BIN)/retailkit run --profile $(PROFILE) $(if $(DATASET),--dataset $(DATASET)) $(if $(ROOT),--root "$(ROOT)") $(if $(JOBS),--jobs $(JOBS)) \
	  $(if $(JUNIT),--junit "$(JUNIT)") $(if $(GITHUB_STEP_SUMMARY),--summary "$(GITHUB_STEP_SUMMARY)")

test: $(READY) browser
	$(BIN)/python -m pytest -n 2

# Everything of `make test`, and the slow proofs: notebooks with their causes switched off, 200 runs with widgets.
check: $(READY) browser
	$(BIN)/python -m pytest -n 2 -m "not benchmark"

# The browser tests need Chromium. Root installs it where apt does; elsewhere this only says how, and those tests skip.
browser:
	@for b in chromium chromium-browser google-chrome google-chrome-stable; do \
	  if command -v $$b >/dev/null 2>&1; then exit 0; fi; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	  export DEBIAN_FRONTEND=noninteractive; apt-get -qq update >/dev/null 2>&1; \
	  apt-get -qq install -y --no-install-recommends chromium >/dev/null 2>&1 && exit 0; \
	fi; \
	echo "The browser tests skip without Chromium; install it, for example: sudo apt-get install chromium" >&2

lab: $(READY)
	$(BIN)/jupyter lab notebooks

app: $(READY)
	$(BIN)/retailkit app --profile $(PROFILE) $(if $(DATASET),--dataset $(DATASET)) $(if $(ROOT),--root "$(ROOT)")

bench: $(READY)
	$(BIN)/retailkit bench

# The executed notebooks, the guides and the reference of the package as pages, in site/.
site: $(READY)
	$(BIN)/python docs/site/build.py site

# The versions that are installed here, for others to install.
constraints: $(READY)
	$(BIN)/python docs/constraints.py > constraints.txt

fmt: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/nbstripout --keep-id notebooks/*.ipynb

clean:
	rm -rf .venv site papermill_runs/latest .pytest_cache .ruff_cache

# The stamp is written last: an interrupted install starts again. Packages are compiled, as pip does: where Python may not
# write bytecode (PYTHONDONTWRITEBYTECODE), each process would compile them anew, which takes longer than most notebooks.
$(READY): pyproject.toml
	@python=""; for p in $(or $(PYTHON),python3.13 python3.12 python3.11 python3.14 python3); do \
	  if command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$p; break; fi; done; \
	if [ -z "$$python" ]; then echo "Python 3.11 or newer is needed and $(or $(PYTHON),none) was$(if $(PYTHON), not) found" >&2; exit 1; fi; \
	if [ -n "$(TORCH)" ] && ! command -v uv >/dev/null 2>&1; then \
	  echo "TORCH=$(TORCH) needs uv; or install PyTorch as pytorch.org says, then run make without TORCH" >&2; exit 1; fi; \
	if [ -n "$(RESOLUTION)" ] && ! command -v uv >/dev/null 2>&1; then echo "RESOLUTION=$(RESOLUTION) needs uv" >&2; exit 1; fi; \
	if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --clear --python "$$(command -v $$python)" .venv && VIRTUAL_ENV=.venv uv pip install --quiet --compile-bytecode $(if $(TORCH),--torch-backend $(TORCH)) \
	    $(if $(RESOLUTION),--resolution $(RESOLUTION)) $(if $(CONSTRAINTS),-c "$(CONSTRAINTS)") -e '.[offline,dev]'; \
	else \
	  $$python -m venv --clear .venv && $(BIN)/python -m pip install --quiet $(if $(CONSTRAINTS),-c "$(CONSTRAINTS)") -e '.[offline,dev]'; \
	fi
	@touch $@
