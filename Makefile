# make setup   everything a bare clone needs: Debian packages, .venv, build
# make demo    setup, then the demonstration; its options go in ARGS, e.g. make demo ARGS="--processes 1000"
# make test    setup, then all tests;         pytest's options go in ARGS, e.g. make test ARGS="-k unmap"

.PHONY: setup demo test clean

setup:
	@scripts/setup

demo: setup
	.venv/bin/msharefs demo $(ARGS)

test: setup
	.venv/bin/python -m pytest $(ARGS)

clean:
	rm -rf .venv build dist .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
