package quote

import (
	"testing"
	"time"
)

func FuzzQuote(f *testing.F) {
	s := synthetic(f)
	f.Add(s.quote(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := Parse(b)
		if err != nil {
			if checkOf(err) != CheckFormat {
				t.Fatal(err)
			}
			return
		}
		_, err = q.Verify(s.collateral(t), Options{At: s.now, Root: s.root.cert})
		if err != nil && checkOf(err) == "" {
			t.Fatal(err)
		}
	})
}

func FuzzCollateral(f *testing.F) {
	s := synthetic(f)
	q, err := Parse(s.quote(f))
	if err != nil {
		f.Fatal(err)
	}
	c := s.collateral(f)
	f.Add([]byte(`{"tcbInfo":`+string(c.TCBInfo)+`,"signature":"00"}`), c.QEIdentity, c.PCKCRL, c.TCBInfoChain)
	f.Fuzz(func(t *testing.T, answer, identity, list, chain []byte) {
		info, signature, err := ParseSigned(answer, "tcbInfo")
		if err == nil {
			// Signed anew, so that what is in it is looked at.
			_, _ = q.Verify(s.with(t, info, identity), Options{At: s.now, Root: s.root.cert})
		}
		other := s.collateral(t)
		other.TCBInfo, other.TCBInfoSignature, other.PCKCRL, other.TCBInfoChain = info, signature, list, chain
		if _, err := q.Verify(other, Options{At: time.Unix(0, 0), Root: s.root.cert}); err == nil {
			t.Fatal("accepted")
		}
		_, _ = parseDocument(answer)
		_, _ = parseExtension(list)
	})
}
