# SPDX-License-Identifier: GPL-2.0
# The commands of this project; `make help` lists them.

env := python3 tools/env

.DEFAULT_GOAL := help
.PHONY: help setup clean-cache

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

setup: ## provision toolchain, kernel and virtual machines (also done on demand)
	@$(env) setup

clean-cache: ## remove everything that was provisioned
	@$(env) clean
