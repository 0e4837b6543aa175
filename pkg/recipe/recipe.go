// Package recipe describes how an image was made: what it takes to make the same again, by which name that is known,
// and what it does to the image's configuration.
package recipe

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/internal/strictjson"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/launch"
	"github.com/cconvert/cconvert/pkg/launch/libc"
	"github.com/cconvert/cconvert/pkg/launch/process"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/profile"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// Recipe is how an image was made: what it takes to make the same again. It holds no secrets and
// nothing that depends on where the source was found.
type Recipe struct {
	Epoch    int     `json:"epoch"`
	Source   string  `json:"source"` // digest
	Platform string  `json:"platform"`
	Runtime  Runtime `json:"runtime"`
	Options  Options `json:"options"`
	Date     string  `json:"date"`
	Overlay  string  `json:"overlay,omitempty"` // the user's manifest, as it was given
	// Agent is the SHA-256, in hexadecimal, of the program that gets secrets; empty if none does.
	Agent string `json:"agent,omitempty"`
	// Replaced are the values of the source's configuration where the output has others.
	Replaced map[string]json.RawMessage `json:"replaced"`
	// DiffIDs are the source's layers (OCI image specification, "rootfs.diff_ids").
	DiffIDs []string `json:"diff_ids"`
}

// Runtime identifies the runtime by its layer.
type Runtime struct {
	libos.Meta
	Digest string `json:"digest"`
}

// Options are the user's decisions.
type Options struct {
	EnclaveSize uint64   `json:"enclave_size"`
	Threads     int      `json:"max_threads"`
	EDMM        bool     `json:"edmm,omitempty"`
	Debug       bool     `json:"debug,omitempty"`
	ISVProdID   uint16   `json:"isv_prod_id"`
	ISVSVN      uint16   `json:"isv_svn"`
	Attestation string   `json:"attestation"`
	LogLevel    string   `json:"log_level"`
	Env         []string `json:"env,omitempty"`
	PassEnv     []string `json:"pass_env,omitempty"`
	Args        []string `json:"args,omitzero"`
	HostArgs    bool     `json:"insecure_args,omitempty"`
	Allowed     []string `json:"allow_file,omitempty"`
	Tmpfs       []string `json:"tmpfs,omitempty"`
	Encrypted   []string `json:"encrypt_mount,omitempty"`
	Encrypt     *Encrypt `json:"encrypt,omitempty"`
	// Secrets is from whom the program gets secrets, and which.
	Secrets *launch.Secrets `json:"secrets,omitempty"`
	Trust   string          `json:"trust"`
	List    []string        `json:"trust_list,omitempty"`
	LibC    string          `json:"libc"`
	Profile string          `json:"profile,omitempty"` // empty: recognised
	// ProfileText is the profile if it is not one that comes with the program.
	ProfileText string `json:"profile_text,omitempty"`
	Date        string `json:"date,omitempty"` // empty: that of the source's creation
}

// flags are those of cconvert convert whose names are not the ones in a recipe.
var flags = map[string]string{
	"enclave_size": "--memory", "max_threads": "--threads", "log_level": "--runtime-log-level", "args": "--arg",
	"trust_list": "--trust", "profile_text": "--profile",
}

// FlagOf returns the flag of cconvert convert by which a field of Options is set, for people.
func FlagOf(field reflect.StructField) string {
	name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
	return cmp.Or(flags[name], "--"+strings.ReplaceAll(name, "_", "-"))
}

// Encrypt are the decisions about files of the image that are encrypted.
type Encrypt struct {
	Paths  []string `json:"paths"`
	Key    string   `json:"key"` // its name in the manifest
	KeyID  string   `json:"key_id"`
	Random bool     `json:"random,omitempty"`
	// Mutable are patterns of files that the program may change.
	Mutable []string `json:"mutable,omitempty"`
	// Insecure puts the key into the manifest.
	Insecure bool `json:"insecure_key_in_manifest,omitempty"`
}

