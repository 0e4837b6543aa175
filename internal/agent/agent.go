// Package agent is what runs first in an enclave that gets secrets: it proves to the owner's server what it is, puts
// what it gets into the places that are measured with it, and becomes the program. It leaves nothing of itself behind.
package agent

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/cenkalti/backoff/v5"

	"github.com/cconvert/cconvert/pkg/release"
)

// Step is one of those that an agent takes. An error names the one that failed.
type Step string

// Steps, in their order.
const (
	StepConfig  Step = "configuration"
	StepCompare Step = "encrypted files"
	StepKeys    Step = "keys"
	StepRelease Step = "release"
	StepFiles   Step = "files"
	StepExec    Step = "exec"
)

// Error is the step that failed, why, and what to look at.
type Error struct {
	Step Step
	Err  error
}

func (e *Error) Error() string {
	text := fmt.Sprintf("%s: %v", e.Step, e.Err)
	if hint := e.hint(); hint != "" {
		text += ". " + hint
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
}

func (e *Error) Unwrap() error { return e.Err }

func (e *Error) hint() string {
	switch {
	case errors.Is(e.Err, release.ErrQuote) && errors.Is(e.Err, fs.ErrNotExist):
		return "Was the image converted for attestation, and is this an enclave?"
	case errors.Is(e.Err, release.ErrQuote):
		return "Is AESM running on the host, with its socket mounted, and the platform registered?"
	case errors.Is(e.Err, release.ErrIdentity):
		return "The pin or authority is measured: convert again if the server has a new key"
	case errors.Is(e.Err, release.ErrConnect):
		return "Look at the network, and at the server"
	case errors.Is(e.Err, release.ErrRefused):
		return "Does a policy grant all of it to this image, on this platform?"
	case errors.Is(e.Err, release.ErrProtocol):
		return "Is the server of another version?"
	case errors.Is(e.Err, ErrCiphertext):
		return "Start a new container; convert with --encrypt-mutable what the program itself changes"
	case errors.Is(e.Err, syscall.E2BIG):
		return "The released variables are too long for a program: release a file"
	case e.Step == StepFiles && errors.Is(e.Err, fs.ErrPermission):
		return "Can the user of the image write to the directory?"
	}
	return ""
}

// ErrCiphertext says that an encrypted file is not the one of the image. It may be of another version of the image.
var ErrCiphertext = errors.New("an encrypted file is not the one of the image")

// System is where an agent runs.
type System struct {
	// Config is the file with the configuration, and Attestation the directory of Gramine's files for it,
	// /dev/attestation.
	Config, Attestation string
	// List is the image's list of encrypted files, and Ciphertexts where these are as the host has them. If it is
	// empty, something else compares them.
	List, Ciphertexts string
	// Quote makes a quote over report data; nil: Attestation does.
	Quote func(data [64]byte) ([]byte, error)
	// SetKey takes a key of encrypted files; nil: Attestation does.
	SetKey func(name string, key []byte) error
	// Args and Env are those of the process; Exec replaces it.
	Args, Env []string
	Exec      func(path string, args, env []string) error
}

// Modes of what is written.
const (
	dirMode  = 0o700
	fileMode = 0o400
)

const keySize = 16

// readConfig reads a configuration.
func readConfig(file string) (*release.Config, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, release.MaxConfig+1))
	if err != nil {
		return nil, err
	}
	c, err := release.ParseConfig(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

// Run does what an agent does. It returns only if a step failed, with an *Error.
func (s *System) Run(ctx context.Context) error {
	fail := func(step Step, err error) error { return &Error{step, err} }
	c, err := readConfig(s.Config)
	if err != nil {
		return fail(StepConfig, err)
	}
	if c.Encrypted && s.Ciphertexts != "" {
		if err := s.compare(); err != nil {
			return fail(StepCompare, err)
		}
	}
	if c.Key != "" {
		key := make([]byte, keySize)
		_, _ = rand.Read(key) // it does not fail
		if err := s.setKey(c.Key, key); err != nil {
			return fail(StepKeys, err)
		}
		clear(key)
	}
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fail(StepKeys, err)
	}
	secrets, err := s.ask(ctx, c, own)
	if err != nil {
		return fail(StepRelease, err)
	}
	env := s.Env
	// Keys first: files can be below their mounts, and a name that is looked up before stays unreadable.
	for _, kind := range []string{release.KindKey, release.KindFile, release.KindTLS, release.KindEnv} {
		for _, slot := range c.Want {
			if slot.Kind != kind {
				continue
			}
			secret := secrets[slot]
			if env, err = s.fill(slot, secret, own, env); err != nil {
				return fail(StepFiles, fmt.Errorf("%s: %w", slot, err))
			}
			clear(secret.Value)
		}
	}
	args := []string{c.Exec}
	if c.Arg0 != "" {
		args[0] = c.Arg0
	}
	args = append(args, s.Args[min(1, len(s.Args)):]...)
	return fail(StepExec, fmt.Errorf("%s: %w", c.Exec, s.Exec(c.Exec, args, env)))
}

