PYTHON ?= python3
VERSION ?= v1
DATASET ?= uoft-cs/cifar10
BIN := .venv/bin

.PHONY: setup classify test lint release push compat figures evaluate studies benchmarks space app

setup: .venv/.complete

# Written last, so that an interrupted set-up is done again.
.venv/.complete: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

classify: setup
	$(if $(IMAGE),,$(error give an image, such as IMAGE=examples/cat.png))
	@$(BIN)/python -m nula.publishing.payload $(VERSION) > /dev/null
	$(BIN)/nula classify --model build/nula-cifar10-robust-$(VERSION) '$(IMAGE)'

test: setup lint
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

release: setup
	$(BIN)/python -m nula.publishing.payload $(VERSION)

push: setup
	$(if $(HUB_ID),,$(error give the repository: HUB_ID=owner/name))
	$(BIN)/python -m nula.publishing.payload $(VERSION) --push '$(HUB_ID)' $(if $(TAG),--tag '$(TAG)') $(if $(BASE),--base '$(BASE)') $(if $(PRIVATE),--private) $(if $(DRY_RUN),--dry-run)

# The files of a Hugging Face Space.
SPACE = build/space
space:
	rm -rf '$(SPACE)'
	mkdir -p '$(SPACE)/nula/perturbations'
	cp space/app.py space/README.md space/requirements.txt '$(SPACE)'
	cp -R examples '$(SPACE)'
	cp perturbations/__init__.py perturbations/appearance.py perturbations/sampling.py '$(SPACE)/nula/perturbations'
	touch '$(SPACE)/nula/__init__.py'

app: setup space
	$(BIN)/python -m nula.publishing.payload v0
	$(BIN)/python -m nula.publishing.payload v1
	$(BIN)/python '$(SPACE)/app.py' --v0 build/nula-cifar10-robust-v0 --v1 build/nula-cifar10-robust-v1

# Environments of its own, some gigabytes, in build/compatibility.
compat: setup
	$(BIN)/python -m nula.publishing.compatibility

figures: setup
	$(BIN)/python -m nula.model_card.figures --dataset '$(DATASET)'
	$(BIN)/python -m nula.model_card.card

evaluate: setup
	$(BIN)/python -m nula.evaluation table --model releases/$(VERSION) --dataset '$(DATASET)' --output releases/$(VERSION)/results

benchmarks: release
	$(BIN)/python -m nula.benchmarks.pipeline --model build/nula-cifar10-robust-$(VERSION) --dataset '$(DATASET)'
	$(BIN)/python -m nula.benchmarks.forms --model releases/$(VERSION) --dataset '$(DATASET)'
	$(BIN)/python -m nula.benchmarks.tables

STUDY = $(BIN)/python -m nula.evaluation $(1) --model releases/$(VERSION) --dataset '$(DATASET)' --output releases/$(VERSION)/results

studies: setup
	$(call STUDY,noise)
	$(call STUDY,corruptions)
	$(call STUDY,sensitivity)
	$(call STUDY,curvature)
	$(call STUDY,null-space)
	$(call STUDY,certified)
	$(if $(filter v1,$(VERSION)),$(call STUDY,basin) --start releases/v0)
