GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
BUILD    = CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -buildid= -X main.version=$(VERSION)"
LOADER   = pkg/libos/gramine/sim/embedded/loader
AGENT    = pkg/libos/gramine/embedded/agent
AGENTSIM = pkg/libos/gramine/sim/embedded/agent
LINT     = github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.PHONY: build loader build-pkcs11 test demo first-time e2e bench bench-go fuzz lint image release

build: loader
	$(BUILD) -o bin/cconvert ./cmd/cconvert

# The loader of simulated images and the agents, which every program has in it that is built afterwards. They are measured:
# the same source and version of Go must give the same bytes, so nothing of this machine or of the commit is in them.
SMALL    = CGO_ENABLED=0 GOOS=linux GOARCH=amd64 GOAMD64=v1 GOFLAGS= GOEXPERIMENT= \
		$(GO) build -trimpath -buildvcs=false -ldflags "-s -w -buildid="
loader:
	$(SMALL) -o $(LOADER) ./cmd/cconvert-sim-loader
	$(SMALL) -o $(AGENT) ./cmd/cconvert-agent
	$(SMALL) -o $(AGENTSIM) ./cmd/cconvert-agent-sim
	gzip -9nf $(AGENT) $(AGENTSIM)

# With keys in PKCS#11 tokens, whose drivers are libraries in C: needs a C compiler.
build-pkcs11: loader
	CGO_ENABLED=1 $(GO) build -trimpath -tags pkcs11 -ldflags "-s -w -X main.version=$(VERSION)" -o bin/cconvert-pkcs11 ./cmd/cconvert

# Everything that needs nothing but Go.
test:
	$(GO) test ./...

# A minute's tour: convert, run, verify, tamper, be refused.
demo: first-time build
	$(BUILD) -o bin/demo-server ./demo/server
	$(GO) run ./demo

first-time:
	@test -e bin/cconvert || echo "The first time this takes a few minutes: what it needs is fetched and compiled. Later it takes seconds."

# Real images, a real registry and Docker. Needs root, and the Debian packages that .ci/run installs.
e2e: build build-pkcs11
	mkdir -p bin
	$(GO) test -tags e2e -count 1 -timeout 40m -v ./e2e 2>&1 | tee bin/e2e.log; \
	if ! grep -q '^ok' bin/e2e.log; then \
		echo '== what failed'; grep -E -A 12 'Error Trace:|^panic:|--- FAIL' bin/e2e.log | tail -60; exit 1; \
	fi

BENCHSTAT = golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da
CRANE = github.com/google/go-containerregistry/cmd/crane@v0.22.1

# How fast it is, beside other tools. Needs root, and the packages that .ci/run installs; takes a quarter of
# an hour; BENCH="-only warm,measure" measures these alone.
bench: build
	GOBIN=$(CURDIR)/bin/bench $(GO) install $(CRANE)
	$(GO) build -o bin/bench/bench ./bench
	bin/bench/bench $(BENCH)

# Go's own benchmarks, beside those of an earlier state in bin/bench/old.txt, if there are any.
bench-go:
	mkdir -p bin/bench
	$(GO) test -run '^$$' -bench . -count 6 ./pkg/rootfs ./pkg/manifest ./pkg/sgx ./cmd/cconvert >bin/bench/new.txt
	$(GO) run $(BENCHSTAT) $(wildcard bin/bench/old.txt) bin/bench/new.txt

FUZZTIME ?= 5m

# Everything that reads foreign bytes, fed with others. Minimising what is interesting would take most of the time.
# Before Go 1.27 a run that has found nothing can end as failed, when its time is over (golang/go#75804). What is found is
# written to testdata, and is told.
fuzz:
	mkdir -p bin
	for p in $$($(GO) list ./pkg/... ./internal/...); do \
		for f in $$($(GO) test -list '^Fuzz' $$p | grep ^Fuzz); do \
			echo "$$p $$f"; \
			$(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$p 2>&1 | tee bin/fuzz.log; \
			grep -q '^ok' bin/fuzz.log || grep -q '^    context deadline exceeded$$' bin/fuzz.log && \
				! grep -q 'Failing input' bin/fuzz.log || exit 1; \
		done; \
	done

lint:
	test -z "$$(gofmt -l .)"
	test -z "$$(git ls-files -z | xargs -0 -I{} find {} -size +1M)"
	$(GO) vet ./...
	$(GO) vet -tags e2e ./e2e
	$(GO) vet -tags pkcs11 ./pkg/sgx/signer
	$(GO) vet -tags man ./cmd/cconvert
	$(GO) run $(LINT) run

SBOM      = github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0
PLATFORMS = linux/amd64 linux/arm64 darwin/amd64 darwin/arm64
# The same archive from the same files.
ARCHIVE   = tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --use-compress-program='gzip -9n'

# What is published of a version, in bin/release: an archive for each platform, with manual pages and completions, a list
# of what each program is made of, and checksums. Needs no network but the Go module proxy.
release: loader
	rm -rf bin/release bin/share
	mkdir -p bin/release bin/share/man bin/share/completions
	$(GO) run -tags man ./cmd/cconvert man bin/share/man
	for s in bash zsh fish powershell; do $(GO) run ./cmd/cconvert completion $$s >bin/share/completions/cconvert.$$s || exit 1; done
	GOBIN=$(CURDIR)/bin/bench $(GO) install $(SBOM)
	set -e; for p in $(PLATFORMS); do \
		n=cconvert-$(VERSION)-$$(echo $$p | tr / -); d=bin/release/$$n; mkdir $$d; \
		GOOS=$${p%/*} GOARCH=$${p#*/} $(BUILD) -o $$d/cconvert ./cmd/cconvert; \
		bin/bench/cyclonedx-gomod bin -json -noserial -notimestamp -version $(VERSION) -output $$d.sbom.json $$d/cconvert; \
		cp -r README.md LICENSE CHANGELOG.md bin/share/man bin/share/completions $$d; \
		$(ARCHIVE) -cf $$d.tar.gz -C bin/release $$n; rm -r $$d; \
	done
	cd bin/release && sha256sum * >SHA256SUMS

# An image of cconvert itself, built without a network.
image: build
	cp /etc/ssl/certs/ca-certificates.crt bin/
	docker build -t cconvert .
