# Trunkline. A bare Debian 12 with Go, make, git and gcc is enough: what tests need beside them, make test installs.

GO      ?= go
MODULE  := github.com/trunkline-mq/trunkline
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

# Development tools, pinned here and not in go.mod: what builds the product does not depend on them.
STATICCHECK            := honnef.co/go/tools/cmd/staticcheck@v0.8.2
PROTOC_GEN_GO          := v1.36.12
PROTOC_GEN_GO_GRPC     := v1.6.2

# Programs that tests run, and the Debian packages that have them.
TEST_PACKAGES = $(strip \
	$(if $(shell nc -h 2>&1 | grep OpenBSD),,netcat-openbsd) \
	$(if $(shell command -v curl 2>/dev/null),,curl) \
	$(if $(shell command -v protoc 2>/dev/null),,protobuf-compiler) \
	$(if $(shell command -v mkfs.ext4 2>/dev/null),,e2fsprogs) \
	$(if $(shell command -v mkfs.xfs 2>/dev/null),,xfsprogs) \
	$(if $(shell command -v java 2>/dev/null),,openjdk-17-jre-headless) \
	$(if $(wildcard /usr/share/java/zookeeper.jar),,libzookeeper-java) \
	$(if $(shell command -v mvn 2>/dev/null),,maven) \
	$(if $(shell command -v node 2>/dev/null),,nodejs) \
	$(if $(shell command -v npm 2>/dev/null),,npm))

FUZZTIME  ?= 10m
BENCH     ?= .
ROUNDS    ?= 1000
KILLTIME  ?= 60s
SEEDS     ?= 20
KILLS     ?= 50
STEPS     ?= 240
OUTAGE    ?= 60s
RECORDS   ?= 1000000
PROTO_OUT ?= .
TOOLS     := $(CURDIR)/bin/tools/$(PROTOC_GEN_GO)-$(PROTOC_GEN_GO_GRPC)
PROTOS    := $(sort $(shell find protocol/pluginpb -name '*.proto'))

.PHONY: build run test test-tools chaos lint bench fuzz proto proto-tools clean
.DELETE_ON_ERROR:

build:
	$(GO) build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/trunkline-server ./server
	$(GO) build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/trunkline ./clients/cli

# ARGS="--data DIR" hands flags to the server.
run: build
	exec bin/trunkline-server $(ARGS)

# Every test, with nothing skipped for a missing program, and none answered from the cache, which does not know of the
# programs that whole-system tests build and run.
test: build test-tools
	TRUNKLINE_TEST_REQUIRE=1 $(GO) test -race -count=1 -timeout 30m ./...

test-tools:
ifneq ($(TEST_PACKAGES),)
	@command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] || \
		{ echo 'make test: these packages are missing; install them, or run as root on Debian: $(TEST_PACKAGES)' >&2; exit 1; }
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(TEST_PACKAGES)
endif

# Faults for long: power losses, full disks and kills on real file systems, kills at every named step of the lease, crashes
# of a simulated disk, kills under the Go client, and a ZooKeeper ensemble that is away. As root.
chaos: test-tools
	TRUNKLINE_TEST_REQUIRE=1 $(GO) test -count=1 -v -timeout 2h ./server/test/chaos -rounds $(ROUNDS) -time $(KILLTIME)
	$(GO) test -count=1 -v -timeout 2h ./server/test/chaos/step -rounds $(STEPS)
	$(GO) test -count=1 -v -timeout 2h ./plugins/storage/crashtest -seeds $(SEEDS)
	$(GO) test -count=1 -v -timeout 2h -run Kills ./server/test/client -kills $(KILLS) -records $(RECORDS)
	TRUNKLINE_TEST_REQUIRE=1 $(GO) test -count=1 -v -timeout 2h -run EnsembleAway ./server/test/zookeeper -outage $(OUTAGE)

lint:
	@unformatted="$$(gofmt -l clients plugins protocol server)"; \
		[ -z "$$unformatted" ] || { echo 'make lint: run gofmt -w on:' $$unformatted >&2; exit 1; }
	$(GO) vet ./...
	$(GO) vet -C plugins/sdk/examples ./...
	$(GO) run $(STATICCHECK) ./...
	$(GO) test -count=1 ./server/internal/lint

bench:
	$(GO) test -run '^$$' -bench '$(BENCH)' ./...

# Each fuzz target for FUZZTIME; go test takes one at a time. FUZZTIME=10s is a quick look.
fuzz:
	@set -e; for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "$$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

# Makes the generated code anew, below PROTO_OUT.
proto: proto-tools
	@command -v protoc >/dev/null || { echo 'make proto: protoc is missing; apt-get install protobuf-compiler' >&2; exit 1; }
	PATH="$(TOOLS):$$PATH" protoc -I . \
		--go_out=$(PROTO_OUT) --go_opt=module=$(MODULE) \
		--go-grpc_out=$(PROTO_OUT) --go-grpc_opt=module=$(MODULE) $(PROTOS)

# protoc runs its generators as programs, so these are installed where a version change is noticed.
proto-tools: $(TOOLS)/protoc-gen-go $(TOOLS)/protoc-gen-go-grpc

$(TOOLS)/protoc-gen-go:
	GOBIN=$(TOOLS) $(GO) install google.golang.org/protobuf/cmd/protoc-gen-go@$(PROTOC_GEN_GO)

$(TOOLS)/protoc-gen-go-grpc:
	GOBIN=$(TOOLS) $(GO) install google.golang.org/grpc/cmd/protoc-gen-go-grpc@$(PROTOC_GEN_GO_GRPC)

clean:
	rm -rf bin
