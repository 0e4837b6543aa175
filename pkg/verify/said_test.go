package verify_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/profile"
	"github.com/cconvert/cconvert/pkg/recipe"
	"github.com/cconvert/cconvert/pkg/verify"
)

// checkOf returns a check of a report; the zero value if it was not made.
func checkOf(r *verify.Report, name string) verify.Check {
	for _, c := range r.Checks {
		if c.Name == name {
			return c
		}
	}
	return verify.Check{}
}

// A profile in a recipe lists files that the policy does not: that is a change as it is by a manifest.
func TestProfileAddsFiles(t *testing.T) {
	status := ""
	for name, priority := range map[string]string{"base": "optional", "unused": "required"} {
		status += "Package: " + name + "\nStatus: install ok installed\nPriority: " + priority +
			"\nVersion: 1\nArchitecture: amd64\n\n"
	}
	src := fixture.Image(t, v1.Config{Entrypoint: []string{"/bin/app"}},
		fixture.Layer(t, fixture.Program("bin/app", fixture.ELF("")), fixture.File("usr/lib/unused/evil.conf", "evil"),
			fixture.File("var/lib/dpkg/status", status),
			fixture.File("var/lib/dpkg/info/base.list", "/bin\n/bin/app\n"),
			fixture.File("var/lib/dpkg/info/unused.list",
				"/usr\n/usr/lib\n/usr/lib/unused\n/usr/lib/unused/evil.conf\n")))
	for text, told := range map[string]bool{
		"": false,
		"description = \"a\"\n[enclave]\nsize = \"2G\"\n[paths]\nread = [\"/usr/lib/unused/**\"]\n": true,
		"description = \"a\"\n[paths]\nread = [\"/usr/lib/unused/**\"]\n":                           true,
	} {
		reg := fixture.NewRegistry(t)
		from := reg.Push(t, "src:1", src)
		o := options(t, from)
		if text != "" {
			own, err := profile.Parse("native", []byte(text))
			require.NoError(t, err)
			o.Launch.Profile, o.Launch.Memory = own, 0
		}
		run(t, o, signer(t), reg.Host+"/dst:1")
		r, e, err := verify.BeforeSigning(context.Background(), open(t, reg.Host+"/dst:1"), open(t, from),
			verify.Expectations{AnyRuntime: true, AllowSimulated: true}, inspect.Options{})
		require.NoError(t, err)
		listed := false
		for _, f := range r.Converted.Trusted {
			listed = listed || strings.Contains(f.URI, "evil.conf")
		}
		c := checkOf(r, verify.CheckChanges)
		require.Equal(t, told, listed, "the profile decides")
		assert.Equal(t, told, e == nil, "it is not signed before that is accepted")
		assert.Equal(t, told, strings.Contains(strings.Join(c.Problems, " "), "evil.conf"), c.Problems)
	}
}

// Whatever a statement of a known kind says of the image is compared, or the line does not say so.
func TestContradictingFields(t *testing.T) {
	reg := fixture.NewRegistry(t)
	o := options(t, reg.Push(t, "src:1", sample(t)))
	o.Evidence = &convert.Evidence{}
	run(t, o, signer(t), reg.Host+"/dst:1")
	img := open(t, reg.Host+"/dst:1")
	replace := func(old, made string) func(string) string {
		return func(s string) string { return strings.Replace(s, old, made, 1) }
	}
	zero := strings.Repeat("0", 64)
	for _, f := range attest.Read(context.Background(), referrers(t, img), nil) {
		require.NotNil(t, f.Statement)
		for what, change := range map[string]func(string) string{
			"runtime's version":     replace(`"version":"`, `"version":"other-`),
			"runtime's kind":        replace(`"kind":"sim"`, `"kind":"gramine"`),
			"external source":       externalSource(t),
			"two values of one key": replace(`"mr_enclave":"`, `"mr_enclave":"`+zero+`","mr_enclave":"`),
			"two keys but for case": replace(`"mr_enclave":"`, `"Mr_enclave":"`+zero+`","mr_enclave":"`),
		} {
			s := *f.Statement
			text := change(string(s.Predicate))
			if text == string(s.Predicate) || what == "runtime's version" && s.PredicateType != attest.IdentityType {
				continue
			}
			s.Predicate = json.RawMessage(text)
			a, err := s.Pack(context.Background(), nil)
			require.NoError(t, err)
			r, err := verify.Verify(context.Background(), img, nil,
				verify.Expectations{AllowSimulated: true, AnySigner: true},
				attest.Read(context.Background(), []image.Artifact{a}, nil), inspect.Options{})
			require.NoError(t, err)
			c := checkOf(r, verify.CheckEvidence)
			assert.Equal(t, verify.Failed, c.Status, "%s: trusted %v: %s", what, r.Trusted, c.Detail)
		}
	}
}

