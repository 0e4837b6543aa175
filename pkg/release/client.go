package release

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/cconvert/cconvert/pkg/sgx/ratls"
)

// Errors of a client, by the step that failed.
var (
	// ErrAddress says that the address or the identity of the server is not one.
	ErrAddress = errors.New("not the address of a server, with its identity")
	// ErrIdentity says that somebody else answered than the expected server.
	ErrIdentity = errors.New("it is not the expected server that answers")
	// ErrConnect says that the server could not be asked.
	ErrConnect = errors.New("the server cannot be asked")
	// ErrQuote says that no quote could be made.
	ErrQuote = errors.New("no quote could be made")
	// ErrRefused says that the server releases nothing. It does not say why; its log does.
	ErrRefused = errors.New("the server refused: its log says why")
)

// Pin is the SHA-256 of a server's public key (RFC 7469, "pin-sha256"). Its text is sha256/ and the digest in base64.
type Pin [sha256.Size]byte

const pinPrefix = "sha256/"

// PinOf is the pin of a certificate's key.
func PinOf(c *x509.Certificate) Pin { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// MarshalText is of encoding.TextMarshaler.
func (p Pin) MarshalText() ([]byte, error) {
	return []byte(pinPrefix + base64.StdEncoding.EncodeToString(p[:])), nil
}

func (p Pin) String() string { return pinPrefix + base64.StdEncoding.EncodeToString(p[:]) }

// UnmarshalText is of encoding.TextUnmarshaler.
func (p *Pin) UnmarshalText(text []byte) error {
	b, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(string(text), pinPrefix))
	if err != nil || len(b) != len(p) || !strings.HasPrefix(string(text), pinPrefix) {
		return fmt.Errorf("%w: %q is not sha256/ and a digest in base64", ErrAddress, text)
	}
	copy(p[:], b)
	return nil
}

// Server is whom an enclave asks. It is recognised by one of the pins, or by a certificate of its authorities: never by
// the authorities of the system, which the host chooses.
type Server struct {
	// Protocol is one of Protocols; empty: the first.
	Protocol string `json:"protocol,omitempty"`
	// Address is https://HOST:PORT, of Gramine's servers HOST:PORT.
	Address string `json:"address"`
	// Resources are what a key broker service has for the places, REPOSITORY/TYPE/TAG.
	Resources map[string]string `json:"resources,omitempty"`
	Pins      []Pin             `json:"pins,omitempty"`
	// CA are certificates in PEM, and Name the server's in its certificate; empty: the host of the address.
	CA   string `json:"ca,omitempty"`
	Name string `json:"name,omitempty"`
	// Timeout is how long it may take in all; 0: DefaultTimeout.
	Timeout time.Duration `json:"-"`
}

// ParseServer reads a server as people write it: the protocol, the address, and how it is recognised, such as
// release=https://kms.example:8443,pin=sha256/DIGEST or …,ca=FILE,name=HOST. Pins may be several. The error is
// ErrAddress, or that of reading a file.
func ParseServer(text string, read func(file string) ([]byte, error)) (Server, error) {
	var s Server
	for i, field := range strings.Split(text, ",") {
		key, value, _ := strings.Cut(field, "=")
		switch {
		case i == 0 && slices.Contains(Protocols, key):
			if s.Address = value; key != Protocols[0] {
				s.Protocol = key
			}
		case i == 0:
			return s, fmt.Errorf("%w: %q does not begin with release=https://HOST:PORT, secret-prov=HOST:PORT or "+
				"kbs=https://HOST:PORT", ErrAddress, text)
		case key == "pin":
			var p Pin
			if err := p.UnmarshalText([]byte(value)); err != nil {
				return s, err
			}
			s.Pins = append(s.Pins, p)
		case key == "ca" && s.CA == "":
			ca, err := read(value)
			if err != nil {
				return s, err
			}
			s.CA = string(ca)
		case key == "name" && s.Name == "":
			s.Name = value
		default:
			return s, fmt.Errorf("%w: %q: there is pin=sha256/DIGEST, ca=FILE and name=HOST", ErrAddress, field)
		}
	}
	return s, s.Check()
}

