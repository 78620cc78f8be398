# Two commands for a fresh machine: `make demo` and `make test`. Each sees to what is missing first.

CARGO ?= cargo
# The lock file decides, so that a fresh clone builds what was tested.
LOCKED := --locked

.DEFAULT_GOAL := help
.PHONY: help demo web-demo test check bench peers

help:
	@echo 'make demo      attention of a real sentence encoder on every adapter found, with a page to look at'
	@echo 'make web-demo  the same encoder in the browser, on its WebGPU: serves a page on this machine alone'
	@echo 'make test      all tests, on every adapter found (FOVEATE_FIXTURES=DIR adds a folder of cases)'
	@echo 'make bench     the ops beside the ceilings of this adapter (FOVEATE_ADAPTER chooses one)'
	@echo 'make peers     the ops beside other implementations on this machine (sets them up first: long, some GB)'
	@echo 'make check     formatting, lints and docs'

demo:
	@scripts/vulkan.sh
	$(CARGO) run $(LOCKED) --release -- demo

# Python serves the page where there is no Node.
web-demo:
	@if command -v node >/dev/null; then exec node examples/web/serve.mjs; fi; \
	echo 'http://localhost:8000/examples/web/   (Ctrl-C ends it)'; exec python3 -m http.server --bind 127.0.0.1 8000

# SwiftShader, where Debian's chromium-common has brought it: a third software device, with subgroups of 4.
SWIFTSHADER := $(wildcard /usr/lib/chromium/vk_swiftshader_icd.json)

# One feature set for all tests, so that dependencies are built once. `noop` adds wgpu's device that
# computes nothing and hides nothing.
test:
	@scripts/vulkan.sh --tests
	@scripts/web.sh
	$(CARGO) test $(LOCKED) --workspace --features noop --no-fail-fast
ifneq ($(SWIFTSHADER),)
	WGPU_BACKEND=vulkan VK_ICD_FILENAMES=$(SWIFTSHADER) VK_DRIVER_FILES=$(SWIFTSHADER) \
	    $(CARGO) test $(LOCKED) --features noop --test attention --test merge --test rotary --test weights --test softmax --test linear_attention_slices --test bad_input
else
	@echo 'skipped: SwiftShader is not there (Debian and Ubuntu: package chromium-common)'
endif
	$(CARGO) check $(LOCKED) --no-default-features --lib

bench:
	@scripts/vulkan.sh
	$(CARGO) run $(LOCKED) --release -- bench

# A peer that could not be set up becomes a row that says so.
peers:
	@scripts/vulkan.sh
	@benches/peers/setup.sh || echo 'going on without what is not set up'
	$(CARGO) run $(LOCKED) --release --package foveate-peers --bin peers

check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(LOCKED) --workspace --all-targets --features noop -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc $(LOCKED) --no-deps