// externalSource has the external parameters of a provenance name another source than the dependencies.
func externalSource(t *testing.T) func(string) string {
	return func(s string) string {
		var p attest.Provenance
		require.NoError(t, json.Unmarshal([]byte(s), &p))
		if p.BuildDefinition.BuildType == "" {
			return s
		}
		p.BuildDefinition.ExternalParameters["source"] = attest.NewResource("registry.example/other:1",
			"sha256:"+strings.Repeat("0", 64))
		b, err := json.Marshal(p)
		require.NoError(t, err)
		return string(b)
	}
}

// Engines look for a program as the image's user.
func TestProgramOfAnotherUser(t *testing.T) {
	reg := fixture.NewRegistry(t)
	hidden := fixture.Program("a/app", fixture.ELF(""))
	hidden.Header.Mode = 0o700
	src := fixture.Image(t, v1.Config{Entrypoint: []string{"app"}, User: "1000", Env: []string{"PATH=/a:/b"}},
		fixture.Layer(t, hidden, fixture.Program("b/app", fixture.ELF("")+"other")))
	from := reg.Push(t, "src:1", src)
	o := options(t, from)
	run(t, o, signer(t), reg.Host+"/dst:1")
	r := check(t, reg.Host+"/dst:1", verify.Expectations{AllowSimulated: true, AnySigner: true}, open(t, from))
	assert.Equal(t, "/b/app", r.Program.Entrypoint)
}

// Where there is no enclave, or nothing is known of it, no line says that a debugger cannot read it.
func TestDebugLine(t *testing.T) {
	a := newVictim(t, nil)
	r := check(t, a.reg.Host+"/dst:1", a.expect, nil)
	c := checkOf(r, verify.CheckDebug)
	assert.NotEqual(t, verify.OK, c.Status)

	reg := fixture.NewRegistry(t)
	b, err := os.ReadFile("../../testdata/vectors/sgx-sdk/index.json")
	require.NoError(t, err)
	var vectors []struct{ Name string }
	require.NoError(t, json.Unmarshal(b, &vectors))
	so, err := os.ReadFile("../../testdata/vectors/sgx-sdk/" + vectors[0].Name + ".signed.so")
	require.NoError(t, err)
	twice := string(so) + "\x4c\x0e\x5d\x63\x94\x02\xa8\x86" // metadata's magic again
	zero := uint16(0)
	r, err = verify.OwnEnclaves(context.Background(), open(t, reg.Push(t, "x:1", fixture.Image(t, v1.Config{},
		fixture.Layer(t, fixture.Program("opt/e.so", twice))))), nil,
		verify.Expectations{Layout: inspect.LayoutSDK, MinSVN: &zero, ProdID: &zero}, inspect.Options{})
	require.NoError(t, err)
	require.Equal(t, "it could not be read", r.Enclaves[0].SignatureError)
	assert.Equal(t, verify.Skipped, checkOf(r, verify.CheckDebug).Status)
	assert.Equal(t, verify.Failed, checkOf(r, verify.CheckSVN).Status)
}

// A stranger's recipe does not take hours: of a profile's expressions there are no more than can be tried.
func TestExpressionsOfAProfile(t *testing.T) {
	reg := fixture.NewRegistry(t)
	src := fixture.Image(t,
		v1.Config{Entrypoint: []string{"/bin/app"}, Env: []string{"X=" + strings.Repeat("a", 100<<10)}},
		fixture.Layer(t, fixture.Program("bin/app", fixture.ELF(""))))
	a := &victim{t: t, reg: reg, from: reg.Push(t, "src:1", src)}
	run(t, options(t, a.from), signer(t), reg.Host+"/dst:1")
	original, x := a.image()
	var text strings.Builder
	text.WriteString("description = \"a\"\n")
	for range 12 {
		text.WriteString("[[finding]]\ncode = \"a\"\nseverity = \"info\"\nmessage = \"a\"\nif = \"a.{990}b\"\n")
	}
	x.file(enclaveLayer-1, "cconvert/app/recipe.json", func(b []byte) []byte {
		var r recipe.Recipe
		require.NoError(t, json.Unmarshal(b, &r))
		r.Options.Profile, r.Options.ProfileText = "x", text.String()
		b, err := json.MarshalIndent(r, "", "  ")
		require.NoError(t, err)
		return append(b, '\n')
	})
	x.push(reg.Host+"/attack:1", original)
	r := check(t, reg.Host+"/attack:1", verify.Expectations{AllowSimulated: true, AnySigner: true}, nil)
	assert.Contains(t, strings.Join(checkOf(r, verify.CheckPolicy).Problems, " "), "steps for each character")
}

