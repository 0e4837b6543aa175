// Package sbom lists what a conversion has put on an image, as SPDX and as CycloneDX. What is below, the image's
// source, has bills of its own.
package sbom

import (
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cconvert/cconvert/pkg/encrypted"
	"github.com/cconvert/cconvert/pkg/libos"
)

// Types of statements that hold a bill (in-toto attestation framework, "Predicates").
const (
	SPDXType      = "https://spdx.dev/Document"
	CycloneDXType = "https://cyclonedx.org/bom"
)

// KindOf returns the type of statements, SPDXType or CycloneDXType, that a predicate type is a version of, as
// "https://spdx.dev/Document/v2.3"; "" if it is another one.
func KindOf(predicateType string) string {
	for _, kind := range []string{SPDXType, CycloneDXType} {
		if rest, ok := strings.CutPrefix(predicateType, kind); ok && (rest == "" || rest[0] == '/') {
			return kind
		}
	}
	return ""
}

// tool is what a bill says that made it. There is no version in it: the same conversion makes the same bill.
const tool = "cconvert"

// Bill is what an image has more than its source.
type Bill struct {
	// Name of the image's repository, and Digest of its manifest.
	Name, Digest string
	// Source is the digest of the image below.
	Source string
	// Created is the date that the enclave's signature has, at midnight; the zero time if it has none.
	Created time.Time
	Layers  []Layer
}

// Layer is one that a conversion has added.
type Layer struct {
	// Name of what it holds, and Version, empty if there is none.
	Name, Version string
	Digest        string // of the blob
	Files         []File // by their paths
	// Libraries are in its files.
	Libraries []Library
}

// File is a regular file.
type File struct {
	Path   string // absolute
	SHA256 [32]byte
}

// Library is something that others have made and that has a version.
type Library struct {
	Name, Version string
	// PURL is its package URL (ECMA-427), and CPE its name in lists of vulnerabilities (NIST IR 7695); empty if it has
	// none.
	PURL, CPE string
}

// Runtime describes a runtime's layer.
func Runtime(b *libos.Bundle) Layer {
	l := Layer{Name: b.Kind, Version: b.Version, Digest: b.Layer.Digest}
	for _, p := range slices.Sorted(maps.Keys(b.Files)) {
		l.Files = append(l.Files, File{p, b.Files[p].SHA256})
	}
	if b.GLIBC != "" {
		l.Libraries = append(l.Libraries, Library{
			"glibc", b.GLIBC, "pkg:generic/glibc@" + b.GLIBC, "cpe:2.3:a:gnu:glibc:" + b.GLIBC + ":*:*:*:*:*:*:*",
		})
	}
	return l
}

// Agent describes an agent's layer by the modules that the Go linker has recorded in the program.
func Agent(a *libos.Agent) Layer {
	l := Layer{
		Name: "cconvert-agent", Version: a.Build.Main.Version, Digest: a.Layer.Digest,
		Files: []File{{libos.AgentPath, a.SHA256}},
	}
	if v := strings.TrimPrefix(a.Build.GoVersion, "go"); v != "" {
		l.Libraries = append(l.Libraries, Library{
			"stdlib", v, "pkg:golang/stdlib@" + v, "cpe:2.3:a:golang:go:" + v + ":*:*:*:*:*:*:*",
		})
	}
	for _, m := range a.Build.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		l.Libraries = append(l.Libraries, Library{m.Path, m.Version, "pkg:golang/" + m.Path + "@" + m.Version, ""})
	}
	return l
}

// Ciphertexts describes the layer of the encrypted files, as ciphertexts. Layers of the source from which these files
// were removed are not listed: what else is in them is the source's.
func Ciphertexts(digest string, list *encrypted.List) Layer {
	l := Layer{Name: "ciphertexts", Digest: digest}
	for _, f := range list.Files {
		sum, err := hex.DecodeString(f.SHA256)
		if err != nil {
			continue // ParseList has seen to that
		}
		l.Files = append(l.Files, File{f.Path, [32]byte(sum)})
	}
	return l
}

// Enclave describes the topmost layer.
func Enclave(digest string, files []File) Layer {
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return Layer{Name: "enclave", Digest: digest, Files: files}
}

// created is when a bill says that it was made, which SPDX demands.
func (b Bill) created() string {
	if b.Created.IsZero() {
		return time.Unix(0, 0).UTC().Format(time.RFC3339)
	}
	return b.Created.UTC().Format(time.RFC3339)
}

// purl is an image's package URL.
func purl(name, digest string) string {
	return fmt.Sprintf("pkg:oci/%s@%s", name[strings.LastIndex(name, "/")+1:], strings.ReplaceAll(digest, ":", "%3A"))
}

// ErrNotOurs says that somebody else has made a document, which may be about more than what was added.
var ErrNotOurs = errors.New("the bill was not made by cconvert")

// Document returns the document of a bill for a type of statement: the same bill always makes the same. Said is one
// that is to be compared with it: the error is ErrNotOurs if that names another program as its maker.
func (b Bill) Document(kind string, said []byte) ([]byte, error) {
	if kind == CycloneDXType {
		if err := oursInCycloneDX(said); err != nil {
			return nil, err
		}
		return b.CycloneDX()
	}
	if err := oursInSPDX(said); err != nil {
		return nil, err
	}
	return b.SPDX()
}
