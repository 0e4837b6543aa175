package libos

import (
	"github.com/cconvert/cconvert/pkg/protectedfs"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// Stored is what a converted image holds of its enclave.
type Stored struct {
	// Layout is the version of the enclave's geometry, as the runtime or the recipe has it.
	Layout int
	// Files are those of the enclave's layer, by path. Read returns another one of the layers that the backend has
	// added, the runtime's among them; nil if only what is signed is asked for.
	Files map[string][]byte
	Read  func(path string) ([]byte, error)
}

// Enclave is what an image says of its enclave, as the library OS reads it. Nothing of it is verified.
type Enclave struct {
	// Kind is the runtime that it is started by, as far as what is measured says.
	Kind string
	// Manifest is the text that is measured; empty: there is none.
	Manifest []byte
	Settings sgx.Settings
	// SigStruct returns what is to be signed of the enclave of a measurement; nil if LayoutError says why not.
	SigStruct func(m sgx.Measurement, date sgx.Date) *sgx.SigStruct
	// Layout is its initial memory. It is nil if it was not asked for, or LayoutError says why it is not known.
	Layout      *sgx.Layout
	LayoutError error
	// Start is the command that starts it, without arguments that the host chooses, and Direct the one that starts the
	// program without SGX, for trying it; nil: there is no such way.
	Start, Direct []string
	// Simulated says that there is no enclave: the runtime only plays one.
	Simulated bool

	// First is the file that the enclave image loads first; nil if it is part of the initial memory.
	First   *FileEntry
	Program Program
	// Trusted are the files that are measured by their digests, in the order of the manifest, and Allowed the paths
	// that the host may change.
	Trusted []FileEntry
	Allowed []string
	// Keys to encrypted files that are in the manifest, for everybody to read, by their names.
	Keys map[string]protectedfs.Key
	// Weaknesses names the settings by which the enclave is weaker than the defaults.
	Weaknesses []string
	// Table is the manifest but for its trusted files, to be compared key by key.
	Table map[string]any
}

// Program is what runs in an enclave.
type Program struct {
	Entrypoint string         `json:"entrypoint"`
	Argv       []string       `json:"argv"`
	HostArgs   bool           `json:"insecure_args"` // the host chooses the arguments
	Env        map[string]any `json:"env"`
	WorkDir    string         `json:"workdir"`
	UID        int            `json:"uid"`
	GID        int            `json:"gid"`
	Mounts     []Mount        `json:"mounts"`
}

// Mount makes something else appear at a path in the enclave. Its type is that of the library OS's manifest.
type Mount struct {
	Type string `json:"type,omitempty" toml:"type"`
	Path string `json:"path" toml:"path"`
	URI  string `json:"uri,omitempty" toml:"uri"`
	Key  string `json:"key,omitempty" toml:"key_name"`
}

// FileEntry is a file that is measured by its digest.
type FileEntry struct {
	URI    string `json:"uri" toml:"uri"`
	SHA256 string `json:"sha256" toml:"sha256"`
	// Reason and Package are what the conversion said of it: nothing that was measured.
	Reason  string `json:"reason,omitempty" toml:"-"`
	Package string `json:"package,omitempty" toml:"-"`
	// Layer is that of the file, from 1, and Size its bytes; zero if the layers were not read.
	Layer int   `json:"layer,omitempty" toml:"-"`
	Size  int64 `json:"size,omitempty" toml:"-"`
}

// Places are where an image of another program holds its enclave.
type Places struct {
	// Manifest, SigStruct and Image (the enclave image) are what is measured and signed.
	Manifest, SigStruct, Image string
	// Start is the command that the image's configuration must have.
	Start []string
}
