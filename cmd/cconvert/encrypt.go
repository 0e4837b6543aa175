package main

import (
	"context"

	"github.com/sirupsen/logrus"
	"github.com/spf13/pflag"

	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/encrypted"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/protectedfs"
	"github.com/cconvert/cconvert/pkg/protectedfs/filekey"
)

// encryptFlags say which files of an image are encrypted, and how.
type encryptFlags struct {
	paths, mutable   []string
	key              filesKeyFlag
	keyName          string
	random, insecure bool
}

func (e *encryptFlags) add(f *pflag.FlagSet) {
	e.addPaths(f)
	e.key.add(f, "the key to encrypted files: a file, env:VARIABLE or exec:COMMAND; see cconvert keygen --files")
	f.StringVar(&e.keyName, "encrypt-key-name", "files", "name of the key in the enclave, /dev/attestation/keys/NAME")
	f.StringArrayVar(&e.mutable, "encrypt-mutable", nil, "encrypted file, or a pattern, that the program changes: "+
		"a container with --secrets may start again with it changed (repeatable)")
	f.BoolVar(&e.random, "encrypt-random", false, "encrypt with new keys within the files every time: rebuild cannot "+
		"repeat that")
	f.BoolVar(&e.insecure, "insecure-key-in-manifest", false,
		"put the key into the manifest, for trials: everybody who has the image can read it")
}

func (e *encryptFlags) addPaths(f *pflag.FlagSet) {
	f.StringArrayVar(&e.paths, "encrypt", nil,
		"file or directory of the image, or a pattern, that only the enclave can read (repeatable)")
}

// choose adds what the flags say to a conversion. The key, nil if there is none, is closed by the caller.
func (e *encryptFlags) choose(ctx context.Context, o *convert.Options) (*filekey.Secret, error) {
	if len(e.paths) == 0 {
		if e.key.name != "" || e.random || e.insecure || len(e.mutable) > 0 {
			return nil, usagef("--encrypt-key, --encrypt-mutable, --encrypt-random and " +
				"--insecure-key-in-manifest are for --encrypt")
		}
		return nil, nil
	}
	if e.key.name == "" {
		return nil, usagef("--encrypt needs --encrypt-key: cconvert keygen --files FILE makes one")
	}
	if !encrypted.KeyName.MatchString(e.keyName) {
		return nil, usagef("--encrypt-key-name %q: letters, digits, - and _ expected, and no _ at its beginning",
			e.keyName)
	}
	for _, m := range o.Launch.Encrypted {
		if m.Key == e.keyName {
			return nil, usagef("--encrypt-mount %s=%s: it has the key of --encrypt-key-name, which is for files of "+
				"the image only", m.Path, m.Key)
		}
	}
	s, err := e.key.open(ctx)
	if err != nil {
		return nil, err
	}
	o.Encrypt = &convert.Encryption{Key: s.For}
	return s, nil
}

// addTo has the files encrypted, or looked at as if they were.
func (e *encryptFlags) addTo(o *convert.Options) {
	if len(e.paths) == 0 {
		return
	}
	o.Launch.Encrypt = launch.Encryption{
		Paths: e.paths, Key: e.keyName, Random: e.random, Mutable: e.mutable, AtStart: e.insecure,
	}
}

// filesKeyFlag names the key to encrypted files.
type filesKeyFlag struct{ name string }

func (k *filesKeyFlag) add(f *pflag.FlagSet, usage string) {
	f.StringVar(&k.name, "encrypt-key", "", usage)
}

func (k *filesKeyFlag) open(ctx context.Context) (*filekey.Secret, error) {
	return filekey.Open(ctx, k.name, func(file string) {
		logrus.Warnf("others than its owner can read the key %s", file)
	})
}

// reader opens the key if there is one, for reading an image. Close is never nil.
func (k *filesKeyFlag) reader(
	ctx context.Context,
) (key func(source string) (protectedfs.Key, error), closeKey func(), err error) {
	if k.name == "" {
		return nil, func() {}, nil
	}
	s, err := k.open(ctx)
	if err != nil {
		return nil, func() {}, err
	}
	return s.For, s.Close, nil
}
