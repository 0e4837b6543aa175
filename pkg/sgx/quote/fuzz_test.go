package quote_test

import (
	"testing"
	"time"

	"github.com/cconvert/cconvert/pkg/sgx/quote"
)

func FuzzQuote(f *testing.F) {
	s := synthetic(f)
	f.Add(s.quote(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := quote.Parse(b)
		if err != nil {
			if checkOf(err) != quote.CheckFormat {
				t.Fatal(err)
			}
			return
		}
		_, err = q.Verify(s.collateral(t), s.at())
		if err != nil && checkOf(err) == "" {
			t.Fatal(err)
		}
	})
}

func FuzzCollateral(f *testing.F) {
	s := synthetic(f)
	q, err := quote.Parse(s.quote(f))
	if err != nil {
		f.Fatal(err)
	}
	c := s.collateral(f)
	f.Add([]byte(`{"tcbInfo":`+string(c.TCBInfo)+`,"signature":"00"}`), c.QEIdentity, c.PCKCRL, c.TCBInfoChain)
	f.Fuzz(func(t *testing.T, answer, identity, list, chain []byte) {
		info, signature, err := quote.ParseSigned(answer, "tcbInfo")
		if err == nil {
			// Signed anew, so that what is in it is looked at.
			if again, err := s.Sign(info, identity); err == nil {
				_, _ = q.Verify(again, s.at())
			}
		}
		other := s.collateral(t)
		other.TCBInfo, other.TCBInfoSignature, other.PCKCRL, other.TCBInfoChain = info, signature, list, chain
		if _, err := q.Verify(other, quote.Options{At: time.Unix(0, 0), Root: s.Root.Certificate}); err == nil {
			t.Fatal("accepted")
		}
		_, _ = quote.ParseDocument(answer)
		_, _ = quote.ParseExtension(list)
	})
}
