PYTHON ?= python3
VERSION ?= v1
DATASET ?= uoft-cs/cifar10
BIN := .venv/bin
INSTALL := PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable

.PHONY: setup classify test lint release push card compat figures evaluate studies benchmarks space app site

setup: .venv/.complete

# Stamps are written last, so that an interrupted set-up is done again. The first is what classifying needs and no more.
.venv/.classify: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) '.[release]'
	touch $@

.venv/.complete: .venv/.classify
	$(INSTALL) '.[dev]'
	touch $@

classify: .venv/.classify
	$(if $(IMAGE),,$(error give an image, such as IMAGE=examples/cat.png))
	@$(BIN)/nula release $(VERSION) > /dev/null
	$(BIN)/nula classify --model build/nula-cifar10-robust-$(VERSION) '$(IMAGE)'

test: setup lint
	$(BIN)/python -m pytest --numprocesses 2

# mypy and mkdocstrings take the package for a folder called nula, which the link makes of the checkout.
build/typed/nula:
	mkdir -p build/typed && ln -sfn ../.. $@

lint: setup build/typed/nula
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p nula.classifying -p nula.records -p nula.perturbations -p nula.evaluation -p nula.runtime -m nula.data -m nula.cli

release: setup
	$(BIN)/nula release $(VERSION)

push: setup
	$(if $(HUB_ID),,$(error give the repository: HUB_ID=owner/name))
	$(BIN)/nula push $(VERSION) '$(HUB_ID)' $(if $(TAG),--tag '$(TAG)') $(if $(BASE),--base '$(BASE)') $(if $(PRIVATE),--private) $(if $(DRY_RUN),--dry-run)

card: setup
	$(BIN)/nula card

figures: setup
	$(BIN)/nula figures --dataset '$(DATASET)'
	$(BIN)/nula card

evaluate: setup
	$(BIN)/nula evaluate table --model releases/$(VERSION) --dataset '$(DATASET)' --output releases/$(VERSION)/results --overwrite

studies: setup
	$(BIN)/nula evaluate studies --model releases/$(VERSION) --dataset '$(DATASET)' --output releases/$(VERSION)/results --overwrite

app: setup
	$(BIN)/nula app

space: setup
	$(BIN)/nula app --assemble-only

site: setup build/typed/nula
	$(BIN)/python -m nula.publishing.site build/site/source
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Environments of its own, some gigabytes, in build/compatibility.
compat: setup
	$(BIN)/python -m nula.publishing.compatibility

benchmarks: release
	$(BIN)/python -m nula.benchmarks.pipeline --model build/nula-cifar10-robust-$(VERSION) --dataset '$(DATASET)'
	$(BIN)/python -m nula.benchmarks.forms --model releases/$(VERSION) --dataset '$(DATASET)'
	$(BIN)/python -m nula.benchmarks.fine_tuning --model releases/$(VERSION) --dataset '$(DATASET)'
	$(BIN)/python -m nula.benchmarks.tables
