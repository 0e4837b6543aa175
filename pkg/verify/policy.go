package verify

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/profile"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// policy makes the enclave's layer and the configuration again, from the recipe and the files below.
func (v *verification) policy(ctx context.Context) error {
	if v.s.Places.Backend == nil {
		v.skip(CheckPolicy, "the image claims no policy by which its files were chosen")
		v.foreignConfig()
		return nil
	}
	p, err := convert.Repeat(ctx, v.parts(*v.c.Recipe))
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, recipe.ErrEpoch):
		v.add(CheckPolicy, "the conversion can be repeated",
			[]string{err.Error() + ": verify it with a version of that epoch"})
		v.foreignConfig()
		return nil
	case err != nil:
		v.add(CheckPolicy, "the enclave's layer made again from the recipe", []string{err.Error()})
		v.foreignConfig()
		return nil
	}
	structure := v.c.SigStruct
	if structure == nil {
		structure = &sgx.SigStruct{} // that there is none is told by another check
	}
	files := p.EnclaveFiles(structure)
	problems, err := v.layerProblems(files)
	if err != nil {
		return err
	}
	if len(problems) == 0 {
		again := sha256.New()
		if err := libos.Pack(again, files); err != nil {
			return err
		}
		if id := "sha256:" + hex.EncodeToString(again.Sum(nil)); id != v.s.Indexes[len(v.s.Indexes)-1].DiffID {
			problems = []string{"the files are the same and the archive is not: it has attributes, repetitions or an " +
				"order that a conversion does not give"}
		}
	}
	problems = append(problems, v.addedProblems(p.Added())...)
	v.add(CheckPolicy, fmt.Sprintf("the enclave's layer made again from the recipe, byte for byte, with the policy %q",
		v.c.Recipe.Options.Trust), problems)
	v.config(p)
	return v.compareWithPlain(ctx)
}

// parts are what the image holds of its conversion, with a recipe.
func (v *verification) parts(r recipe.Recipe) convert.Parts {
	return convert.Parts{
		Image: v.s.Image, Recipe: r, Backend: v.s.Places.Backend, Bundle: v.s.Bundle, Tree: v.below,
		Encrypted: v.c.Encrypted, Keys: v.c.LibOS.Keys, Agent: v.starts, Added: v.s.Added(),
	}
}

// compareWithPlain finds what the conversion's options change of what runs.
func (v *verification) compareWithPlain(ctx context.Context) error {
	plain := v.c.Recipe.Plain()
	if plain.Overlay == v.c.Recipe.Overlay && reflect.DeepEqual(plain.Options, v.c.Recipe.Options) {
		return nil
	}
	p, err := convert.Repeat(ctx, v.parts(plain))
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		v.changes = append(v.changes, "without them it could not be converted: "+err.Error())
		v.changes = append(v.changes, recipe.Differences(v.c.Recipe, &plain)...)
		return nil
	}
	without, err := v.opened(p.EnclaveFiles(&sgx.SigStruct{}))
	if err != nil {
		return err
	}
	v.changes = append(v.changes, hostChanges(v.c.Recipe.Options)...)
	changes := inspect.CompareEnclaves(without, v.c.LibOS)
	slices.SortStableFunc(changes, func(a, b inspect.Difference) int { return cmp.Compare(rank(a.Name), rank(b.Name)) })
	var more, fewer []string
	for _, c := range changes {
		switch {
		case c.Part == "files" && c.A == "":
			more = append(more, c.Name)
		case c.Part == "files":
			fewer = append(fewer, c.Name)
		case !slices.Contains(sizes, c.Name):
			v.changes = append(v.changes, c.String())
		}
	}
	// By a list, a manifest or a profile of one's own files are named; of other options the policy chooses them.
	was := v.c.Recipe.Options
	if plain.Overlay != v.c.Recipe.Overlay || was.Profile != "" || was.ProfileText != "" ||
		was.Trust != plain.Options.Trust {
		v.changes = append(v.changes, filesChange("+", "besides", more)...)
		v.changes = append(v.changes, filesChange("-", "no longer", fewer)...)
	}
	return nil
}

