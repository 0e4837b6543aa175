package attest

import (
	"context"
	"testing"

	"github.com/cconvert/cconvert/pkg/image"
)

// Evidence that anybody can have attached.
func FuzzRead(f *testing.F) {
	s, err := NewStatement(NewResource("x", "sha256:00"), IdentityType, Identity{})
	if err != nil {
		f.Fatal(err)
	}
	a, err := s.Pack(context.Background(), nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(a.Blob)
	c, err := Enclave{
		Flags: "0x4", FlagsMask: "0x0", XFRM: "0x3", XFRMMask: "0x0", MiscSelect: "0x0", MiscSelectMask: "0x0",
	}.CoRIM("x")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(c)
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, found := range Read(context.Background(), []image.Artifact{{Type: InTotoMediaType, Blob: b}}, nil) {
			if (found.Err == nil) != (found.Statement != nil) {
				t.Fatal("neither a statement nor an error, or both")
			}
		}
		_, _ = CoRIMID(b)
	})
}
