# make setup   everything a bare clone needs: Debian packages, .venv, build
# make demo    setup, then the demonstration; its options go in ARGS, e.g. make demo ARGS="--processes 1000"
# make test    setup, then all tests;         pytest's options go in ARGS, e.g. make test ARGS="-k unmap"
# make lint    setup, then the gates that come before the tests; one alone: make lint ARGS=types
# make sanitize  setup, then the tests of the core and of clients, built with AddressSanitizer and UndefinedBehaviorSanitizer
# make fuzz    setup, then the fuzz targets of tests/fuzz; for longer: make fuzz SECONDS=600, RUNS=10000000
# make soak    setup, then kills of clients and servers for half an hour; for another time: make soak SECONDS=120
# make format  lays out C and Python as the gates want it
# make install  setup, then what it has built into PREFIX (/usr/local), below DESTDIR; more: make install ARGS=--help
# make deb     setup, then a Debian package in build/deb
# make docs    setup, then the pages of documentation, in build/docs/html
# make conformance  setup, then every case of the kernel series asked of a real mount; writes CONFORMANCE.md and the table in README.md

.PHONY: setup demo test lint sanitize fuzz soak format install deb docs conformance clean

setup:
	@scripts/setup

demo: setup
	.venv/bin/msharefs demo $(ARGS)

# Two tests at a time, each file's by the same process: most of their time is waiting. One at a time: JOBS=
JOBS = -n 2 --dist loadfile
test:
	@scripts/setup tests
	.venv/bin/python -m pytest $(JOBS) $(ARGS)

lint:
	@scripts/setup lint
	@scripts/lint $(ARGS)

sanitize:
	@scripts/setup tests
	@scripts/sanitize $(ARGS)

SECONDS = 60
fuzz:
	@scripts/setup fuzz
	@scripts/fuzz $(if $(RUNS),--runs $(RUNS),$(SECONDS))

soak: SECONDS = 1800
soak:
	@scripts/setup pytest
	@scripts/soak $(SECONDS)

format:
	@scripts/setup lint
	.venv/bin/ruff format .
	find native tests -name '*.[ch]' -exec .venv/bin/clang-format -i {} +

PREFIX = /usr/local
install: setup
	.venv/bin/python scripts/install.py --prefix "$(PREFIX)" --destdir "/$(DESTDIR)" $(ARGS)

deb: setup
	@scripts/deb

docs:
	@scripts/setup docs
	@scripts/docs

conformance:
	@scripts/setup pytest
	MSHAREFS_CONFORMANCE=. .venv/bin/python -m pytest -q tests/conformance/test_conformance.py $(ARGS)

clean:
	rm -rf .venv build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