// What deployments grant because of a profile in a recipe, which is not measured, is a change; and they grant no more
// than engines do anyway.
func TestCapabilitiesOfAProfile(t *testing.T) {
	reg := fixture.NewRegistry(t)
	src := fixture.Image(t, v1.Config{Entrypoint: []string{"/bin/app"}},
		fixture.Layer(t, fixture.Program("bin/app", fixture.ELF(""))))
	a := &victim{t: t, reg: reg, from: reg.Push(t, "src:1", src)}
	mine, err := profile.Parse("x", []byte("description = \"a\"\n[host]\ncapabilities = [\"NET_RAW\"]\n"))
	require.NoError(t, err)
	o := options(t, a.from)
	o.Launch.Profile = mine
	run(t, o, signer(t), reg.Host+"/dst:1")
	expect := verify.Expectations{AllowSimulated: true, AnySigner: true}
	r := check(t, reg.Host+"/dst:1", expect, open(t, a.from))
	assert.False(t, r.Trusted)
	assert.Contains(t, strings.Join(checkOf(r, verify.CheckChanges).Problems, " "), "the capabilities NET_RAW")

	original, x := a.image()
	x.file(enclaveLayer-1, "cconvert/app/recipe.json", func(b []byte) []byte {
		return bytes.ReplaceAll(b, []byte("NET_RAW"), []byte("SYS_ADMIN"))
	})
	x.push(reg.Host+"/attack:1", original)
	r = check(t, reg.Host+"/attack:1", expect, nil)
	assert.Contains(t, strings.Join(checkOf(r, verify.CheckPolicy).Problems, " "), "not a capability that engines give")
}

// The options of a profile are tried on each text too, and have bounds of their own.
func TestOptionsOfAProfile(t *testing.T) {
	for what, c := range map[string][3]string{
		"threads": {"!", "[[threads]]\noption = \"" + strings.Repeat("!", 60<<10) + "\"\n", "has more than 64 bytes"},
		"config": {" ", "[config]\noptions = [" +
			strings.Repeat("\""+strings.Repeat(" ", 256)+"\",", 64) + "]\n", "has more than 64 bytes"},
	} {
		reg := fixture.NewRegistry(t)
		src := fixture.Image(t,
			v1.Config{Entrypoint: []string{"/bin/app"}, Env: []string{"X=" + strings.Repeat(c[0], 100<<10)}},
			fixture.Layer(t, fixture.Program("bin/app", fixture.ELF(""))))
		a := &victim{t: t, reg: reg, from: reg.Push(t, "src:1", src)}
		run(t, options(t, a.from), signer(t), reg.Host+"/dst:1")
		original, x := a.image()
		x.file(enclaveLayer-1, "cconvert/app/recipe.json", func(b []byte) []byte {
			var r recipe.Recipe
			require.NoError(t, json.Unmarshal(b, &r))
			r.Options.Profile, r.Options.ProfileText = "x", "description = \"a\"\n"+c[1]
			b, err := json.MarshalIndent(r, "", "  ")
			require.NoError(t, err)
			return append(b, '\n')
		})
		x.push(reg.Host+"/attack:1", original)
		r := check(t, reg.Host+"/attack:1", verify.Expectations{AllowSimulated: true, AnySigner: true}, nil)
		assert.Contains(t, strings.Join(checkOf(r, verify.CheckPolicy).Problems, " "), c[2], what)
	}
}

// Engines look for a program as the image's user, in the directories that PATH spells, with /dev, /proc and /sys being
// the kernel's.
func TestProgramThatEnginesDoNotFind(t *testing.T) {
	locked := fixture.Dir("locked")
	locked.Header.Mode = 0o700
	for what, c := range map[string]struct {
		path, want string
		link       []fixture.Entry
	}{
		"a link in a directory of root's": {
			"/locked/bin:/b", "/b/app", []fixture.Entry{locked, fixture.Symlink("locked/bin", "/a")},
		},
		"a link in /dev":         {"/dev/bin:/b", "/b/app", []fixture.Entry{fixture.Symlink("dev/bin", "/a")}},
		"a link of the kernel's": {"/proc/self/root/a:/b", "", nil},
	} {
		reg := fixture.NewRegistry(t)
		from := reg.Push(t, "src:1", fixture.Image(t,
			v1.Config{Entrypoint: []string{"app"}, User: "1000", Env: []string{"PATH=" + c.path}},
			fixture.Layer(t, append(c.link, fixture.Program("a/app", fixture.ELF("")),
				fixture.Program("b/app", fixture.ELF("")+"other"))...)))
		if c.want == "" {
			_, err := convert.Prepare(context.Background(), options(t, from))
			assert.ErrorContains(t, err, "which is the kernel's", what)
			continue
		}
		run(t, options(t, from), signer(t), reg.Host+"/dst:1")
		r := check(t, reg.Host+"/dst:1", verify.Expectations{AllowSimulated: true, AnySigner: true}, open(t, from))
		assert.Equal(t, c.want, r.Program.Entrypoint, "%s; trusted: %v", what, r.Trusted)
	}
}
