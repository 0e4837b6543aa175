// Package image describes container images, wherever they are: references and names, an [Image] and its layers as
// streams, and what is put on top of it ([Append]). Package store opens and stores them.
package image

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Transport says what kind of place a reference points to. The names are those of skopeo and podman
// (containers-transports(5)).
type Transport string

// The places that images come from and go to.
const (
	Registry      Transport = "docker"
	OCILayout     Transport = "oci"
	OCIArchive    Transport = "oci-archive"
	DockerArchive Transport = "docker-archive"
	DockerDaemon  Transport = "docker-daemon"
)

// Reference names an image in one of the places.
type Reference struct {
	Transport Transport
	// Name in a registry or Docker daemon; for an archive the name inside it, which may be nil.
	Name name.Reference
	// Path of a layout's directory or an archive.
	Path string
	// Tag in a layout, which may be empty, or the digest of a manifest, "sha256:…".
	Tag, Digest string
	// Inside is an image's ID, "sha256:…", in a daemon or archive, or its place in an archive, as "@0", if it has no
	// Name.
	Inside string
}

// InRegistry is the reference of a name in a registry.
func InRegistry(n name.Reference) Reference { return Reference{Transport: Registry, Name: n} }

// ErrReference says that a reference is not well-formed.
var ErrReference = errors.New("not an image reference")

// ParseReference reads a reference: a bare name or docker://NAME for a registry, oci:DIR[:TAG], oci-archive:FILE[:TAG],
// docker-archive:FILE[:NAME], docker-daemon:NAME. In place of a NAME there can be an image's ID, and in an archive its
// place, as "@0". Insecure allows a registry to be spoken to over HTTP.
func ParseReference(s string, insecure bool) (Reference, error) {
	parse := func(s string) (name.Reference, error) { return ParseName(s, insecure) }
	transport, rest, found := strings.Cut(s, ":")
	if !found {
		transport = ""
	}
	switch Transport(transport) {
	case Registry:
		if !strings.HasPrefix(rest, "//") {
			break // a repository that is called "docker"
		}
		n, err := parse(rest[2:])
		return Reference{Transport: Registry, Name: n}, err
	case DockerDaemon:
		if isInside(rest) && !strings.HasPrefix(rest, "@") {
			return Reference{Transport: DockerDaemon, Inside: rest}, nil
		}
		n, err := parse(rest)
		return Reference{Transport: DockerDaemon, Name: n}, err
	case OCILayout, OCIArchive:
		rest, digest, _ := strings.Cut(rest, "@")
		// As in skopeo, what follows the first colon is the tag.
		dir, tag, _ := strings.Cut(rest, ":")
		if dir == "" {
			return Reference{}, fmt.Errorf("%q is %w: the directory or file is missing", s, ErrReference)
		}
		if _, err := v1.NewHash(digest); digest != "" && err != nil {
			return Reference{}, fmt.Errorf("%q is %w: %w", s, ErrReference, err)
		}
		return Reference{Transport: Transport(transport), Path: filepath.Clean(dir), Tag: tag, Digest: digest}, nil
	case DockerArchive:
		r := Reference{Transport: DockerArchive}
		file, inside, named := strings.Cut(rest, ":")
		if file == "" {
			return r, fmt.Errorf("%q is %w: the file is missing", s, ErrReference)
		}
		r.Path = filepath.Clean(file)
		if named && isInside(inside) {
			r.Inside = inside
		} else if named {
			var err error
			if r.Name, err = parse(inside); err != nil {
				return r, err
			}
		}
		return r, nil
	}
	if isTransport(transport) {
		return Reference{}, fmt.Errorf("%q is %w: the transport %s is not supported, only docker, oci, oci-archive, "+
			"docker-archive and docker-daemon are",
			s, ErrReference, transport)
	}
	n, err := parse(s)
	return Reference{Transport: Registry, Name: n}, err
}

// String is the form that ParseReference reads.
func (r Reference) String() string {
	switch r.Transport {
	case OCILayout, OCIArchive:
		out := string(r.Transport) + ":" + r.Path
		if r.Tag != "" {
			out += ":" + r.Tag
		}
		if r.Digest != "" {
			out += "@" + r.Digest
		}
		return out
	case DockerArchive:
		if r.Inside != "" {
			return "docker-archive:" + r.Path + ":" + r.Inside
		}
		if r.Name == nil {
			return "docker-archive:" + r.Path
		}
		return "docker-archive:" + r.Path + ":" + r.Name.String()
	case DockerDaemon:
		if r.Inside != "" {
			return "docker-daemon:" + r.Inside
		}
		return "docker-daemon:" + r.Name.String()
	}
	s := r.Name.String()
	if first, _, ok := strings.Cut(s, ":"); ok && isTransport(first) { // a repository that is called like one
		s = "docker://" + s
	}
	return s
}

