# Every task has its command here. `make serve` and `make test` set up what they need, inside this checkout.
PYTHON := .venv/bin/python
DATA ?= ../shared/data
MANIFEST := bin/setup bin/uv.txt bin/ragflow-sdk.txt pyproject.toml uv.lock

.PHONY: help serve test lint format docs bench load compare chaos eval soak env clean

help:
	@echo "make serve             set up, then serve on 127.0.0.1:9380 (MILLRACE_HOST, MILLRACE_PORT, MILLRACE_DATA_DIR)"
	@echo "make test              every check: style, imports, tests"
	@echo "make lint | format     the style checks alone | mend the style"
	@echo "make docs              make docs/settings.md anew"
	@echo "make bench             most tables of load/README.md, measured on this machine"
	@echo "make load [MODEL=real] locust: 100 people search and chat (SECONDS, USERS); the report is load/out/report.html"
	@echo "make compare           reranking on threads against reranking that is awaited"
	@echo "make chaos             vendors fail in every way for SECONDS at 100 callers; no unplanned 5xx"
	@echo "make eval [DATA=dir]   retrieval quality over a folder of sets in BEIR layout; STORE=elasticsearch compares the stores"
	@echo "make env               make .env with secrets for docker-compose.yml"
	@echo "make soak              the kill test, 100 rounds"

serve: .venv/.ready-to-serve
	$(PYTHON) -m api serve

test: lint
	$(PYTHON) -m pytest $(TESTS)

lint: .venv/.ready-to-test
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

format: .venv/.ready-to-test
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

docs: .venv/.ready-to-test
	$(PYTHON) -m api.settings_page > docs/settings.md

bench: .venv/.ready-to-test
	$(PYTHON) -m load

load: .venv/.ready-to-test
	$(PYTHON) -m load.locust_run --model $(or $(MODEL),simulated) --seconds $(or $(SECONDS),60) $(if $(USERS),--users $(USERS))

compare: .venv/.ready-to-test
	$(PYTHON) -m load.compare

chaos: .venv/.ready-to-test
	$(PYTHON) -m load.scale --only chaos --seconds $(or $(SECONDS),180)

eval: .venv/.ready-to-test
	$(PYTHON) -m load.eval --data $(DATA) $(if $(STORE),--store $(STORE))

soak: .venv/.ready-to-test
	MILLRACE_TEST_KILL_ROUNDS=100 $(PYTHON) -m pytest -m soak $(TESTS)

env:
	bin/env

clean:
	rm -rf .venv .uv .cache .pytest_cache .ruff_cache .hypothesis load/out

.venv/.ready-to-serve: $(MANIFEST)
	bin/setup serve
	@touch $@

.venv/.ready-to-test: $(MANIFEST)
	bin/setup test
	@touch $@ .venv/.ready-to-serve