// Record returns decisions as an output records them. A date that is nil is that of the source's creation.
func Record(o launch.Options, e libos.EnclaveOptions, date *sgx.Date) Options {
	r := Options{
		EnclaveSize: o.Memory, Threads: o.Threads, EDMM: e.EDMM, Debug: e.Debug,
		ISVProdID: e.ISVProdID, ISVSVN: e.ISVSVN, Attestation: e.Attestation,
		LogLevel: e.LogLevel,
		Args:     o.Args, HostArgs: o.HostArgs, Allowed: o.AllowedFiles, Tmpfs: o.Tmpfs, Secrets: o.Secrets,
	}
	r.Trust, r.List, r.LibC = string(cmp.Or(o.Trust, launch.TrustAuto)), o.List, string(cmp.Or(o.LibC, libc.Auto))
	if o.Profile != nil {
		r.Profile = o.Profile.Name
		if profile.Find(o.Profile.Name) != o.Profile {
			r.ProfileText = o.Profile.Text
		}
	}
	for _, v := range o.Env {
		if v.PassThrough {
			r.PassEnv = append(r.PassEnv, v.Name)
		} else {
			r.Env = append(r.Env, v.Name+"="+v.Value)
		}
	}
	for _, m := range o.Encrypted {
		r.Encrypted = append(r.Encrypted, m.Path+"="+m.Key)
	}
	if e := o.Encrypt; len(e.Paths) > 0 {
		r.Encrypt = &Encrypt{
			Paths: e.Paths, Key: e.Key, KeyID: e.KeyID, Random: e.Random, Mutable: e.Mutable, Insecure: e.AtStart,
		}
	}
	if date != nil {
		r.Date = date.String()
	}
	return r
}

