# Lethe: everything a person or a machine does with this tree.
# Programs are built into build/bin; nothing is written outside build/.

SHELL := /bin/sh
LAB ?= lab
BIN := build/bin
export GOFLAGS ?= -buildvcs=false

.PHONY: help up image campaign down shell operator build deps test bench fuzz lint clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

up: deps build ## bring up a whole service on this machine and show one customer's way through it
	@$(BIN)/lethe-lab up --prefix $(LAB)

image: deps build ## build the servers' image, boot it as the lab's VPN server and be its customer
	@dir=$$(scripts/image) && $(BIN)/lethe-lab up --prefix $(LAB) --image $$dir/lethe-*-vm-lab.iso

down: ## remove every trace of it
	@if [ -x $(BIN)/lethe-lab ]; then $(BIN)/lethe-lab down --prefix $(LAB); fi

shell: ## a shell on the customer's machine
	@$(BIN)/lethe-lab shell --prefix $(LAB)

operator: ## a shell on the control plane's machine
	@$(BIN)/lethe-lab operator --prefix $(LAB)

build: ## build the programs for the lab into build/bin
	@mkdir -p $(BIN)
	@go build -tags lab -o $(BIN)/ ./cmd/...

deps: ## install what is missing on Debian 12 or 13
	@scripts/deps

test: deps ## every check and every test, with coverage
	@scripts/test

campaign: deps ## boot 200 damaged images
	@LETHE_IMAGES=$$(scripts/image) && export LETHE_IMAGES && go test -count 1 -timeout 4h -run '^TestFlips$$' -v ./test -args -flips 200

bench: deps ## every benchmark, beside its peer
	@scripts/bench

fuzz: ## every fuzz target for FUZZTIME (10s) each
	@scripts/fuzz

lint: ## formatting, vet, staticcheck, known vulnerabilities
	@scripts/lint

clean: down ## remove build/ as well
	@rm -rf build