// InDocker returns the reference of a Docker daemon's image that a name without a registry may have been meant for,
// "docker-daemon:app" for "app", and for "docker:app" too; "" if the reference names a registry, or another place.
func (r Reference) InDocker() string {
	if r.Transport != Registry || r.Name.Context().RegistryStr() != name.DefaultRegistry {
		return ""
	}
	s := r.Name.String()
	if host, _, ok := strings.Cut(s, "/"); ok && isHost(host) {
		return ""
	}
	return string(DockerDaemon) + ":" + strings.TrimPrefix(s, "docker:")
}

// isTransport reports whether a reference that begins with a word and a colon names no registry: it has one of the
// transports of this package, or another one of containers-transports(5).
func isTransport(word string) bool {
	switch word {
	case string(OCILayout), string(OCIArchive), string(DockerArchive), string(DockerDaemon),
		"containers-storage", "dir", "ostree", "docker-remote", "http", "https":
		return true
	}
	return false
}

// Same reports whether two references name the same place.
func (r Reference) Same(o Reference) bool { return r.Place() == o.Place() }

// Place is one name for all references to the same place: what is written to one of them replaces what the others name.
// An archive is one whatever is in it, for writing replaces the file.
func (r Reference) Place() string {
	switch r.Transport {
	case OCILayout:
		return fmt.Sprintf("oci:%s:%s@%s", realPath(r.Path), r.Tag, r.Digest)
	case OCIArchive, DockerArchive:
		return "file:" + realPath(r.Path)
	case DockerDaemon:
		if r.Name == nil {
			return "docker-daemon:" + r.Inside
		}
		return "docker-daemon:" + r.Name.Name()
	}
	// Hosts do not differ in case (RFC 3986, 3.2.2), nor by the port that is their scheme's: of HTTPS, and of HTTP if
	// that may be spoken.
	registry := r.Name.Context().Registry
	host := strings.TrimSuffix(strings.ToLower(registry.RegistryStr()), ":443")
	if AllowsHTTP(registry) || OnThisMachine((&url.URL{Host: host}).Hostname()) {
		host = strings.TrimSuffix(host, ":80")
	}
	return "docker://" + host + strings.TrimPrefix(r.Name.Name(), r.Name.Context().RegistryStr())
}

// realPath is a path without the links in it, as far as it exists.
func realPath(p string) string {
	if abs, err := filepath.Abs(p); err == nil {
		p = abs
	}
	if real, err := filepath.EvalSymlinks(p); err == nil {
		return real
	}
	dir := filepath.Dir(p)
	if dir == p {
		return p
	}
	return filepath.Join(realPath(dir), filepath.Base(p))
}

// Target derives where a converted image goes when nobody said: beside its source, the tag with the
// suffix; or, where repo is set, below that repository prefix with the same tag.
func (r Reference) Target(suffix, repo string, insecure bool) (Reference, error) {
	if repo != "" {
		if r.Name == nil {
			return Reference{}, fmt.Errorf("%s has no name to be put below %s: say where it goes", r, repo)
		}
		path := strings.TrimPrefix(r.Name.Context().RepositoryStr(), "library/")
		return ParseReference(strings.TrimSuffix(repo, "/")+"/"+path+":"+TagOf(r.Name)+suffix, insecure)
	}
	out := r
	switch r.Transport {
	case OCIArchive:
		ext := filepath.Ext(r.Path)
		out.Path, out.Digest = strings.TrimSuffix(r.Path, ext)+suffix+ext, ""
		return out, nil
	case OCILayout:
		switch {
		case r.Tag != "":
			out.Tag += suffix
		case r.Digest != "":
			out.Tag = strings.ReplaceAll(r.Digest, ":", "_") + suffix
		default:
			out.Tag = "latest" + suffix
		}
		out.Digest = ""
		return out, nil
	case DockerArchive:
		ext := filepath.Ext(r.Path)
		out.Path, out.Inside = strings.TrimSuffix(r.Path, ext)+suffix+ext, ""
	case DockerDaemon:
		if r.Name == nil {
			return out, fmt.Errorf("%s has no name to be derived from: say where the result goes", r)
		}
	}
	if r.Name != nil {
		tag := TagOf(r.Name) + suffix
		if !IsTag(tag) {
			return out, fmt.Errorf("%q is %w: a tag has at most 128 letters, digits, dots, dashes and underscores", tag,
				ErrReference)
		}
		if r.Transport == Registry {
			out.Name = r.Name.Context().Tag(tag)
			return out, nil
		}
		// Docker shows names without its own registry.
		named, err := reference.ParseNormalizedNamed(r.Name.Context().Name())
		if err != nil {
			return out, fmt.Errorf("%s is %w: %w", r, ErrReference, err)
		}
		out.Name, err = ParseName(reference.FamiliarName(named)+":"+tag, insecure)
		return out, err
	}
	return out, nil
}
