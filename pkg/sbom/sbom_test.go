package sbom_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/CycloneDX/cyclonedx-go"
	validator "github.com/santhosh-tekuri/jsonschema/v6"
	spdx "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdxlib"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/sbom"
)

func bill(t *testing.T) sbom.Bill {
	t.Helper()
	digest := "sha256:" + strings.Repeat("ab", 32)
	program, err := os.Executable() // whose modules the Go linker has recorded
	require.NoError(t, err)
	content, err := os.ReadFile(program)
	require.NoError(t, err)
	agent, err := libos.NewAgent(content)
	require.NoError(t, err)
	require.NotEmpty(t, agent.Build.GoVersion)
	agent.Build.Deps = append(agent.Build.Deps, &debug.Module{
		Path: "example.org/replaced", Version: "v1.0.0",
		Replace: &debug.Module{Path: "example.org/by", Version: "v1.0.1"},
	})
	runtime := &libos.Bundle{
		Meta:  libos.Meta{Kind: "gramine", Version: "0123456789ab", GLIBC: "2.40"},
		Layer: image.NewLayer{Digest: digest},
		Files: map[string]libos.RuntimeFile{"/cconvert/gramine/loader": libos.NewRuntimeFile([]byte("loader"))},
	}
	return sbom.Bill{
		Name: "registry.example/team/app", Digest: "sha256:" + strings.Repeat("01", 32), Source: digest,
		Created: time.Date(2026, 2, 28, 0, 0, 0, 0, time.UTC),
		Layers: []sbom.Layer{
			sbom.Runtime(runtime), sbom.Agent(agent), {Name: "files", Digest: digest},
			sbom.Enclave(digest, []sbom.File{{Path: "/cconvert/app/b"}, {Path: "/cconvert/app/a"}}),
		},
	}
}

// A bill in CycloneDX's form is one by the schema of CycloneDX.
func TestCycloneDX(t *testing.T) {
	b := bill(t)
	text, err := b.CycloneDX()
	require.NoError(t, err)
	dir := filepath.Join(fixture.ModuleDir(t, "github.com/CycloneDX/cyclonedx-go"), "schema")
	c := validator.NewCompiler()
	for name, url := range map[string]string{
		"bom-1.6.schema.json": "http://cyclonedx.org/schema/bom-1.6.schema.json",
		"spdx.schema.json":    "http://cyclonedx.org/schema/spdx.schema.json",
	} {
		f, err := os.Open(filepath.Join(dir, name))
		require.NoError(t, err)
		schema, err := validator.UnmarshalJSON(f)
		require.NoError(t, err)
		require.NoError(t, c.AddResource(url, schema))
	}
	require.NoError(t, c.AddResource("http://cyclonedx.org/schema/jsf-0.82.schema.json", map[string]any{
		"definitions": map[string]any{"signature": map[string]any{}}, // nothing is signed in this form
	}))
	schema, err := c.Compile("http://cyclonedx.org/schema/bom-1.6.schema.json")
	require.NoError(t, err)
	document, err := validator.UnmarshalJSON(bytes.NewReader(text))
	require.NoError(t, err)
	require.NoError(t, schema.Validate(document))
	document.(map[string]any)["bomFormat"] = "else"
	require.Error(t, schema.Validate(document), "the schema is one that refuses something")

	var bom cyclonedx.BOM
	require.NoError(t, json.Unmarshal(text, &bom))
	assert.Equal(t, cyclonedx.CompositionAggregateIncomplete, (*bom.Compositions)[0].Aggregate)
	assert.Equal(t, "pkg:oci/source@sha256%3A"+strings.Repeat("ab", 32),
		(*bom.Metadata.Component.Pedigree.Ancestors)[0].PackageURL)
	assert.Contains(t, string(text), `"cpe":"cpe:2.3:a:gnu:glibc:2.40:*:*:*:*:*:*:*"`)
	assert.Contains(t, string(text), `"purl":"pkg:golang/example.org/by@v1.0.1"`)
	assert.NotContains(t, string(text), "example.org/replaced")
	again, err := bill(t).CycloneDX()
	require.NoError(t, err)
	assert.Equal(t, string(text), string(again))

	made, err := b.Document(sbom.CycloneDXType, text)
	require.NoError(t, err)
	assert.Equal(t, string(text), string(made))
}

// A bill in SPDX's form is read by SPDX's own library, in which every element is related to the document.
func TestSPDX(t *testing.T) {
	b := bill(t)
	text, err := b.SPDX()
	require.NoError(t, err)
	d, err := spdx.Read(bytes.NewReader(text))
	require.NoError(t, err)
	require.NoError(t, spdxlib.ValidateDocument(d))
	described, err := spdxlib.GetDescribedPackageIDs(d)
	require.NoError(t, err)
	assert.Len(t, described, 1)
	related := map[string]bool{}
	for _, r := range d.Relationships {
		related[string(r.RefB.ElementRefID)] = true
	}
	for _, p := range d.Packages {
		assert.True(t, related[string(p.PackageSPDXIdentifier)], p.PackageName)
		assert.False(t, p.FilesAnalyzed)
		assert.NotEmpty(t, p.PackageDownloadLocation)
	}
	assert.Equal(t, "2026-02-28T00:00:00Z", d.CreationInfo.Created)
	again, err := b.Document(sbom.SPDXType, text)
	require.NoError(t, err)
	assert.Equal(t, string(text), string(again))
}

// Bills of others are not taken for ours, whatever they hold.
func TestForeignBills(t *testing.T) {
	b := bill(t)
	for _, text := range []string{`{}`, `{"metadata":{"tools":[{"name":"x"}]}}`, `{"metadata":{"tools":{}}}`} {
		_, err := b.Document(sbom.CycloneDXType, []byte(text))
		assert.ErrorIs(t, err, sbom.ErrNotOurs, text)
	}
	for _, text := range []string{
		`{"creationInfo":{"creators":["Organization: cconvert"]}}`, `{"creationInfo":{}}`, `{"spdxVersion":"SPDX-2.3"}`,
	} {
		_, err := b.Document(sbom.SPDXType, []byte(text))
		assert.ErrorIs(t, err, sbom.ErrNotOurs, text)
	}
	for _, kind := range []string{sbom.SPDXType, sbom.CycloneDXType} {
		_, err := b.Document(kind, []byte("no JSON"))
		require.Error(t, err)
		assert.NotErrorIs(t, err, sbom.ErrNotOurs)
	}
}

func FuzzDocument(f *testing.F) {
	for _, text := range []string{
		`{"creationInfo":{"creators":["Tool: cconvert"]},"packages":[null]}`,
		`{"metadata":{"tools":{"components":[{"name":"cconvert"}]}},"components":[{"type":"file","hashes":[]}]}`,
	} {
		f.Add([]byte(text))
	}
	b := sbom.Bill{Name: "app", Digest: "sha256:" + strings.Repeat("01", 32)}
	f.Fuzz(func(_ *testing.T, text []byte) {
		_, _ = b.Document(sbom.SPDXType, text)
		_, _ = b.Document(sbom.CycloneDXType, text)
	})
}
