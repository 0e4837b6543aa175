//go:build pkcs11

package signer

import (
	"cmp"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"
	pkcs11uri "github.com/stefanberger/go-pkcs11uri"

	"github.com/cconvert/cconvert/pkg/sgx"
)

// moduleDirs are where a module is looked for that is given by its name.
var moduleDirs = []string{
	"/usr/lib/x86_64-linux-gnu/pkcs11", "/usr/lib/pkcs11", "/usr/lib64/pkcs11", "/usr/lib/x86_64-linux-gnu",
	"/usr/lib64", "/usr/lib", "/usr/lib/softhsm", "/usr/local/lib",
}

// token signs in a hardware module.
type token struct {
	name    string
	timeout time.Duration
	module  *crypto11.Context
	key     crypto11.Signer
	public  *rsa.PublicKey
}

// openToken logs in to the token that a URI names, and finds the key.
func openToken(ctx context.Context, uri string, o Options) (sgx.Signer, error) {
	name, config, object, err := parseURI(uri)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	pin, err := config.pin(o, name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	config.Pin = string(pin)
	clear(pin)
	timeout := cmp.Or(o.Timeout, DefaultTimeout)
	t, err := patient(ctx, timeout, func() (*token, error) {
		module, err := crypto11.Configure(&config.Config)
		if err != nil {
			return nil, err
		}
		t := &token{name: name, timeout: timeout, module: module}
		if err := t.find(object); err != nil {
			t.Close()
			return nil, err
		}
		return t, nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, explain(err))
	}
	return t, nil
}

// find looks the key up.
func (t *token) find(object objectName) error {
	keys, err := t.module.FindKeyPairs(object.id, object.label)
	if err != nil {
		return err
	}
	if len(keys) != 1 {
		return fmt.Errorf("it has %d key pairs of this name: one is needed, private and public object with the same "+
			"id; pkcs11-tool --list-objects shows them", len(keys))
	}
	var ok bool
	t.key = keys[0]
	if t.public, ok = t.key.Public().(*rsa.PublicKey); !ok {
		return errors.New("the key is no RSA key")
	}
	return sgx.CheckPublicKey(t.public)
}

// tokenConfig is crypto11's, and where the PIN is if not with the user.
type tokenConfig struct {
	crypto11.Config
	uri *pkcs11uri.Pkcs11URI
}

func (c *tokenConfig) pin(o Options, of string) ([]byte, error) {
	if source, ok := c.uri.GetQueryAttribute("pin-source", false); ok {
		if !strings.HasPrefix(source, "/") && !strings.HasPrefix(source, "file:/") {
			return nil, fmt.Errorf("pin-source: %w: a file by its absolute path expected", ErrName)
		}
		pin, err := c.uri.GetPIN()
		if err != nil {
			return nil, fmt.Errorf("reading the PIN: %w", err)
		}
		return []byte(strings.TrimRight(pin, "\r\n")), nil
	}
	if o.Passphrase == nil {
		return nil, fmt.Errorf("a PIN is needed, and there is no %w", sgx.ErrPassphrase)
	}
	pin, err := o.Passphrase(of)
	if err == nil && len(pin) == 0 {
		err = fmt.Errorf("a PIN is needed, and the %w is empty", sgx.ErrPassphrase)
	}
	return pin, err
}

// objectName says which key it is.
type objectName struct{ id, label []byte }

// parseURI reads a PKCS#11 URI. The name that it gives is for people, without the query.
func parseURI(text string) (name string, c *tokenConfig, object objectName, err error) {
	name, _, _ = strings.Cut(text, "?")
	c = &tokenConfig{uri: pkcs11uri.New()}
	bad := func(format string, args ...any) (string, *tokenConfig, objectName, error) {
		return name, nil, objectName{}, fmt.Errorf("%w: %w", ErrName, fmt.Errorf(format, args...))
	}
	if err := c.uri.Parse(text); err != nil {
		return bad("not a PKCS#11 URI (RFC 7512), such as pkcs11:token=NAME;object=NAME?module-path=FILE")
	}
	if strings.Contains(text, "pin-value=") {
		name = "pkcs11:…"
		return bad("pin-value: other users can read the arguments of a program; give the PIN in " +
			"CCONVERT_KEY_PASSPHRASE, by --key-passphrase-file, or in a file that pin-source names")
	}
	c.uri.SetAllowAnyModule(true)
	c.uri.SetModuleDirectories(moduleDirs)
	if c.Path, err = c.uri.GetModule(); err != nil {
		return bad("the module that speaks to the token is named by module-path=FILE or module-name=NAME behind a "+
			"question mark, and there must be such a file: %w", err)
	}
	get := func(attribute string) string {
		v, _ := c.uri.GetPathAttribute(attribute, false)
		return v
	}
	selectors := 0
	for part := range strings.SplitSeq(strings.TrimPrefix(name, "pkcs11:"), ";") {
		attribute, _, _ := strings.Cut(part, "=")
		switch attribute {
		case "token", "serial", "slot-id":
			selectors++
		case "object", "id", "type", "":
		default:
			return bad("the attribute %q is not understood here: there is token, serial or slot-id, and object or id",
				attribute)
		}
	}
	if selectors > 1 {
		return bad("one of token, serial and slot-id says which token it is")
	}
	object = objectName{nilIfEmpty(get("id")), nilIfEmpty(get("object"))}
	if object.id == nil && object.label == nil {
		return bad("object=LABEL or id=%%XX says which key it is")
	}
	switch slot := get("slot-id"); {
	case get("serial") != "":
		c.TokenSerial = get("serial")
	case get("token") != "":
		c.TokenLabel = get("token")
	case slot != "":
		n, err := strconv.Atoi(slot)
		if err != nil {
			return bad("slot-id is not a number")
		}
		c.SlotNumber = &n
	default:
		return bad("token=LABEL, serial=NUMBER or slot-id=NUMBER says which token it is")
	}
	return name, c, object, nil
}

func nilIfEmpty(s string) []byte {
	if s == "" {
		return nil
	}
	return []byte(s)
}

// explain says what an error of the module means, and what to do.
func explain(err error) error {
	var code pkcs11.Error
	if !errors.As(err, &code) {
		return err
	}
	switch code {
	case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE:
		return fmt.Errorf("the PIN is wrong; most tokens lock after a few tries: %w: %w", sgx.ErrPassphrase, err)
	case pkcs11.CKR_PIN_LOCKED:
		return fmt.Errorf("the token is locked after too many wrong PINs: its security officer can set a new one "+
			"(pkcs11-tool --init-pin --so-pin …): %w", err)
	case pkcs11.CKR_PIN_EXPIRED:
		return fmt.Errorf("the PIN has expired: set a new one (pkcs11-tool --change-pin): %w", err)
	case pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_RECOGNIZED,
		pkcs11.CKR_SLOT_ID_INVALID:
		return fmt.Errorf("there is no such token: is it plugged in? pkcs11-tool --list-slots shows those that are: %w",
			err)
	case pkcs11.CKR_MECHANISM_INVALID, pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, pkcs11.CKR_KEY_TYPE_INCONSISTENT:
		return fmt.Errorf("the token does not sign with this key by RSA PKCS#1 v1.5: %w", err)
	}
	return err
}

// grace is how long a module may take to log out.
const grace = 2 * time.Second

// Close logs out, unless the module hangs.
func (t *token) Close() error {
	_, err := patient(context.Background(), grace, func() (struct{}, error) { return struct{}{}, t.module.Close() })
	return err
}

func (t *token) Public(context.Context) (*rsa.PublicKey, error) { return t.public, nil }

func (t *token) Sign(ctx context.Context, message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	signature, err := patient(ctx, t.timeout, func() ([]byte, error) {
		return t.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.name, explain(err))
	}
	if rsa.VerifyPKCS1v15(t.public, crypto.SHA256, digest[:], signature) != nil {
		return nil, fmt.Errorf("%s: the token's signature does not fit its public key: do both objects of this name "+
			"belong together?", t.name)
	}
	return signature, nil
}

// patient waits for a module, which cannot be interrupted, for so long or until the context's end.
func patient[T any](ctx context.Context, timeout time.Duration, do func() (T, error)) (T, error) {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		v, err := do()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-limited.Done():
		var none T
		if ctx.Err() != nil {
			return none, ctx.Err()
		}
		return none, fmt.Errorf("%w: the module did not come back for %s", ErrTimeout, timeout)
	}
}
