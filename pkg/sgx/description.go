package sgx

import "fmt"

// Description is a SIGSTRUCT for people and in JSON, in the names of Gramine's tool to view them. Attributes and masks
// are in hexadecimal.
type Description struct {
	MREnclave      Measurement `json:"mr_enclave"`
	MRSigner       Measurement `json:"mr_signer"` // zero if it is not signed
	ISVProdID      uint16      `json:"isv_prod_id"`
	ISVSVN         uint16      `json:"isv_svn"`
	FamilyID       string      `json:"isv_family_id,omitempty"` // 16 bytes in hexadecimal; empty if they are zero
	ExtProdID      string      `json:"isv_ext_prod_id,omitempty"`
	DebugEnclave   bool        `json:"debug_enclave"`
	Flags          string      `json:"attribute_flags"`
	FlagsMask      string      `json:"attribute_flags_mask"`
	XFRM           string      `json:"attribute_xfrms"`
	XFRMMask       string      `json:"attribute_xfrm_mask"`
	MiscSelect     string      `json:"misc_select"`
	MiscSelectMask string      `json:"misc_select_mask"`
	Date           string      `json:"date"` // YYYY-MM-DD
	Vendor         uint32      `json:"vendor"`
	SWDefined      uint32      `json:"sw_defined"`
}

// Describe describes a SIGSTRUCT.
func (s *SigStruct) Describe() Description {
	hex := func(n uint64) string { return fmt.Sprintf("%#x", n) }
	id := func(b [16]byte) string {
		if b == [16]byte{} {
			return ""
		}
		return fmt.Sprintf("%x", b)
	}
	return Description{
		MREnclave: s.MREnclave, MRSigner: s.MRSigner(), ISVProdID: s.ISVProdID, ISVSVN: s.ISVSVN,
		FamilyID: id(s.FamilyID), ExtProdID: id(s.ExtProdID), DebugEnclave: s.Debug(),
		Date: s.Date.String(), Vendor: s.Vendor, SWDefined: s.SWDefined,
		Flags: hex(s.Attributes.Flags), FlagsMask: hex(s.AttributesMask.Flags),
		XFRM: hex(s.Attributes.XFRM), XFRMMask: hex(s.AttributesMask.XFRM),
		MiscSelect: hex(uint64(s.MiscSelect)), MiscSelectMask: hex(uint64(s.MiscMask)),
	}
}