// hostChanges tells what deployments grant because of a profile that somebody has named: the enclave does not have it.
func hostChanges(o recipe.Options) []string {
	if o.Profile == "" {
		return nil
	}
	p := profile.Find(o.Profile)
	if o.ProfileText != "" {
		p, _ = profile.Parse(o.Profile, []byte(o.ProfileText))
	}
	if p == nil || len(p.Host.Capabilities) == 0 {
		return nil
	}
	return []string{"by the profile " + o.Profile + ", deployments grant a container that root starts the " +
		"capabilities " + strings.Join(p.Host.Capabilities, ", ")}
}

// filesChange tells of trusted files in a line.
func filesChange(sign, how string, names []string) []string {
	if len(names) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("%s files: %d are listed %s: %s", sign, len(names), how,
		strings.Join(atMost(names), ", "))}
}

// first are the beginnings of the keys that decide on the program, which are told first.
var first = []string{
	"libos.entrypoint", "loader.argv", "loader.insecure", "fs.mounts", "loader.env.LD_", "loader.env",
}

// rank is the place of a key among them, or behind them.
func rank(key string) int {
	i := slices.IndexFunc(first, func(begin string) bool { return strings.HasPrefix(key, begin) })
	if i < 0 {
		return len(first)
	}
	return i
}

// sizes are keys that change how much room there is, and not what runs.
var sizes = []string{"sgx.enclave_size", "sgx.max_threads", "sys.stack.size", "sys.fds.limit"}

// opened has the library OS read an enclave that was made again. Its memory is not laid out.
func (v *verification) opened(files []libos.File) (*libos.Enclave, error) {
	return v.s.Places.Backend.Open(libos.Stored{Layout: v.s.Bundle.Layout, Files: libos.ByPath(files)})
}

// addedProblems compares the layers between the source's and the enclave's with what they must be.
func (v *verification) addedProblems(want []string) (problems []string) {
	n := len(v.s.Indexes)
	for i, id := range want {
		if at := n - 1 - len(want) + i; at < 0 || v.s.Indexes[at].DiffID != id {
			problems = append(problems, fmt.Sprintf("layer %d is not the one that a conversion adds, %s", at+1, id))
		}
	}
	return problems
}

// layerProblems compares the enclave's layer with what it must hold.
func (v *verification) layerProblems(want []libos.File) ([]string, error) {
	var problems []string
	expected := map[string]bool{}
	for _, f := range want {
		expected[f.Path] = true
		n := v.s.Tree.Lookup(f.Path)
		switch {
		case n == nil:
			problems = append(problems, fmt.Sprintf("%s is missing", f.Path))
		case f.Dir && (n.Type != rootfs.Dir || n.Mode != uint32(f.Mode) || n.UID != f.UID || n.GID != f.GID):
			problems = append(problems, fmt.Sprintf("%s is not a directory of the image's user", f.Path))
		case f.Dir:
		case f.Link != "" && (n.Type != rootfs.Symlink || n.Link != f.Link):
			problems = append(problems, fmt.Sprintf("%s is not a link to %s", f.Path, f.Link))
		case f.Link == "" && (n.Type != rootfs.Regular || n.Mode != uint32(f.Mode)):
			problems = append(problems, fmt.Sprintf("%s is of another type or mode", f.Path))
		case f.Link == "" && !bytes.Equal(v.s.Files[f.Path], f.Content):
			if f.Path == v.s.Places.Manifest && len(v.c.Manifest) > 0 {
				again, err := v.opened(want)
				if err != nil {
					return nil, err
				}
				problems = append(problems, manifestProblems(again, v.c.LibOS)...)
				continue
			}
			problems = append(problems, fmt.Sprintf("%s is not what the recipe gives", f.Path))
		}
	}
	for _, e := range v.s.Indexes[len(v.s.Indexes)-1].Entries {
		if e.Type != rootfs.Dir && !expected[e.Path] {
			problems = append(problems, fmt.Sprintf("the enclave's layer %s", whatItDoes(e)))
		}
	}
	return problems, nil
}

