# Names only; what is longer than a line stands in scripts/. scripts/go is the
# go command, the first on this machine that is new enough for go.mod.

.PHONY: build man run test soak fuzz lint bench clean

build: ## bin/server: the reference service and its command line
	CGO_ENABLED=0 scripts/go build -trimpath -o bin/server ./cmd/server

man: build ## bin/man: the manual pages of the command line, as it is installed
	mkdir -p bin/man
	bin/server man --name mainstay bin/man

run: build ## the service in the foreground, on loopback
	scripts/run

test: ## everything, from gofmt to the tests on real systemd; installs what they need
	scripts/test

soak: ## the chaos test on real systemd for SOAK (30m); SEED=n brings the steps of that run again
	scripts/soak

fuzz: ## each fuzz target for FUZZTIME (60s)
	scripts/fuzz

lint: ## what go vet does not see
	scripts/go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

bench: build ## our echo beside its peers
	cd bench && ../scripts/go run ./cmd/compare

clean: ## what build made; the trees of the system tests stay in the cache
	rm -rf bin
