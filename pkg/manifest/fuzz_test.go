package manifest

import (
	"os"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/cconvert/cconvert/pkg/libos/gramine/enclave"
)

// Manifests of users and of images, whatever is in them. What is accepted can be rendered, and is then read again.
func FuzzManifest(f *testing.F) {
	for _, name := range []string{"defaults", "cpu-features"} {
		b, err := os.ReadFile("../../testdata/vectors/cases/" + name + ".manifest.sgx")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Fuzz(func(t *testing.T, text string) {
		_, _ = enclave.ReadSettings([]byte(text))
		o, err := ParseOverlay("fuzz", []byte(text))
		if err != nil {
			return
		}
		m := &Manifest{Table: Table{}}
		m.Merge(o)
		_ = m.Weaknesses()
		b, err := m.Render()
		if err != nil {
			return
		}
		var again Table
		if err := toml.Unmarshal(b, &again); err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
	})
}