// Protocols by which secrets are asked for, as people call them.
var Protocols = []string{"release", SecretProv, KBS}

// Protocols of others: of Gramine's servers, and of Trustee's key broker service.
const (
	SecretProv = "secret-prov"
	KBS        = "kbs"
)

// Fills reports, as ErrAddress, which places a server cannot fill.
func (s *Server) Fills(want []Slot) error {
	for _, slot := range want {
		switch {
		case s.Protocol == "":
		case slot.Kind == KindTLS:
			return fmt.Errorf("%w: %s: servers of the protocol %s sign no certificates", ErrAddress, slot, s.Protocol)
		case s.Protocol == SecretProv && len(want) > 1:
			return fmt.Errorf("%w: %s has one secret, and there are %d places", ErrAddress, s.Address, len(want))
		case s.Protocol == KBS && s.Resources[slot.String()] == "":
			return fmt.Errorf("%w: %s: which resource is it? Say %s=REPOSITORY/TYPE/TAG", ErrAddress, slot, slot)
		}
	}
	return nil
}

// DefaultTimeout is how long asking a server may take in all.
const DefaultTimeout = 30 * time.Second

// Check reports, as ErrAddress, what is wrong with an address or identity.
func (s *Server) Check() error {
	u, err := url.Parse(s.Address)
	if s.Protocol == SecretProv {
		u, err = url.Parse("https://" + s.Address)
	}
	for place, resource := range s.Resources {
		if _, err := ParseSlot(place); err != nil {
			return err
		}
		if s.Protocol != KBS || !isResource(resource) {
			return fmt.Errorf("%w: %q is not a resource REPOSITORY/TYPE/TAG of a key broker service", ErrAddress,
				resource)
		}
	}
	switch {
	case strings.ContainsFunc(s.Address+s.Name, func(r rune) bool { return r <= ' ' || r > '~' }):
		return fmt.Errorf("%w: %q and %q: names of hosts are ASCII", ErrAddress, s.Address, s.Name)
	case s.Protocol != "" && !slices.Contains(Protocols[1:], s.Protocol):
		return fmt.Errorf("%w: there is no protocol %q", ErrAddress, s.Protocol)
	case s.Protocol == SecretProv && (err != nil || u.Host != s.Address || u.Port() == ""):
		return fmt.Errorf("%w: %q is not HOST:PORT", ErrAddress, s.Address)
	case err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" ||
		u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("%w: %q is not https://HOST:PORT", ErrAddress, s.Address)
	case (len(s.Pins) > 0) == (s.CA != ""):
		return fmt.Errorf("%w: name how it is recognised: pin=sha256/DIGEST, or ca=FILE, and not both", ErrAddress)
	case s.CA != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(s.CA)):
		return fmt.Errorf("%w: there is no certificate in PEM among its authorities", ErrAddress)
	}
	return nil
}

// Identities are by what the server is recognised: the pins of its key, or for each certificate of its authorities the
// name that they must have signed for, and the certificate's SHA-256, as kms.example@sha256:DIGEST in hexadecimal.
func (s *Server) Identities() (list []string) {
	for _, p := range s.Pins {
		list = append(list, p.String())
	}
	for rest := []byte(s.CA); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return list
		}
		list = append(list, fmt.Sprintf("%s@sha256:%x", cmp.Or(s.Name, s.host()), sha256.Sum256(block.Bytes)))
	}
}

// host is that of the address.
func (s *Server) host() string {
	address := s.Address
	if s.Protocol == SecretProv {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// tls is how the server is recognised.
func (s *Server) tls() *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: s.Name}
	if s.CA != "" {
		c.RootCAs = x509.NewCertPool()
		c.RootCAs.AppendCertsFromPEM([]byte(s.CA))
		return c
	}
	c.InsecureSkipVerify = true // the key is compared instead, whoever has signed the certificate
	c.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 || !slices.Contains(s.Pins, PinOf(state.PeerCertificates[0])) {
			return ErrIdentity
		}
		return nil
	}
	return c
}

