package keyserver

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	vault "github.com/hashicorp/vault/api"
	"github.com/sirupsen/logrus"

	"github.com/cconvert/cconvert/internal/secret"
)

// Vault is a Store in HashiCorp Vault: a path of a KV secrets engine, version 2. With a key of a transit secrets
// engine, what is kept there is encrypted by it first, so that whoever can read the path alone learns nothing.
//
// A secret is an entry with the field "base64", or "value" if somebody else has written it, or "ciphertext".
type Vault struct {
	client       *vault.Client
	mount, path  string // of the KV engine
	transit, key string // mount and name of the key; empty: what is kept is not encrypted
	from         string // where the token is

	mu sync.Mutex // of the token
}

// VaultPlace begins the place of a store in Vault: vault:MOUNT/PATH.
const VaultPlace = "vault:"

// Errors of stores elsewhere.
var (
	// ErrVaultPlace says that a text does not name a place in Vault.
	ErrVaultPlace = errors.New("not a place in Vault")
	ErrVaultToken = errors.New("not a token of Vault")
	// ErrUnavailable says that a store cannot be asked for now.
	ErrUnavailable = errors.New("the store cannot be asked")
)

// Bounds of what Vault answers, and how long it is waited for.
const (
	vaultTimeout   = 10 * time.Second
	vaultRetries   = 2
	maxVaultAnswer = 4 << 20 // a secret, twice in base64, and what is said of it
)

// vaultPath is a mount, and a path in it.
var vaultPath = regexp.MustCompile(`^([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)*)$`)

// OpenVault opens a store in the Vault of VAULT_ADDR and the other variables of its clients. Place is vault:MOUNT/PATH
// of a KV engine, and transit MOUNT/KEY, or empty. Token is where the token is: a file, env:VARIABLE or exec:COMMAND,
// which is read again if Vault refuses the token. A token that can be renewed is, until the context ends.
func OpenVault(ctx context.Context, place, transit, token string, exposed func(file string)) (*Vault, error) {
	v := &Vault{from: token}
	m := vaultPath.FindStringSubmatch(strings.TrimPrefix(place, VaultPlace))
	if m == nil {
		return nil, fmt.Errorf("%q: %w: vault:MOUNT/PATH expected", place, ErrVaultPlace)
	}
	v.mount, v.path = m[1], m[2]
	if transit != "" {
		if m = vaultPath.FindStringSubmatch(transit); m == nil || strings.Contains(m[2], "/") {
			return nil, fmt.Errorf("%q: %w: MOUNT/KEY expected", transit, ErrVaultPlace)
		}
		v.transit, v.key = m[1], m[2]
	}
	config := vault.DefaultConfig()
	if config.Error != nil {
		return nil, fmt.Errorf("reading Vault's variables: %w", config.Error)
	}
	if err := checkVaultAddress(config.Address); err != nil {
		return nil, err
	}
	config.Timeout, config.MaxRetries = vaultTimeout, vaultRetries
	config.HttpClient.Transport = &boundedAnswers{config.HttpClient.Transport}
	client, err := vault.NewClient(config)
	if err != nil {
		return nil, fmt.Errorf("reading Vault's variables: %w", err)
	}
	v.client = client
	text, open, err := secret.Read(ctx, token, keyTimeout)
	if err == nil {
		err = v.setToken(text)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the token of Vault: %w", err)
	}
	if open {
		exposed(token)
	}
	v.renew(ctx)
	return v, nil
}

// checkVaultAddress refuses to send secrets and tokens in plain text, but to this machine.
func checkVaultAddress(address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return fmt.Errorf("%w: VAULT_ADDR: %w", ErrVaultPlace, err)
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme != "https" && u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("%w: VAULT_ADDR %s: https:// expected", ErrVaultPlace, address)
	}
	return nil
}

// boundedAnswers refuses answers that are longer than any that is expected.
type boundedAnswers struct{ http.RoundTripper }

func (b *boundedAnswers) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = http.MaxBytesReader(nil, resp.Body, maxVaultAnswer)
	}
	return resp, err
}

// renew keeps the token alive if it can be renewed.
func (v *Vault) renew(ctx context.Context) {
	s, err := v.client.Auth().Token().RenewSelfWithContext(ctx, 0)
	if err != nil || s == nil || s.Auth == nil || !s.Auth.Renewable {
		return // such as the root's: whether it is good is seen when it is used
	}
	w, err := v.client.NewLifetimeWatcher(&vault.LifetimeWatcherInput{Secret: s})
	if err != nil {
		logrus.Warnf("the token of Vault is not renewed: %v", err)
		return
	}
	go w.Start()
	go func() {
		defer w.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-w.RenewCh():
			case err := <-w.DoneCh():
				logrus.Warnf("the token of Vault is not renewed any more: %v", err)
				return
			}
		}
	}()
}

