# make lab    provisions a blank virtual server before your eyes
# make test   everything CI runs
#
# Both install what they need from Debian's packages (they say so first).

SHELL := /bin/bash
.DEFAULT_GOAL := build

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
# With -trimpath a package is compiled once, wherever it lies: for tests, for what they build, and for bin/.
export GOFLAGS := $(strip $(GOFLAGS) -tags=nomsgpack -trimpath)
# vet is part of make check, with every analyzer.
TEST := go test -vet=off
LDFLAGS := -s -w -X github.com/lpmos/lpmos/internal/version.Value=$(VERSION)
CACHE ?= $(CURDIR)/.cache
SUDO := $(shell [ $$(id -u) = 0 ] || echo sudo -E)

# Parameters of make lab.
FIRMWARE ?= bios
MACHINES ?= 1
OS ?= debian-12
AUTO ?=

.PHONY: build release lab test check unit parsers browser vm vm-all vm-matrix long bench fuzz load screenshots pages lint tidy generated deps-lab deps-test clean help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

build: ## the four commands, in bin/
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

release: ## static programs for amd64 and arm64 in dist/, built twice and compared, with bills of materials and SHA256SUMS
	@scripts/release

lab: deps-lab build ## one blank virtual machine, provisioned for real (AUTO=1 FIRMWARE=uefi OS=tiny MACHINES=2)
	@$(SUDO) bin/lpmos lab up --firmware $(FIRMWARE) --machines $(MACHINES) --os $(OS) --cache-dir $(CACHE) $(if $(AUTO),--auto)

test: deps-test check unit parsers browser vm ## everything CI runs

check: lint tidy ## gofmt, vet, golangci-lint, tidy module
lint:
	@scripts/lint
tidy:
	@go mod tidy -diff

unit: ## unit, contract and system tests, with the race detector
	$(SUDO) env LPMOS_REQUIRE=root,mkfs,tools,images,e2e,shells GOFLAGS='$(GOFLAGS)' $(TEST) -race -timeout 20m -skip 'Browser|Screenshots' $$(go list ./... | grep -v -e /test/vm -e /test/browser)

parsers: ## every parser of bytes from outside against 500 inputs nobody meant (longer: make fuzz)
	$(SUDO) env GOFLAGS='$(GOFLAGS)' scripts/fuzz 500x

browser: ## the web interface in real Chromium
	LPMOS_REQUIRE=browser $(TEST) -count=1 -p 1 -timeout 15m -run Browser ./internal/controlplane/web ./test/e2e
	LPMOS_REQUIRE=browser $(TEST) -count=1 -timeout 20m ./test/browser

vm: deps-test ## machines provisioned for real, BIOS and UEFI
	$(SUDO) env LPMOS_REQUIRE=tools,cloud-init LPMOS_CACHE_DIR=$(CACHE) GOFLAGS='$(GOFLAGS)' $(TEST) -run 'AreValid|IsValid' .
	$(SUDO) env LPMOS_REQUIRE=vm LPMOS_CACHE_DIR=$(CACHE) GOFLAGS='$(GOFLAGS)' $(TEST) -count=1 -parallel 2 -timeout 30m -v ./test/vm

vm-all: deps-test ## every virtual machine test there is (about an hour)
	$(SUDO) env LPMOS_REQUIRE=vm,vm-all LPMOS_VM=all LPMOS_CACHE_DIR=$(CACHE) GOFLAGS='$(GOFLAGS)' $(TEST) -count=1 -p 1 -parallel 2 -timeout 90m -v ./test/vm ./internal/lab ./internal/bootimage ./internal/osimage

vm-matrix: deps-test ## every firmware with every way to install; the table goes to docs/vm-matrix.md (about 40 min, CELL= for some)
	$(SUDO) env LPMOS_REQUIRE=vm LPMOS_VM_MATRIX=$(CURDIR)/docs/vm-matrix.md LPMOS_VM_CELL="$(CELL)" LPMOS_CACHE_DIR=$(CACHE) GOFLAGS='$(GOFLAGS)' $(TEST) -count=1 -parallel 2 -timeout 90m -v -run TestMatrix ./test/vm

long: deps-test ## a thousand rounds of cancel against permit, with a disk each, and of the store alone
	LPMOS_LONG=1 $(TEST) -count=1 -timeout 30m -v -run CancelAgainstPermit ./test/e2e ./internal/controlplane/orchestrator

fuzz: ## every parser of bytes from outside against bytes nobody meant, two seconds each
	@GOFLAGS='$(GOFLAGS)' scripts/fuzz

bench: deps-test build ## numbers, side by side, of machines too (BENCH=-vm=false without, BENCH=-only=copy for one)
	@$(SUDO) env GOFLAGS='$(GOFLAGS)' LPMOS_CACHE_DIR=$(CACHE) go run ./test/bench $(BENCH)

load: build ## 1,000 and 10,000 browsers' sockets, 1,000 machines: numbers and plots (LOAD="-only own")
	@go run ./test/load -bin bin -out test-artifacts/load $(LOAD)

screenshots: deps-test build ## pictures for docs/images of a machine that is really installed, in the browser and in a terminal
	$(SUDO) env GOFLAGS='$(GOFLAGS)' LPMOS_REQUIRE=screenshots LPMOS_SCREENSHOTS=docs/images LPMOS_CACHE_DIR=$(CACHE) LPMOS_LAB_OS=$(OS) $(TEST) -count=1 -timeout 40m -v -run LabScreenshots ./test/browser

pages: deps-test ## a picture of every page in test-artifacts/pages: both languages, light and dark, wide and phone (PAGE=tasks for one)
	LPMOS_REQUIRE=browser LPMOS_SCREENSHOTS=test-artifacts LPMOS_PAGE=$(PAGE) $(TEST) -count=1 -timeout 20m -run TestPages ./test/browser

deps-lab:
	@$(SUDO) scripts/deps lab
deps-test:
	@$(SUDO) scripts/deps lab test

clean: ## what was built; downloads and images too
	rm -rf bin $(CACHE)