// Ask proves to the server, with a quote over a new key, which enclave it is that asks, and returns what the server
// fills the slots with. The key is what certificates of tls slots are for.
func (s *Server) Ask(
	ctx context.Context, key crypto.Signer, quote func(data [64]byte) ([]byte, error), want []Slot,
) (map[Slot]Secret, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	if len(want) == 0 {
		return nil, fmt.Errorf("%w: nothing is wanted", ErrProtocol)
	}
	if err := s.Fills(want); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(s.Timeout, DefaultTimeout))
	defer cancel()
	switch s.Protocol {
	case SecretProv:
		return s.askSecretProv(ctx, key, quote, want[0])
	case KBS:
		return s.askKBS(ctx, quote, want)
	}
	var challenge Challenge
	text, _, err := s.do(ctx, http.MethodGet, PathChallenge, nil, s.tls(), "")
	if err != nil {
		return nil, err
	}
	if err := parse(text, &challenge, MaxRequest); err != nil {
		return nil, err
	}
	if len(challenge.Nonce) != NonceSize {
		return nil, fmt.Errorf("%w: its nonce has %d bytes", ErrProtocol, len(challenge.Nonce))
	}
	certificate, err := certify(key, challenge.Nonce, quote)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(Request{Version: Version, Want: want})
	if err != nil {
		return nil, err
	}
	config := s.tls()
	config.Certificates = []tls.Certificate{certificate}
	if text, _, err = s.do(ctx, http.MethodPost, PathRelease, body, config, ""); err != nil {
		return nil, err
	}
	defer clear(text)
	return ParseAnswer(text, want)
}

// certify makes a certificate of RA-TLS for a key, with a quote about it and a nonce, or nil.
func certify(
	key crypto.Signer, nonce []byte, quote func(data [64]byte) ([]byte, error),
) (c tls.Certificate, err error) {
	request, err := ratls.NewRequest(key, nonce)
	if err != nil {
		return c, err
	}
	q, err := quote(request.Data)
	if err != nil {
		return c, fmt.Errorf("%w: %w", ErrQuote, err)
	}
	der, err := request.Certificate(q)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// do makes one request, over a connection of its own, in a session of the server's if there is one. It returns the
// answer, and the session that it names.
func (s *Server) do(
	ctx context.Context, method, path string, body []byte, config *tls.Config, session string,
) (text []byte, begun string, err error) {
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimRight(s.Address, "/")+path, bytes.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	if session != "" {
		req.Header.Set("Cookie", kbsCookie+"="+session)
	}
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	client := http.Client{
		Transport:     &http.Transport{TLSClientConfig: config, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, "", s.failed(err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusForbidden,
		s.Protocol == KBS && (resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusNotFound):
		return nil, "", ErrRefused
	case resp.StatusCode != http.StatusOK:
		return nil, "", fmt.Errorf("%w: %s answers %s", ErrConnect, s.Address, resp.Status)
	}
	for _, c := range resp.Cookies() {
		if c.Name == kbsCookie {
			begun = c.Value
		}
	}
	text, err = io.ReadAll(io.LimitReader(resp.Body, MaxAnswer+1))
	if err == nil && len(text) > MaxAnswer {
		return nil, "", fmt.Errorf("%w: it has more than %d bytes", ErrProtocol, MaxAnswer)
	}
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrConnect, err)
	}
	return text, begun, nil
}

// failed returns ErrIdentity if somebody else has answered, and ErrConnect if nobody has.
func (s *Server) failed(err error) error {
	var unproven *tls.CertificateVerificationError
	switch {
	case errors.Is(err, ErrIdentity):
		return fmt.Errorf("%s: %w", s.Address, ErrIdentity)
	case errors.As(err, &unproven):
		return fmt.Errorf("%s: %w: %w", s.Address, ErrIdentity, err)
	}
	return fmt.Errorf("%w: %w", ErrConnect, err)
}