// Identity names a conversion by all that decides on what comes out: the source's digest, the platform, the runtime's
// digest, the options, the format epoch, and who signs, which is nobody for the zero MRSIGNER. Each output carries it
// as a label. It needs less of a recipe than what is known of the source before it is read.
func (r Recipe) Identity(signer sgx.Measurement) string {
	of := struct {
		Epoch    int     `json:"epoch"`
		Source   string  `json:"source"`
		Platform string  `json:"platform"`
		Runtime  string  `json:"runtime"`
		Agent    string  `json:"agent,omitempty"`
		Options  Options `json:"options"`
		Overlay  string  `json:"overlay,omitempty"`
		Signer   string  `json:"mrsigner,omitempty"`
	}{r.Epoch, r.Source, r.Platform, r.Runtime.Digest, r.Agent, r.Options, r.Overlay, ""}
	if signer != (sgx.Measurement{}) {
		of.Signer = signer.String()
	}
	b, err := json.Marshal(of)
	if err != nil {
		panic(err) // strings and numbers
	}
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Platform is the one that SGX exists for.
const Platform = "linux/amd64"

// ErrEpoch says that a recipe is of another version, which made other images of the same input.
var ErrEpoch = errors.New("another format epoch")

// maxProfile is how many bytes a recipe's profile may have.
const maxProfile = 64 << 10

func (r Options) enclave() libos.EnclaveOptions {
	return libos.EnclaveOptions{
		EDMM: r.EDMM, Debug: r.Debug, ISVProdID: r.ISVProdID, ISVSVN: r.ISVSVN, Attestation: r.Attestation,
		LogLevel: r.LogLevel,
	}
}

// Decisions reads the decisions back: Record returns the same again.
func (r Options) Decisions() (launch.Options, libos.EnclaveOptions, error) {
	o, err := r.launch()
	return o, r.enclave(), err
}

func (r Options) launch() (launch.Options, error) {
	o := launch.Options{
		Args: r.Args, HostArgs: r.HostArgs, AllowedFiles: r.Allowed, Tmpfs: r.Tmpfs,
		Memory: r.EnclaveSize, Threads: r.Threads, Secrets: r.Secrets,
		Trust: launch.Policy(r.Trust), List: r.List, LibC: libc.Choice(r.LibC),
	}
	switch {
	case len(r.ProfileText) > maxProfile:
		return o, fmt.Errorf("the recipe's profile has more than %d bytes", maxProfile)
	case r.ProfileText != "":
		var err error
		if o.Profile, err = profile.Parse(r.Profile, []byte(r.ProfileText)); err != nil {
			return o, fmt.Errorf("the recipe's profile: %w", err)
		}
	case r.Profile != "":
		if o.Profile = profile.Find(r.Profile); o.Profile == nil {
			return o, fmt.Errorf("the recipe's profile %q is not known", r.Profile)
		}
	}
	for _, kv := range r.Env {
		name, value, _ := strings.Cut(kv, "=")
		o.Env = append(o.Env, process.EnvVar{Name: name, Value: value})
	}
	for _, name := range r.PassEnv {
		o.Env = append(o.Env, process.EnvVar{Name: name, PassThrough: true})
	}
	for _, m := range r.Encrypted {
		at := strings.LastIndexByte(m, '=')
		if at < 0 {
			return o, fmt.Errorf("the recipe's encrypted mount %q is not PATH=KEY", m)
		}
		o.Encrypted = append(o.Encrypted, launch.Mount{Path: m[:at], Key: m[at+1:]})
	}
	if e := r.Encrypt; e != nil {
		o.Encrypt = launch.Encryption{
			Paths: e.Paths, Key: e.Key, KeyID: e.KeyID, Random: e.Random, Mutable: e.Mutable, AtStart: e.Insecure,
		}
	}
	return o, nil
}

// Bounds of a recipe, which anybody may have written.
const (
	maxRecipe      = 32 << 20 // bytes
	maxRecipeList  = 1_000_000
	maxReasons     = 64 << 20 // bytes
	maxReasonsKeys = 4_000_000
)

// Parse reads what an image says of how it was made.
func Parse(text []byte) (r Recipe, err error) {
	if len(text) > maxRecipe {
		return r, fmt.Errorf("it has %d bytes, more than %d", len(text), maxRecipe)
	}
	if err := strictjson.Check(text, strictjson.Rules{MaxList: maxRecipeList}); err != nil {
		return r, err
	}
	err = json.Unmarshal(text, &r)
	return r, err
}

// ParseReasons reads why an image's files are trusted, in the order of its manifest.
func ParseReasons(text []byte) (runs []FileRun, err error) {
	if len(text) > maxReasons {
		return nil, fmt.Errorf("it has %d bytes, more than %d", len(text), maxReasons)
	}
	rules := strictjson.Rules{MaxList: maxRecipeList, MaxKeys: maxReasonsKeys}
	if err := strictjson.Check(text, rules); err != nil {
		return nil, err
	}
	err = json.Unmarshal(text, &runs)
	return runs, err
}

// Plain is the recipe without the options that change what is run: by it, what runs is what the image says. Which files
// are encrypted is no such option: their contents are another question. Nor is that an agent gets secrets: it becomes
// the program.
func (r Recipe) Plain() Recipe {
	o := r.Options
	o.Args, o.HostArgs, o.Env, o.PassEnv, o.Allowed, o.Tmpfs, o.Encrypted = nil, false, nil, nil, nil, nil, nil
	o.Profile, o.ProfileText, o.LibC = "", "", string(libc.Auto)
	if o.Trust == string(launch.TrustList) { // somebody's choice, and not the image's
		o.Trust, o.List = string(launch.TrustAuto), nil
	}
	if o.Secrets = o.Secrets.WithoutKeys(o.Encrypt != nil); o.Secrets == nil {
		r.Agent = ""
	}
	r.Options, r.Overlay = o, ""
	return r
}

// Keep lists the files whose content repeating the conversion needs, as patterns for rootfs.Scan.
func (r Recipe) Keep() []string {
	o, err := r.Options.launch()
	if err != nil {
		return launch.Options{}.Keep() // repeating it tells what is wrong
	}
	return o.Keep()
}

// Added is how many layers the conversion has put on the source, with a library OS that puts so many there.
func (r Recipe) Added(backend libos.Backend) int {
	if r.Options.Secrets != nil {
		return backend.Layers() + 1
	}
	return backend.Layers()
}

// New describes a conversion by these options, of a source with a runtime and, if it is not nil, an agent.
func New(
	o Options, overlay string, source *image.Image, bundle *libos.Bundle, agent *libos.Agent, date sgx.Date,
) (Recipe, error) {
	r := Recipe{
		Epoch: FormatEpoch, Source: source.Digest, Platform: Platform,
		Runtime: Runtime{bundle.Meta, bundle.Layer.Digest},
		Options: o, Date: date.String(), Overlay: overlay,
		Replaced: map[string]json.RawMessage{},
	}
	if agent != nil {
		r.Agent = hex.EncodeToString(agent.SHA256[:])
	}
	_, run, err := readConfig(source.Config)
	if err != nil {
		return r, err
	}
	for _, key := range replaced {
		raw, ok := run[key]
		if key == "Env" { // most often it stays as it is
			env, err := readKey[[]string](run, key)
			if err != nil {
				return r, err
			}
			ok = slices.ContainsFunc(env, SteersLoader)
		}
		if ok {
			r.Replaced[key] = raw
		}
	}
	r.DiffIDs, err = source.DiffIDs()
	return r, err
}

// FormatEpoch rises whenever the same input would become another output.
const FormatEpoch = 8
