# `make run` serves; `make test` does everything that a change must pass. Each stage is a target of its own as well:
# `make lint`, `make browser`; `make test STAGES="lint rust"` does some of them.

# Tools that are no packages of Debian's are built once and kept here, outside the tree.
TOOLS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fanwire-tools
export TOOLS
export PATH := $(TOOLS)/bin:$(PATH)

STAGES ?= tools format lint licences rust doc release deploy autobahn browser fuzz load
# Seconds for each fuzz target.
FUZZ_SECONDS ?= 10

# Seconds for each test of `make soak`, and its seed; by default one at random, which is printed.
SECONDS ?= 600
SEED ?=

.PHONY: run test tools format lint licences rust doc release deploy autobahn browser fuzz load soak

run:
	cargo run --release --locked

test:
	@.ci/stages $(STAGES)

# What the other stages need and this machine lacks.
tools:
	.ci/tools

format:
	cargo fmt --check

lint:
	cargo clippy --locked --all-targets -- -D warnings

# Licences, sources and duplicates of dependencies, as deny.toml says; known vulnerabilities where their list is reached.
licences:
	cargo deny --locked check bans licenses sources
	.ci/advisories

# Unit and integration tests, websocat and the command line in a terminal, the load generator's own tests, and what
# docs/ says. Most of them wait for something, so more run side by side than there are cores.
rust:
	RUST_TEST_THREADS=4 cargo test --locked

# Private items too, since that is what is read here: module docs say `start at` such ones.
doc:
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --locked --no-deps --document-private-items

release:
	cargo build --release --locked --bins --examples

# What deploy/ ships, held to the server and run as far as it can be here: Redis, and the load balancer over two nodes.
deploy: release
	deploy/check target/release/fanwire

# The Autobahn cases against the echo example, which is on the production socket code.
autobahn: release
	AUTOBAHN_CARGO_FLAGS="--release --locked" tests/autobahn/run

# The browser client and the chat page, in Chromium.
browser: release
	tests/browser/run

fuzz:
	fuzz/run $(FUZZ_SECONDS)

# The load generator for a few seconds: not for its figures, but for its audit that every delivery came once, in order.
load: release
	target/release/examples/loadtest fan-out --turns 1 --seconds 3 --warm-up 1
	target/release/examples/loadtest many-to-many --turns 1 --seconds 3 --warm-up 1 --only server

# Faults at random, for long. Not part of `make test`, which has the same for seconds, with fixed seeds.
soak:
	FANWIRE_CHAOS_SECONDS=$(SECONDS) FANWIRE_SEED=$(SEED) cargo test --locked --test main chaos:: -- --nocapture --test-threads 1
