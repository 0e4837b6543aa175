// Package templates holds what is data rather than code: the base manifest, and the licences of the
// runtimes that converted images carry.
package templates

import (
	"embed"
	"path"
)

// Base is the manifest that every other one is merged over, in TOML.
//
//go:embed base.toml
var Base []byte

// Trust is the data of the trust policy "auto", in TOML.
//
//go:embed trust.toml
var Trust []byte

// Profiles are the profiles of programs and language runtimes, one TOML file each.
//
//go:embed profiles/*.toml
var Profiles embed.FS

//go:embed licenses
var licenses embed.FS

// RuntimeLicenses are the licences of Gramine (LGPL-3.0, which refers to GPL-3.0) and of the GNU C
// library that it carries (LGPL-2.1), with a notice, by file name.
func RuntimeLicenses() map[string][]byte {
	texts := map[string][]byte{}
	entries, err := licenses.ReadDir("licenses")
	if err != nil {
		panic(err) // embedded: cannot fail at run time
	}
	for _, e := range entries {
		text, err := licenses.ReadFile(path.Join("licenses", e.Name()))
		if err != nil {
			panic(err)
		}
		texts[e.Name()] = text
	}
	return texts
}
