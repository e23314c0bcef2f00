# SPDX-License-Identifier: GPL-2.0
# The commands of this project; `make help` lists them.

env := python3 tools/env

.DEFAULT_GOAL := help
.PHONY: help setup clean-cache

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

setup: ## provision toolchain, kernel and virtual machines (also done on demand)
	@$(env) setup

# Modules for KDIR, a kernel build tree with Rust metadata; objects and modules land in $(O).
# Without KDIR they are built in the provisioned tree, for its kernel.
KCC = $(shell sed -n 's/^CONFIG_CC_VERSION_TEXT="\{0,1\}\([^" ]*\).*/\1/p' $(KDIR)/include/config/auto.conf)
# Of a kernel built by LLVM the text names no command, and all tools have to be LLVM's.
KLLVM = $(shell sed -n 's/^CONFIG_CC_IS_CLANG=//p' $(KDIR)/include/config/auto.conf)
O ?= $(CURDIR)/build/$(shell cat $(KDIR)/include/config/kernel.release 2>/dev/null)
kbuild = $(MAKE) -C $(KDIR) M=$(CURDIR) MO=$(O) $(if $(KLLVM),LLVM=1,CC=$(KCC)) $(addprefix ARCH=,$(KARCH))

.PHONY: modules clean
ifdef KDIR
modules: ## build the modules (for KDIR, or for the provisioned kernel)
	@mkdir -p $(O)
	@flock $(O)/lock $(kbuild) modules
else
modules:
	@$(env) enter -- make --no-print-directory -j$(shell nproc) modules
endif

.PHONY: commands
commands: ## build the programs for NFS over vsock, for `make install`
	@$(env) enter -- python3 tools/commands.py

.PHONY: install uninstall
RELEASE ?= $(if $(KDIR),$(shell cat $(KDIR)/include/config/kernel.release 2>/dev/null),$(shell uname -r))
installer = python3 tools/install.py --release '$(RELEASE)' $(if $(DESTDIR),--root '$(DESTDIR)')

install: ## install what was built: modules for RELEASE (uname -r) instead of the kernel's own, commands; DESTDIR=
	@$(installer) install

uninstall: ## take that back
	@$(installer) uninstall

.PHONY: demo shell
demo: modules ## boot a host and a guest, move data between them, show what happens
	@$(env) enter -- python3 tools/demo

shell: modules ## a shell in the host VM with a guest running: the development loop
	@$(env) enter -- python3 tools/rig shell

.PHONY: test
test: modules ## everything that proves the project; T= is a pytest -k expression; SEED=, STEPS= for hostile peers, LIMIT= in seconds
	@$(env) enter -- python3 -m pytest tests $(if $(T),-k '$(T)') $(if $(SEED),--seed '$(SEED)') $(if $(STEPS),--steps '$(STEPS)') \
		$(if $(LIMIT),--session-timeout '$(LIMIT)')

.PHONY: bench
# The modules that are built first are for the lane's kernel.
ifeq ($(LANE),native)
bench: export KERNEL := uml
endif
bench: modules ## speed beside C: PAIRS=, CELLS=, ROUNDS=, LANE=, QUICK=1; OUT= is for the results
	@python3 tools/bench $(if $(OUT),--out '$(OUT)') $(if $(PAIRS),--pairs '$(PAIRS)') $(if $(CELLS),--cells '$(CELLS)') \
		$(if $(ROUNDS),--rounds '$(ROUNDS)') $(if $(LANE),--lane '$(LANE)') $(if $(QUICK),--quick)

.PHONY: bench-nfs
bench-nfs: modules ## NFS over vsock beside NFS over TCP, proxies, virtiofs and 9p: ROUNDS=, NCONNECT=
	@$(env) enter -- python3 tools/nfs_bench $(if $(ROUNDS),--rounds '$(ROUNDS)') $(if $(NCONNECT),--nconnect '$(NCONNECT)')

.PHONY: soak
soak: modules ## hours of mixed load, restarts and faults: HOURS= (1) or MINUTES=, SEED=, IMPLEMENTATION=c; Ctrl-C ends it with its report
	@$(env) enter -- python3 tools/soak $(if $(HOURS),--hours '$(HOURS)') $(if $(MINUTES),--minutes '$(MINUTES)') \
		$(if $(SEED),--seed '$(SEED)') $(if $(IMPLEMENTATION),--implementation '$(IMPLEMENTATION)')

.PHONY: fuzz
fuzz: ## fuzz the protocol crate: TARGET=, SECONDS= for each target (60)
	@$(env) enter -- python3 tools/fuzz $(if $(TARGET),--target '$(TARGET)') $(if $(SECONDS),--seconds '$(SECONDS)')

.PHONY: check rustfmt rust-analyzer
check: ## what can be proven in seconds: lints, cargo tests, no panic paths, licences
	@$(env) enter -- python3 tools/check

rustfmt: ## format all Rust
	@$(env) enter -- rustfmt $(shell git -c safe.directory=$(CURDIR) ls-files -co --exclude-standard '*.rs')

ifdef KDIR
rust-analyzer: modules ## write rust-project.json, for editors
	@flock $(O)/lock $(kbuild) rust-analyzer
	@python3 tools/rust_project.py $(O) rust-project.json
else
rust-analyzer:
	@$(env) enter -- make --no-print-directory rust-analyzer
endif

clean: ## remove what was built
	rm -rf build

clean-cache: ## remove everything that was provisioned
	@$(env) clean