// manifestProblems says in what a manifest differs from the one that it should be.
func manifestProblems(want, got *libos.Enclave) []string {
	problems := []string{}
	for _, c := range inspect.CompareEnclaves(want, got) {
		if c.Name == "text" {
			problems = append(problems, "the manifest is written otherwise than the recipe gives it")
			continue
		}
		problems = append(problems, "the manifest, compared with what the recipe gives: "+c.String())
	}
	return problems
}

// config compares the image's configuration with the one that belongs to the enclave.
func (v *verification) config(p *convert.Conversion) {
	const detail = "entrypoint, arguments, environment, stop signal and labels are those of this enclave"
	if v.c.SigStruct == nil {
		v.foreignConfig()
		return
	}
	want, err := p.Config(v.c.SigStruct)
	if err != nil {
		v.add(CheckConfig, detail, []string{err.Error()})
		return
	}
	raw, err := json.Marshal(want)
	if err != nil {
		v.add(CheckConfig, detail, []string{err.Error()})
		return
	}
	v.add(CheckConfig, detail, configProblems(raw, v.s.Image.Config, "rootfs"))
}

// configProblems names the keys in which two configurations differ.
func configProblems(want, got []byte, ignore ...string) []string {
	a, err := inspect.DecodeExactly(want)
	if err != nil {
		return []string{err.Error()}
	}
	b, err := inspect.DecodeExactly(got)
	if err != nil {
		return []string{err.Error()}
	}
	return tableProblems("", a, b, ignore)
}

func tableProblems(prefix string, want, got map[string]any, ignore []string) []string {
	var problems []string
	keys := map[string]bool{}
	for k := range want {
		keys[k] = true
	}
	for k := range got {
		keys[k] = true
	}
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		name := prefix + k
		a, aTable := want[k].(map[string]any)
		b, bTable := got[k].(map[string]any)
		_, wanted := want[k]
		_, there := got[k]
		switch {
		case slices.Contains(ignore, name):
		case wanted != there && slices.Contains(sets, prefix): // whatever the value is, null too
			problems = append(problems,
				fmt.Sprintf("%s is %s, and must be %s", name, presence(there), presence(wanted)))
		case reflect.DeepEqual(want[k], got[k]):
		case empty(want[k]) && empty(got[k]):
		case aTable && bTable:
			problems = append(problems, tableProblems(name+".", a, b, ignore)...)
		default:
			problems = append(problems,
				fmt.Sprintf("%s is %s, and must be %s", name, inspect.Text(got[k]), inspect.Text(want[k])))
		}
	}
	return problems
}

func presence(there bool) string {
	if there {
		return "there"
	}
	return "absent"
}

// sets are the tables of a configuration whose keys say something by themselves (OCI image specification, "Image
// Configuration").
var sets = []string{"config.Volumes.", "config.ExposedPorts.", "config.Labels."}

// empty reports whether a value says no more than its absence.
func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}

