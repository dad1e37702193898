# `make help` lists the targets.
CARGO ?= cargo
PREFIX ?= /usr/local
# Where mount(8) looks for helpers, and nowhere else.
HELPERDIR ?= /sbin
DIR ?= /usr/share/doc
PROGRAMS := mkfs.vexfs fsck.vexfs vexfs-blockd vexfs-fuse vexfs-dump vexctl
NEXTEST := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo nextest)

.DEFAULT_GOAL := build
.NOTPARALLEL:
.PHONY: help deps deps-perf deps-posix perf-rivals build install demo lint test e2e sim sim-long soak mutants fsck-long fuzz fuzz-cover crash-test posix-test perf map-scale clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' Makefile

deps: ## install what building and testing need (Debian; root)
	@tests/scripts/deps.sh

deps-perf:
	@tests/scripts/deps.sh --perf

deps-posix:
	@tests/scripts/deps.sh --posix

build: ## the programs, optimised, in target/release
	$(CARGO) build --release --workspace --bins
	@ln -sf mkfs-vexfs target/release/mkfs.vexfs # cargo allows no dot in the name
	@ln -sf fsck-vexfs target/release/fsck.vexfs

install: build ## the programs into PREFIX (/usr/local), the mount helper into /sbin; DESTDIR is honoured
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(PROGRAMS:%=target/release/%) $(DESTDIR)$(PREFIX)/bin
	@if install -d $(DESTDIR)$(HELPERDIR) && [ -w $(DESTDIR)$(HELPERDIR) ]; then \
	  ln -sfv $(PREFIX)/bin/vexfs-fuse $(DESTDIR)$(HELPERDIR)/mount.fuse.vexfs; \
	else echo "install: without $(HELPERDIR)/mount.fuse.vexfs (it needs root) there is no mount -t fuse.vexfs"; fi

demo: deps build ## store, mount, ingest DIR (/usr/share/doc), ask, kill -9, recover
	@tests/scripts/demo.sh "$(DIR)"

lint: ## formatting and lints, warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

test: deps lint e2e sim ## everything that CI runs

# One seed for all, so that CI is the same everywhere; crash-test draws its own.
e2e: export VEXFS_TEST_SEED ?= 20261122
e2e: ## every test, unit and end to end, without lints
	$(CARGO) build --workspace --bins
ifeq ($(NEXTEST),nextest)
	$(CARGO) nextest run --workspace
	$(CARGO) test --workspace --doc
else
	$(CARGO) test --workspace
endif

# Lives of random steps on a simulated disk; counted, not timed, so that CI does the same everywhere (two to three minutes
# on two processors). A failure prints its seed, the steps that matter and what happened in them.
RUNS ?= $(if $(SEED),1,1000)
sim: ## the store and the mount under crashes, faults and damage (SEED=n RUNS=n TRACE=lines)
	VEXFS_SIM_SEED=$(SEED) VEXFS_SIM_RUNS=$(RUNS) VEXFS_SIM_TRACE=$(TRACE) \
	  $(CARGO) test -p vexfs-blockd --lib -- sim_tests::raw sim_tests::vexfs --nocapture
	VEXFS_SIM_SEED=$(SEED) VEXFS_SIM_RUNS=$$((($(RUNS) + 4) / 5)) VEXFS_SIM_TRACE=$(TRACE) \
	  $(CARGO) test -p vexfs-blockd --lib -- sim_tests::full --nocapture
	VEXFS_SIM_SEED=$(SEED) VEXFS_SIM_RUNS=$$((($(RUNS) + 9) / 10)) VEXFS_SIM_TRACE=$(TRACE) \
	  $(CARGO) test -p vexfs-fuse --lib -- sim_tests --include-ignored --skip three_operations --nocapture

sim-long: ## one life of HOURS=12 hours of simulated time, and all sequences of three operations
	VEXFS_SIM_SEED=$(SEED) VEXFS_SIM_HOURS=$(or $(HOURS),12) \
	  $(CARGO) test -p vexfs-blockd --lib -- --ignored sim_tests::long --nocapture
	$(CARGO) test -p vexfs-fuse --lib -- --ignored three_operations --nocapture

soak: deps build ## fio with verify while the daemon is killed, for SECONDS=600
	@tests/scripts/soak.sh $(or $(SECONDS),600)

mutants: ## break the store in several ways: the simulator must notice each
	@tests/scripts/mutants.sh

fsck-long: ## 10,000 spoiled volumes and 10,000 spoiled images, checked and repaired (VEXFS_TEST_SEED=1)
	VEXFS_FSCK_CASES=10000 VEXFS_FSCK_RAW_CASES=10000 $(CARGO) test -p vexfs-fuse --lib -- check::tests --nocapture

fuzz: ## hostile NBD streams (VEXFS_FUZZ_RUNS=20000 VEXFS_TEST_SEED=1)
	VEXFS_FUZZ_RUNS=$${VEXFS_FUZZ_RUNS:-20000} $(CARGO) test -p vexfs-blockd --test nbd fuzz:: -- --nocapture

# Finds go to tests/fuzz/artifacts, new inputs to tests/fuzz/target/corpus. The compiler's flags for libFuzzer are not stable ones.
fuzz-cover: export RUSTC_BOOTSTRAP := 1
fuzz-cover: ## coverage-guided fuzzing of every structure, each for SECONDS=60 (TARGET=inode for one)
	@$(CARGO) fuzz --version >/dev/null 2>&1 || { echo "fuzz-cover: cargo-fuzz is not there: cargo install --locked cargo-fuzz" >&2; exit 2; }
	@command -v c++ >/dev/null || { echo "fuzz-cover: libFuzzer needs a C++ compiler: apt-get install g++" >&2; exit 2; }
	cd tests/fuzz && for target in $(or $(TARGET),$$($(CARGO) fuzz list)); do \
	  mkdir -p target/corpus/$$target && $(CARGO) fuzz run -s none $$target target/corpus/$$target corpus/$$target -- \
	    -max_total_time=$(or $(SECONDS),60) -max_len=16384 -print_final_stats=1 || exit 1; done

crash-test: deps ## 30 rounds of each kill -9 test, the 4 GiB file, a directory of a million
	$(CARGO) build --workspace --bins --release
	VEXFS_TEST_ROUNDS=30 VEXFS_TEST_BIG_MIB=4096 VEXFS_TEST_ENTRIES=1000000 $(CARGO) test --release -p vexfs-tests -- --nocapture

posix-test: deps deps-posix ## pjdfstest, fsx and stress-ng on a mount, beside ext4 (root; SUITES="fsx stress")
	$(CARGO) build --workspace --bins
	@tests/scripts/posix-test.sh $(SUITES)

perf: deps-perf build perf-rivals ## ours and rivals side by side (ARGS="--only NAME --rounds N")
	target/release/vexfs-perf $(ARGS)

perf-rivals:
	@perf/rivals/prepare.sh

map-scale: ## open a volume with 1 TiB mapped at random; replay 4 GiB of log (writes 8 GB to TMPDIR)
	VEXFS_SCALE_DIR=$${VEXFS_SCALE_DIR:-$${TMPDIR:-/tmp}} $(CARGO) test --release -p vexfs-blockd --test map_scale -- --ignored --nocapture

clean: ## remove what was built
	$(CARGO) clean