// fill puts a secret into its place, and returns the variables of the program.
func (s *System) fill(
	slot release.Slot, secret release.Secret, own *ecdsa.PrivateKey, env []string,
) ([]string, error) {
	switch slot.Kind {
	case release.KindKey:
		return env, s.setKey(slot.Name, secret.Value)
	case release.KindFile:
		return env, write(slot.Name, secret.Value)
	case release.KindTLS:
		return env, writePair(slot.Name, own, secret.Certificate)
	}
	return with(env, slot.Name, string(secret.Value)), nil
}

// ask asks one server after the other, and again if none answers, or no quote could be made: AESM may be about to
// start. A server that refuses has decided.
func (s *System) ask(
	ctx context.Context, c *release.Config, own *ecdsa.PrivateKey,
) (map[release.Slot]release.Secret, error) {
	patience := time.Duration(cmp.Or(c.Seconds, release.DefaultSeconds)) * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	quote := s.Quote
	if quote == nil {
		quote = s.quote
	}
	pause := backoff.NewExponentialBackOff() // with jitter: many may start at once
	for {
		var all []error
		for _, server := range c.Servers {
			server.Timeout = min(release.DefaultTimeout, patience/time.Duration(len(c.Servers))) // none takes all of it
			secrets, err := server.Ask(ctx, own, quote, c.Want)
			if err == nil || !mayPass(err) && !errors.Is(err, release.ErrIdentity) {
				return secrets, err
			}
			all = append(all, err)
		}
		err := errors.Join(all...)
		if !mayPass(err) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause.NextBackOff()):
		}
	}
}

// mayPass reports whether asking again can help.
func mayPass(err error) bool {
	return errors.Is(err, release.ErrConnect) || errors.Is(err, release.ErrQuote) && !errors.Is(err, fs.ErrNotExist)
}

// quote has Gramine make a quote: it is made when it is read, over what was written last. The next one, which may be
// the program's, is not over the same.
func (s *System) quote(data [64]byte) ([]byte, error) {
	reportData := filepath.Join(s.Attestation, "user_report_data")
	if err := writeDevice(reportData, data[:]); err != nil {
		return nil, err
	}
	q, err := os.ReadFile(filepath.Join(s.Attestation, "quote"))
	if err != nil {
		return nil, err
	}
	return q, writeDevice(reportData, make([]byte, len(data)))
}

// SetKey sets a key to encrypted files by Gramine's files for it.
func SetKey(attestation, name string, key []byte) error {
	return writeDevice(filepath.Join(attestation, "keys", name), key)
}

// setKey sets a key to encrypted files.
func (s *System) setKey(name string, key []byte) error {
	if s.SetKey != nil {
		return s.SetKey(name, key)
	}
	return SetKey(s.Attestation, name, key)
}

// writeDevice writes one of Gramine's files, which takes effect when it is closed.
func writeDevice(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// with sets a variable, in the place of any that the host has passed.
func with(env []string, name, value string) []string {
	out := make([]string, 0, len(env)+1)
	for _, kv := range env {
		if !strings.HasPrefix(kv, name+"=") {
			out = append(out, kv)
		}
	}
	return append(out, name+"="+value)
}

// write writes a new file, in the place of any that was there.
func write(name string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), dirMode); err != nil {
		return err
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	if _, err = f.Write(content); err == nil {
		err = f.Sync() // Gramine's close(2) does not say that the host could not keep it
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	kept, err := os.ReadFile(name)
	defer clear(kept)
	if err == nil && !bytes.Equal(kept, content) {
		err = fmt.Errorf("%s is not what was written", name)
	}
	return err
}

// writePair writes a certificate, with those above it, and its key.
func writePair(dir string, key *ecdsa.PrivateKey, certificate string) error {
	block, _ := pem.Decode([]byte(certificate))
	if block == nil {
		return errors.New("what came is no certificate in PEM")
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return err
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return errors.New("the certificate is of another key")
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	defer clear(text)
	clear(private)
	if err := write(filepath.Join(dir, "tls.crt"), []byte(certificate)); err != nil {
		return err
	}
	return write(filepath.Join(dir, "tls.key"), text)
}
