package sgx

import (
	"bytes"
	"os"
	"testing"
)

// What is accepted is written again to the byte, and nothing panics.
func FuzzParseSigStruct(f *testing.F) {
	for _, name := range []string{"defaults", "edmm-64g", "debug-exinfo-ids"} {
		b, err := os.ReadFile("../../testdata/vectors/cases/" + name + ".sig")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSigStruct(b)
		if s != nil {
			_ = s.MRSigner()
			_ = s.Date.String()
		}
		if err == nil && !bytes.Equal(s.Bytes(), b) {
			t.Fatal("what was read is not what is written")
		}
	})
}
