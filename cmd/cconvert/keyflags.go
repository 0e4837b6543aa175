package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/sgx/signer"
)

// passphraseVariable is not the variable of a flag: arguments can be read by other users.
const passphraseVariable = "CCONVERT_KEY_PASSPHRASE"

const maxPassphrase = 4 << 10

// passphraseFlags say where the passphrase of a key is, or the PIN of a token.
type passphraseFlags struct{ file string }

func (p *passphraseFlags) add(f *pflag.FlagSet) {
	f.StringVar(&p.file, "key-passphrase-file", "", "file with the passphrase of the key or the PIN of the token "+
		"(default: the variable "+passphraseVariable+", or a question on the terminal)")
}

// fromVariable is the value of passphraseVariable, which no program that is started inherits.
var fromVariable struct {
	once  sync.Once
	text  string
	given bool
}

// hidePassphrase takes the passphrase out of the environment.
func hidePassphrase() {
	fromVariable.once.Do(func() {
		fromVariable.text, fromVariable.given = os.LookupEnv(passphraseVariable)
		os.Unsetenv(passphraseVariable)
	})
}

// read returns the passphrase. Again asks for it twice, if a person types it.
func (p *passphraseFlags) read(ctx context.Context, of string, again bool) ([]byte, error) {
	if p.file != "" {
		f, err := os.Open(p.file)
		if err != nil {
			return nil, fmt.Errorf("--key-passphrase-file: %w", err)
		}
		defer f.Close()
		text, err := io.ReadAll(io.LimitReader(f, maxPassphrase+1))
		if err == nil && len(text) > maxPassphrase {
			err = usagef("--key-passphrase-file %s: it has more than %d bytes", p.file, maxPassphrase)
		}
		return bytes.TrimRight(text, "\r\n"), err
	}
	hidePassphrase()
	if fromVariable.given {
		return []byte(fromVariable.text), nil
	}
	if !canAsk() {
		return nil, usagef("%s needs a %w: give it in %s or by --key-passphrase-file", of, sgx.ErrPassphrase,
			passphraseVariable)
	}
	ask := func(question string) ([]byte, error) {
		fmt.Fprint(os.Stderr, question)
		defer fmt.Fprintln(os.Stderr)
		return readHidden(ctx, int(os.Stdin.Fd()))
	}
	text, err := ask("passphrase of " + printable(of) + ": ")
	if err != nil || !again {
		return text, err
	}
	repeated, err := ask("once more: ")
	defer clear(repeated)
	if err == nil && !bytes.Equal(text, repeated) {
		err = errors.New("these are two different passphrases")
	}
	return text, err
}

// readHidden reads a line that is not shown. When the context ends, the terminal is as it was before.
func readHidden(ctx context.Context, terminal int) ([]byte, error) {
	before, err := term.GetState(terminal)
	if err != nil {
		return nil, err
	}
	type line struct {
		text []byte
		err  error
	}
	read := make(chan line, 1)
	go func() {
		text, err := term.ReadPassword(terminal)
		read <- line{text, err}
	}()
	select {
	case l := <-read:
		return l.text, l.err
	case <-ctx.Done():
		_ = term.Restore(terminal, before)
		return nil, ctx.Err()
	}
}

// keyFlags name a signing key.
type keyFlags struct {
	name       string
	timeout    time.Duration
	passphrase passphraseFlags
}

func (k *keyFlags) add(f *pflag.FlagSet, usage string) {
	f.StringVar(&k.name, "key", "", usage+": a PEM file, env:VARIABLE, exec:COMMAND or pkcs11:URI")
	f.DurationVar(&k.timeout, "key-timeout", signer.DefaultTimeout,
		"how long exec:COMMAND, or a call to a token, may take")
	k.passphrase.add(f)
}

// defaultKey is where the signing key lies if nobody says otherwise.
func defaultKey() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", usagef("no place for a signing key: set HOME, or name the key with --key")
	}
	return filepath.Join(dir, "cconvert", "enclave-key.pem"), nil
}

func (k *keyFlags) options(ctx context.Context) signer.Options {
	return signer.Options{
		Timeout:    k.timeout,
		Passphrase: func(of string) ([]byte, error) { return k.passphrase.read(ctx, of, false) },
		Exposed: func(file string) {
			logrus.Warnf("the signing key %s can be read by others: chmod 600 %s", file, file)
		},
	}
}

// errNoKey says that nobody named a key, and that the default one does not exist.
var errNoKey = errors.New("there is no signing key")

// openOrMake is open for a conversion: on a terminal a missing default key is made. Elsewhere that would give every run
// an identity of its own. An image without an enclave, which is simulated, has no identity.
func (k *keyFlags) openOrMake(ctx context.Context, simulated bool) (sgx.Signer, error) {
	s, err := k.open(ctx)
	if k.name != "" || !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	file, err := defaultKey()
	if err != nil {
		return nil, err
	}
	switch {
	case simulated:
		logrus.Info("signing with the key of simulations, which everybody has")
		return signer.Simulated()
	case !canAsk():
		return nil, usagef("%w in %s", errNoKey, file)
	}
	key, err := signer.CreateFile(file, nil)
	if err != nil {
		return nil, err
	}
	logrus.Warnf("made a signing key, %s: it is your enclaves' identity (MRSIGNER), so keep it safe", file)
	return key, nil
}

// open reaches the signing key.
func (k *keyFlags) open(ctx context.Context) (sgx.Signer, error) {
	if k.name != "" {
		return signer.Open(ctx, k.name, k.options(ctx))
	}
	file, err := defaultKey()
	if err != nil {
		return nil, err
	}
	key, err := signer.ReadFile(file, k.options(ctx))
	if err != nil {
		return nil, err // not a nil *sgx.Key in the interface
	}
	return key, nil
}