// foreignConfig checks what can be checked of a configuration that cannot be made again.
func (v *verification) foreignConfig() {
	var problems []string
	start := v.c.Places.Start
	ours := v.c.Recipe != nil && !v.c.Recipe.Options.HostArgs
	if len(v.c.Entrypoint) < len(start) || !slices.Equal(v.c.Entrypoint[:len(start)], start) || ours &&
		len(v.c.Entrypoint) > len(start) {
		problems = append(problems,
			fmt.Sprintf("the image starts %q, the enclave is started by %q", v.c.Entrypoint, start))
	}
	var config struct {
		Config struct {
			Env    []string
			Labels map[string]string
		}
	}
	if err := json.Unmarshal(v.s.Image.Config, &config); err != nil {
		problems = append(problems, err.Error())
	}
	for _, kv := range config.Config.Env {
		name, _, _ := strings.Cut(kv, "=")
		switch name = strings.TrimSpace(name); {
		case recipe.SteersLoader(kv), name == "LD_LIBRARY_PATH":
			problems = append(problems, fmt.Sprintf("%q acts on the loader", kv))
		case name == "BASH_ENV", name == "ENV", name == "SHELLOPTS", name == "BASHOPTS",
			strings.HasPrefix(name, "BASH_FUNC_"):
			problems = append(problems, fmt.Sprintf("%q acts on the shell that starts the loader", kv))
		}
	}
	if r := v.c.Recipe; r != nil {
		for _, l := range []struct{ name, want string }{
			{recipe.LabelBaseDigest, r.Source}, {recipe.LabelEpoch, fmt.Sprint(r.Epoch)},
			{recipe.LabelMREnclave, v.c.MREnclave.String()}, {recipe.LabelMRSigner, v.c.MRSigner.String()},
			{recipe.LabelIdentity, r.Identity(v.c.MRSigner)},
		} {
			if got := config.Config.Labels[l.name]; got != l.want {
				problems = append(problems, fmt.Sprintf("the label %s is %q, and must be %q", l.name, got, l.want))
			}
		}
		slices.Sort(problems)
	}
	v.add(CheckConfig, "the command starts this enclave", problems)
}

// source compares the layers and the configuration with the image that was converted.
func (v *verification) source(ctx context.Context, source *image.Image, o inspect.Options) error {
	if source == nil {
		v.skip(CheckSource, "not compared with the image that it was made from, which --source names: what is not "+
			"measured, such as a health check, labels and volumes, can be anything")
		return nil
	}
	var problems []string
	unchanged := "are unchanged underneath"
	if v.c.Encrypted != nil && v.c.Recipe != nil && len(v.encryptedProblems) == 0 {
		stripped, found, closing, err := v.withoutPlain(ctx, source, o)
		defer closing()
		if err != nil {
			return err
		}
		problems = append(problems, found...)
		if stripped != nil {
			source = stripped
		}
		unchanged = "are underneath, without the files that are encrypted"
		if v.plain != nil {
			unchanged += " (which have the source's contents)"
		}
	}
	if v.c.Recipe != nil && v.c.Recipe.Source != source.Digest {
		problems = append(problems,
			fmt.Sprintf("%s is %s, the recipe says %s", source.Ref, source.Digest, v.c.Recipe.Source))
	}
	if len(source.Rivals) > 0 {
		problems = append(problems, fmt.Sprintf("an engine may choose another image by the name %s: %s", source.Ref,
			strings.Join(source.Rivals, ", ")))
	}
	ids, err := source.DiffIDs()
	if err != nil {
		problems = append(problems, err.Error())
	}
	for i, id := range ids {
		if i >= len(v.s.Indexes) || v.s.Indexes[i].DiffID != id {
			problems = append(problems,
				fmt.Sprintf("layer %d of the source, %s, is not layer %d of the image", i+1, id, i+1))
		}
	}
	detail := "the layers of " + source.Ref.String() + " " + unchanged
	if v.c.Recipe != nil {
		detail = "the layers and the configuration of " + source.Ref.String() +
			" " + unchanged + ", and nothing is in between"
		if n := len(v.s.Indexes) - v.s.Added(); n != len(ids) {
			problems = append(problems,
				fmt.Sprintf("%d layers are below the runtime's, the source has %d", n, len(ids)))
		}
		was, err := v.c.Recipe.SourceConfig(v.s.Image.Config, source.Config, v.s.Added())
		if err != nil {
			problems = append(problems, err.Error())
		} else {
			problems = append(problems, configProblems(source.Config, was)...)
		}
	}
	v.add(CheckSource, detail, problems)
	return nil
}
