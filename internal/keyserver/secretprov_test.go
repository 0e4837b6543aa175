package keyserver

import (
	"context"
	"crypto"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/release"
	"github.com/cconvert/cconvert/pkg/sgx/quote"
	"github.com/cconvert/cconvert/pkg/sgx/quote/simulated"
	"github.com/cconvert/cconvert/pkg/sgx/ratls"
)

// secretProv has the owner's server answer Gramine's clients as well, which get a secret.
func (o *owner) secretProv() string {
	o.t.Helper()
	o.policy.Secrets[SecretProv] = Grant{Secret: "password"}
	require.NoError(o.t, o.policy.check())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(o.t, err)
	ctx, end := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); assert.NoError(o.t, o.server.ServeSecretProv(ctx, l)) }()
	o.t.Cleanup(func() { end(); <-done })
	return l.Addr().String()
}

// Clients of Gramine's get the one secret of the policy that is about them, and the log says so.
func TestSecretProv(t *testing.T) {
	o := newOwner(t)
	s := o.client()
	s.Address, s.Protocol = o.secretProv(), release.SecretProv
	got, err := s.Ask(t.Context(), o.key, o.quote, all[:1])
	require.NoError(t, err)
	assert.Equal(t, canary, string(got[all[0]].Value))
	list := o.decisions()
	require.Len(t, list, 1)
	assert.True(t, list[0].Released)
	assert.Equal(t, []string{SecretProv}, list[0].Want)
	assert.Equal(t, "app", list[0].Policy)

	delete(o.policy.Secrets, SecretProv)
	require.NoError(t, o.policy.check())
	_, err = s.Ask(t.Context(), o.key, o.quote, all[:1])
	require.ErrorIs(t, err, release.ErrRefused)
	assert.Contains(t, o.decisions()[1].Reason, "it does not grant a secret for secret-prov")
}

// strange is a client of Gramine's with which something is wrong.
type strange struct {
	*owner
	key     crypto.Signer // of the connection
	data    func(*[64]byte)
	make    func(*ratls.Request, []byte) ([]byte, error)
	request string
	none    bool // no certificate
}

// send returns what the server answers.
func (s *strange) send(address string) string {
	s.t.Helper()
	request, err := ratls.NewRequest(s.owner.key, nil)
	require.NoError(s.t, err)
	data := request.Data
	if s.data != nil {
		s.data(&data)
	}
	q, err := s.quote(data)
	require.NoError(s.t, err)
	der, err := s.make(request, q)
	require.NoError(s.t, err)
	config := &tls.Config{InsecureSkipVerify: true}
	if !s.none {
		config.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: s.key}}
	}
	c, err := tls.Dial("tcp", address, config)
	if err != nil {
		return ""
	}
	defer c.Close()
	require.NoError(s.t, c.SetDeadline(time.Now().Add(20*time.Second)))
	_, _ = io.WriteString(c, s.request)
	b, _ := io.ReadAll(c)
	return string(b)
}

// Nothing is released in any of these, and nobody learns why.
func TestAttacksBySecretProv(t *testing.T) {
	other := newKey(t)
	for what, c := range map[string]struct {
		change func(*strange)
		reason string
	}{
		"no certificate":        {func(s *strange) { s.none = true }, "certificate"},
		"another's certificate": {func(s *strange) { s.key = other }, "invalid"},
		"another request":       {func(s *strange) { s.request = strings.Repeat("x", 35) }, "does not ask as"},
		"a request of another version": {
			func(s *strange) { s.request = strings.Replace(s.request, "V1", "V0", 1) }, "does not ask as",
		},
		"half a request": {func(s *strange) { s.request = s.request[:10] }, "i/o timeout"},
		"no quote": {func(s *strange) {
			s.make = func(*ratls.Request, []byte) ([]byte, error) { return selfSignedWith(s.key) }
		}, "it has no quote"},
		"a quote of another's key": {func(s *strange) {
			s.key = other
			s.make = func(r *ratls.Request, q []byte) ([]byte, error) {
				e, err := r.Extension(q)
				require.NoError(s.t, err)
				return selfSignedWith(other, e)
			}
		}, "name another key"},
		"a quote over another key": {
			func(s *strange) { s.data = func(d *[64]byte) { d[0] ^= 1 } }, "the quote is about another key",
		},
		"another MRENCLAVE": {func(s *strange) { s.report.MREnclave[0] ^= 1 }, "another MRENCLAVE"},
		"an older version":  {func(s *strange) { s.report.ISVSVN-- }, "the SVN is 2"},
		"a debug enclave":   {func(s *strange) { s.report.Attributes.Flags |= 2 }, "a debugger can read it"},
		"a platform out of date": {
			func(s *strange) { s.machine.Levels = simulated.Level(5, 10, quote.OutOfDate) }, "OutOfDate",
		},
		"a policy without it":     {func(s *strange) { s.policy.secretProv = "" }, "does not grant"},
		"a secret that is gone":   {func(s *strange) { s.policy.secretProv = "gone" }, "there is no such secret"},
		"a log that is not there": {func(s *strange) { s.server.o.Log.Close() }, "-"},
		"the platform that everybody knows": {func(s *strange) {
			known, err := simulated.Known(s.now.Add(-time.Hour))
			require.NoError(s.t, err)
			*s.machine = *known
		}, "a simulated one, which anybody can make"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			o := newOwner(t)
			address := o.secretProv()
			s := &strange{
				owner: o, key: o.key, make: (*ratls.Request).Certificate, request: release.SecretProvRequest,
			}
			c.change(s)
			assert.Empty(t, s.send(address), "not a byte")
			if c.reason == "-" {
				return
			}
			var list []Decision
			require.Eventually(t, func() bool { // the alert about a certificate comes before the reason is written
				list = o.decisions()
				return len(list) == 1
			}, 10*time.Second, 10*time.Millisecond)
			assert.False(t, list[0].Released)
			assert.Contains(t, list[0].Reason, c.reason)
		})
	}
}

// clumsy is a store with a mistake in it.
type clumsy struct {
	Store
	panics bool
}

func (c *clumsy) Get(ctx context.Context, name string) ([]byte, error) {
	if c.panics && !strings.HasPrefix(name, "_") {
		c.panics = false
		panic("a mistake")
	}
	return c.Store.Get(ctx, name)
}

// A mistake that one client has shown does not end the server for the others.
func TestMistakeBySecretProv(t *testing.T) {
	o := newOwner(t, func(options *Options) { options.Store = &clumsy{options.Store, true} })
	s := o.client()
	s.Address, s.Protocol = o.secretProv(), release.SecretProv
	_, err := s.Ask(t.Context(), o.key, o.quote, all[:1])
	require.ErrorIs(t, err, release.ErrRefused)
	assert.Contains(t, o.decisions()[0].Reason, "a mistake")
	got, err := s.Ask(t.Context(), o.key, o.quote, all[:1])
	require.NoError(t, err)
	assert.Equal(t, canary, string(got[all[0]].Value))
}
