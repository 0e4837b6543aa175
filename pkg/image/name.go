package image

import (
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// tagGrammar is that of the OCI distribution specification, "Pulling manifests".
var tagGrammar = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)

func nameOptions(insecure bool) []name.Option {
	if insecure {
		return []name.Option{name.Insecure}
	}
	return nil
}

// checkName refuses what the OCI distribution specification does not allow in a name. In particular no component of a
// repository, and no tag, is empty, "." or "..": servers and file systems would clean such a path, and so read another
// name than the one that rules were applied to.
//
// Nor may a registry be called like a transport: "oci:5000/app" would be read as a directory.
func checkName(s string) (reference.Named, error) {
	if len(s) > maxName {
		return nil, fmt.Errorf("%w: the name has %d bytes, more than %d", ErrReference, len(s), maxName)
	}
	n, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return nil, fmt.Errorf("%q is %w: %w", s, ErrReference, err)
	}
	if host, _, port := strings.Cut(reference.Domain(n), ":"); port && isTransport(host) {
		return nil, fmt.Errorf("%q is %w: a registry cannot be named %s, which is a transport", s, ErrReference, host)
	}
	return n, nil
}

// maxName is how many bytes a name may have: more than a repository of 255, a host, a tag and a digest take.
const maxName = 1024

// hostAsNamed reports as ErrReference that go-containerregistry would ask another registry than the one that a name has
// in Docker's grammar: "MYHOST/app" is of a registry, and "myhost/app" is one of Docker Hub's.
func hostAsNamed(s string, n reference.Named, asked name.Registry) error {
	named := strings.ToLower(reference.Domain(n))
	if named == "docker.io" {
		named = name.DefaultRegistry
	}
	if bare := strings.TrimSuffix(named, ":443"); named != asked.RegistryStr() && bare != asked.RegistryStr() {
		word, _, _ := strings.Cut(strings.ToLower(s), "/")
		return fmt.Errorf("%q is %w: a registry of one word is written with its port, as in %s:443", s, ErrReference,
			word)
	}
	return nil
}

// oneSpelling writes the registry in lower case, and without the port of HTTPS: hosts do not differ by that (RFC 3986,
// 3.2.2 and 6.2.3), and rules, bounds and limits go by them. A host of one word keeps its port, by which it is known to
// be one, and so does a registry that may be spoken to over HTTP.
func oneSpelling(s string, n reference.Named, insecure bool) string {
	host := reference.Domain(n)
	if !strings.HasPrefix(s, host+"/") {
		return s
	}
	return oneHost(host, insecure) + s[len(host):]
}

// oneHost is oneSpelling of a registry alone.
func oneHost(host string, insecure bool) string {
	one := strings.ToLower(host)
	if bare, ok := strings.CutSuffix(one, ":443"); ok && !insecure && isHost(bare) {
		return bare
	}
	return one
}

// isHost reports whether a name is taken for a registry's without a port.
func isHost(s string) bool {
	return strings.Contains(s, ".") || strings.HasPrefix(s, "[") || s == "localhost"
}

// ParseName reads the name of an image in a registry. Insecure allows the registry to be spoken to over HTTP. The error
// is ErrReference.
func ParseName(s string, insecure bool) (name.Reference, error) {
	checked, err := checkName(s)
	if err != nil {
		return nil, err
	}
	n, err := name.ParseReference(oneSpelling(s, checked, insecure), nameOptions(insecure)...)
	if err != nil {
		return nil, fmt.Errorf("%q is %w: %w", s, ErrReference, err)
	}
	return n, hostAsNamed(s, checked, n.Context().Registry)
}

// ParseRepository reads the name of a repository, without a tag or digest. The error is ErrReference.
func ParseRepository(s string, insecure bool) (name.Repository, error) {
	n, err := checkName(s)
	if err != nil {
		return name.Repository{}, err
	}
	if !reference.IsNameOnly(n) {
		return name.Repository{}, fmt.Errorf("%q is %w: a repository has neither tag nor digest", s, ErrReference)
	}
	r, err := name.NewRepository(oneSpelling(s, n, insecure), nameOptions(insecure)...)
	if err != nil {
		return r, fmt.Errorf("%q is %w: %w", s, ErrReference, err)
	}
	return r, hostAsNamed(s, n, r.Registry)
}