// ask does something with Vault, and again with a new token if the token is refused.
func (v *Vault) ask(ctx context.Context, what string, do func() error) error {
	err := do()
	if refused(err) && v.readToken(ctx) {
		err = do()
	}
	var answer *vault.ResponseError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &answer) && answer.StatusCode < http.StatusInternalServerError &&
		answer.StatusCode != http.StatusTooManyRequests, errors.Is(err, vault.ErrSecretNotFound):
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w: %w", what, ErrUnavailable, err)
}

func refused(err error) bool {
	var answer *vault.ResponseError
	return errors.As(err, &answer) && answer.StatusCode == http.StatusForbidden
}

// readToken reads the token anew, and reports whether it is another one.
func (v *Vault) readToken(ctx context.Context) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	before := v.client.Token()
	text, _, err := secret.Read(ctx, v.from, keyTimeout)
	return err == nil && v.setToken(text) == nil && v.client.Token() != before
}

// setToken takes a token as it is written in a file.
func (v *Vault) setToken(text []byte) error {
	token := strings.TrimSpace(string(text))
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return ErrVaultToken
	}
	v.client.SetToken(token)
	return nil
}

// Get is of Store.
func (v *Vault) Get(ctx context.Context, name string) ([]byte, error) {
	if err := checkSecret(name, nil); err != nil {
		return nil, err
	}
	var s *vault.KVSecret
	err := v.ask(ctx, name, func() (err error) {
		s, err = v.client.KVv2(v.mount).Get(ctx, v.path+"/"+name)
		return err
	})
	if errors.Is(err, vault.ErrSecretNotFound) || err == nil && s.Data == nil { // it was never kept, or was deleted
		return nil, fmt.Errorf("%s: %w", name, ErrNoSecret)
	}
	if err != nil {
		return nil, err
	}
	value, err := v.valueOf(ctx, name, s.Data)
	if err == nil && len(value) > MaxSecret {
		clear(value)
		err = fmt.Errorf("%s: it has more than %d bytes", name, MaxSecret)
	}
	return value, err
}

// valueOf is the secret that an entry has.
func (v *Vault) valueOf(ctx context.Context, name string, data map[string]any) ([]byte, error) {
	text := func(field string) string { s, _ := data[field].(string); return s }
	if v.transit != "" {
		plain := ""
		err := v.ask(ctx, name, func() (err error) {
			plain, err = v.crypt(ctx, "decrypt", name, "ciphertext", text("ciphertext"), "plaintext")
			return err
		})
		if errors.Is(err, ErrUnavailable) {
			return nil, err
		}
		var value []byte
		if err == nil {
			value, err = base64.StdEncoding.DecodeString(plain)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %w", name, ErrEncrypted, err)
		}
		return value, nil
	}
	if value := text("value"); value != "" {
		return []byte(value), nil
	}
	value, err := base64.StdEncoding.DecodeString(text("base64"))
	if err != nil || len(value) == 0 {
		return nil, fmt.Errorf("%s: %w: it has no field \"value\" or \"base64\"", name, ErrNoSecret)
	}
	return value, nil
}

// crypt has the transit engine encrypt or decrypt something that belongs to a name, and to no other.
func (v *Vault) crypt(ctx context.Context, operation, name, field, value, result string) (string, error) {
	s, err := v.client.Logical().WriteWithContext(ctx, v.transit+"/"+operation+"/"+v.key, map[string]any{
		field: value, "associated_data": base64.StdEncoding.EncodeToString(header(name)),
	})
	if err != nil {
		return "", err
	}
	if s != nil {
		if out, ok := s.Data[result].(string); ok && out != "" {
			return out, nil
		}
	}
	return "", fmt.Errorf("%w: %s has no %s", io.ErrUnexpectedEOF, operation, result)
}

// Put is of Store. What the server keeps for itself is not written over: another server may have made it meanwhile.
func (v *Vault) Put(ctx context.Context, name string, value []byte) error {
	if err := checkSecret(name, value); err != nil {
		return err
	}
	field, text := "base64", base64.StdEncoding.EncodeToString(value)
	return v.ask(ctx, "keeping "+name, func() (err error) {
		kept := text
		if v.transit != "" {
			field = "ciphertext"
			if kept, err = v.crypt(ctx, "encrypt", name, "plaintext", text, field); err != nil {
				return err
			}
		}
		var options []vault.KVOption
		if strings.HasPrefix(name, "_") {
			options = append(options, vault.WithCheckAndSet(0))
		}
		_, err = v.client.KVv2(v.mount).Put(ctx, v.path+"/"+name, map[string]any{field: kept}, options...)
		return err
	})
}
