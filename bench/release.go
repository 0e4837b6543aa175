package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"time"

	"github.com/cconvert/cconvert/internal/keyserver"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/release"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/sgx/quote"
	"github.com/cconvert/cconvert/pkg/sgx/quote/simulated"
)

// clients is how many enclaves ask a server at once.
const clients = 200

var password = release.Slot{Kind: release.KindEnv, Name: "PASSWORD"}

// release times the verification of a quote, and 200 enclaves that start at once, whose server may take 64 MB.
func (b *bench) release(ctx context.Context) error {
	m, err := newMachine()
	if err != nil {
		return err
	}
	if err := b.verification(m); err != nil {
		return err
	}
	dir := filepath.Join(b.dir, "release")
	if err := m.prepare(ctx, dir); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, b.program, "release", "serve", "--listen", "127.0.0.1:0", "--status-listen", "",
		"--policies", filepath.Join(dir, "policies"), "--store", filepath.Join(dir, "secrets"), "--store-key",
		filepath.Join(dir, "store.key"), "--log", filepath.Join(dir, "log"), "--allow-simulated")
	said, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := forgetPeak(); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() { _ = cmd.Process.Kill() }()
	server, err := listening(said)
	if err != nil {
		return err
	}
	if _, err := b.median(fmt.Sprintf("%d enclaves get a secret at once", clients), func() (time.Duration, error) {
		begin := time.Now()
		err := m.all(ctx, server)
		return time.Since(begin), err
	}); err != nil {
		return err
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return err
	}
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		b.goal("peak memory of the release server", float64(u.Maxrss<<10)/1e6, 64, " MB")
	}
	return nil
}

// verification times that of a quote whose collateral is there.
func (b *bench) verification(m *machine) error {
	raw, err := m.platform.Quote()
	if err != nil {
		return err
	}
	c, err := m.platform.Collateral()
	if err != nil {
		return err
	}
	const times = 100
	took, err := b.median(fmt.Sprintf("verifying a quote, %d times", times), func() (time.Duration, error) {
		begin := time.Now()
		for range times {
			q, err := quote.Parse(raw)
			if err != nil {
				return 0, err
			}
			if _, err := q.Verify(c, quote.Options{At: begin, Root: m.platform.Root.Certificate}); err != nil {
				return 0, err
			}
		}
		return time.Since(begin), nil
	})
	b.goal("verifying a quote", took/times*1000, 2, " ms")
	return err
}

// machine is a simulated one, all of whose enclaves are the same.
type machine struct {
	mu       sync.Mutex
	platform *simulated.Platform
	report   quote.Report
}

func newMachine() (*machine, error) {
	p, err := simulated.Known(time.Now().Add(-time.Hour))
	if err != nil {
		return nil, err
	}
	m := &machine{platform: p, report: quote.Report{
		MREnclave: sgx.Measurement{1}, MRSigner: sgx.Measurement{2}, Attributes: sgx.Attributes{Flags: 5, XFRM: 3},
	}}
	p.Set(&m.report)
	return m, nil
}

func (m *machine) quote(data [64]byte) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.report.Data = data
	m.platform.Set(&m.report)
	return m.platform.Quote()
}

// prepare makes a store with a secret, and the policy that releases it.
func (m *machine) prepare(ctx context.Context, dir string) error {
	if err := os.RemoveAll(dir); err != nil { // of an earlier run
		return err
	}
	key := filepath.Join(dir, "store.key")
	if err := keyserver.CreateKey(key); err != nil {
		return err
	}
	store, err := keyserver.OpenDirectory(ctx, filepath.Join(dir, "secrets"), key, func(string) {})
	if err != nil {
		return err
	}
	if err := store.Put(ctx, "password", []byte("a password")); err != nil {
		return err
	}
	p := keyserver.Policy{
		Version: keyserver.PolicyVersion, Secrets: map[string]keyserver.Grant{password.String(): {Secret: "password"}},
		Enclave: keyserver.Enclave{
			By: attest.ByEnclave, MREnclave: &m.report.MREnclave, MRSigner: m.report.MRSigner, Simulated: true,
			Flags: keyserver.Masked{Value: 4, Mask: 6}, XFRM: keyserver.Masked{Value: 3, Mask: 3},
		},
	}
	text, err := p.Text()
	if err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "policies"), 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "policies", "app.toml"), text, 0o600)
}

// listening waits until a server says where it listens, and how it is recognised.
func listening(said io.Reader) (*release.Server, error) {
	says := regexp.MustCompile(`listening on (\S+), pin=(\S+?)"?$`)
	lines := bufio.NewScanner(said)
	for lines.Scan() {
		if found := says.FindStringSubmatch(lines.Text()); found != nil {
			go func() { _, _ = io.Copy(io.Discard, said) }()
			s := &release.Server{Address: "https://" + found[1], Pins: make([]release.Pin, 1)}
			return s, s.Pins[0].UnmarshalText([]byte(found[2]))
		}
	}
	return nil, errors.New("the release server does not start")
}

// all has enclaves ask at once, each until it is answered: of one address, a server takes a few at a time.
func (m *machine) all(ctx context.Context, server *release.Server) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	failed := make(chan error, clients)
	for range clients {
		go func() {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				failed <- err
				return
			}
			for {
				_, err = server.Ask(ctx, key, m.quote, []release.Slot{password})
				if !errors.Is(err, release.ErrConnect) || ctx.Err() != nil {
					failed <- err
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
		}()
	}
	for range clients {
		if err := <-failed; err != nil {
			return err
		}
	}
	return nil
}