// ParseRegistry reads the name of a registry, a host with or without a port. The error is ErrReference.
func ParseRegistry(s string, insecure bool) (name.Registry, error) {
	if len(s) > maxName {
		return name.Registry{}, fmt.Errorf("%w: the name of a registry has %d bytes", ErrReference, len(s))
	}
	r, err := name.NewRegistry(oneHost(s, insecure), nameOptions(insecure)...)
	if err == nil {
		var named reference.Named
		if named, err = checkName(r.RegistryStr() + "/x/y"); err == nil { // "harbor/x" is one of Docker Hub's
			err = hostAsNamed(s, named, r)
		}
	}
	if err == nil && strings.ContainsAny(s, "/") {
		err = fmt.Errorf("%q is a repository", s)
	}
	if err != nil {
		return r, fmt.Errorf("%q is not the name of a registry: %w: %w", s, ErrReference, err)
	}
	return r, nil
}

// IsTag reports whether a string is the name of a tag.
func IsTag(s string) bool { return tagGrammar.MatchString(s) }

// TagOf returns what stands for the tag in a name that is derived from an image's: its tag, or else its digest in a
// form that a tag allows, see DigestOfTag: not the one of IsReferrersTag. A name with both has its tag.
func TagOf(n name.Reference) string {
	if tag := givenTag(n); tag != "" {
		return tag
	}
	return strings.ReplaceAll(n.Identifier(), ":", "_")
}

// referrersTag is the form of tags under which registries, and cosign, keep what refers to an image (OCI distribution
// specification, "Referrers Tag Schema").
var referrersTag = regexp.MustCompile(`^sha(256|384|512)-[0-9a-f]{64,}(\..*)?$`)

// IsReferrersTag reports whether a tag is one under which registries, or cosign, keep what refers to an image.
func IsReferrersTag(tag string) bool { return referrersTag.MatchString(tag) }

// digestTag is the form that TagOf gives a digest.
var digestTag = regexp.MustCompile(`^(sha256|sha384|sha512)_([0-9a-f]{64,})$`)

// DigestOfTag returns the digest that TagOf has made a tag of; "" if it is another tag.
func DigestOfTag(tag string) string {
	m := digestTag.FindStringSubmatch(tag)
	if m == nil {
		return ""
	}
	return m[1] + ":" + m[2]
}

// HasTagAndDigest reports whether a name is NAME:TAG@DIGEST.
func HasTagAndDigest(n name.Reference) bool { return givenTag(n) != "" }

// givenTag is the tag in NAME:TAG@DIGEST, of which go-containerregistry keeps the digest alone; empty otherwise.
func givenTag(n name.Reference) string {
	if _, ok := n.(name.Digest); !ok {
		return ""
	}
	both, err := reference.ParseNormalizedNamed(n.String())
	if err != nil {
		return ""
	}
	if tagged, ok := both.(reference.Tagged); ok {
		return tagged.Tag()
	}
	return ""
}

// OnThisMachine reports whether a host, without a port, is the machine itself.
func OnThisMachine(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// AllowsHTTP reports whether a registry's name was parsed as one that may be spoken to over HTTP.
func AllowsHTTP(r name.Registry) bool {
	insecure, err := name.NewRegistry(r.Name(), name.Insecure)
	return err == nil && insecure == r
}

// isInside reports whether what follows an archive's file names an image by its ID or place.
func isInside(s string) bool {
	if at, ok := strings.CutPrefix(s, "@"); ok {
		n, err := strconv.Atoi(at)
		return err == nil && n >= 0 && strconv.Itoa(n) == at
	}
	_, err := v1.NewHash(s)
	return err == nil && strings.HasPrefix(s, "sha256:")
}
