package keyserver

import (
	"fmt"
	"strings"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/release"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// NewPolicy is the policy for the enclave of an image: this one, or, by its signer, those of its product and at least
// its security version too. Grants are SLOT=SECRET, or tls:DIRECTORY=NAME+NAME….
func NewPolicy(
	image string, s *sgx.SigStruct, bySigner, simulated bool, on Platform, grants []string,
) (*Policy, error) {
	p := &Policy{
		Version: PolicyVersion, Image: image, Platform: on, Secrets: map[string]Grant{},
		Enclave: Enclave{
			MRSigner: s.MRSigner(), ISVProdID: s.ISVProdID, MinISVSVN: s.ISVSVN, Debug: s.Debug(),
			Simulated:  simulated,
			Flags:      Masked{s.Attributes.Flags, s.AttributesMask.Flags},
			XFRM:       Masked{s.Attributes.XFRM, s.AttributesMask.XFRM},
			MiscSelect: Masked{uint64(s.MiscSelect), uint64(s.MiscMask)},
		},
	}
	if p.Enclave.By = attest.BySigner; !bySigner {
		p.Enclave.By, p.Enclave.MREnclave = attest.ByEnclave, &s.MREnclave
	}
	for _, text := range grants {
		i := strings.LastIndex(text, "=")
		if i < 0 {
			return nil, fmt.Errorf("%q: %w: SLOT=SECRET expected, or tls:DIRECTORY=NAME", text, release.ErrSlot)
		}
		place, g := text[:i], Grant{Secret: text[i+1:]}
		if place != SecretProv {
			slot, err := release.ParseSlot(place)
			if err != nil {
				return nil, err
			}
			if place = slot.String(); slot.Kind == release.KindTLS {
				g = Grant{Names: strings.Split(text[i+1:], "+")}
			}
		}
		if _, twice := p.Secrets[place]; twice {
			return nil, fmt.Errorf("%q: %w: it is named twice", place, release.ErrSlot)
		}
		p.Secrets[place] = g
	}
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	return p, nil
}
