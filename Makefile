# make setup   everything a bare clone needs: Debian packages, .venv, build
# make demo    setup, then the demonstration; its options go in ARGS, e.g. make demo ARGS="--processes 1000"
# make test    setup, then all tests;         pytest's options go in ARGS, e.g. make test ARGS="-k unmap"
# make conformance  setup, then every case of the kernel series asked of a real mount; writes CONFORMANCE.md and the table in README.md

.PHONY: setup demo test conformance clean

setup:
	@scripts/setup

demo: setup
	.venv/bin/msharefs demo $(ARGS)

test:
	@scripts/setup tests
	.venv/bin/python -m pytest $(ARGS)

conformance: setup
	MSHAREFS_CONFORMANCE=. .venv/bin/python -m pytest -q tests/conformance/test_conformance.py $(ARGS)

clean:
	rm -rf .venv build dist .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
