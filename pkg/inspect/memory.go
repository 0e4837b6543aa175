package inspect

import (
	"slices"

	"github.com/cconvert/cconvert/pkg/sgx"
)

// Area is a part of the enclave's initial memory.
type Area struct {
	Name string `json:"name"`
	// Count is how many parts of the same kind were put together, one for each thread.
	Count    int    `json:"count"`
	Offset   uint64 `json:"offset"` // bytes from the enclave's base
	Size     uint64 `json:"size"`   // bytes
	Flags    string `json:"flags"`
	Measured bool   `json:"measured"`
}

// areas describes a layout from the enclave's top. Neighbours of the same name are put together.
func areas(l sgx.Layout) []Area {
	var list []Area
	for _, a := range l.Areas {
		n := Area{
			Name: a.Name, Count: 1, Offset: a.Offset, Size: a.Size, Flags: a.Flags.String(), Measured: !a.Unmeasured,
		}
		if k := len(list) - 1; k >= 0 && list[k].Name == n.Name && list[k].Flags == n.Flags &&
			n.Offset+n.Size == list[k].Offset {
			list[k].Count++
			list[k].Offset, list[k].Size = n.Offset, list[k].Size+n.Size
			continue
		}
		list = append(list, n)
	}
	slices.SortStableFunc(list, func(a, b Area) int {
		switch {
		case a.Offset > b.Offset:
			return -1
		case a.Offset < b.Offset:
			return 1
		}
		return 0
	})
	return list
}

// Attributes are the signed ATTRIBUTES and MISCSELECT (SDM 3D, ATTRIBUTES) with their masks.
type Attributes struct {
	Flags          string `json:"flags"`
	FlagsMask      string `json:"flags_mask"`
	XFRM           string `json:"xfrm"`
	XFRMMask       string `json:"xfrm_mask"`
	MiscSelect     string `json:"misc_select"`
	MiscSelectMask string `json:"misc_select_mask"`
	// Decoded names what is set: "debug", "64-bit", and the extended state that the enclave demands.
	Decoded []string `json:"decoded"`
}

// xfrmBits are the parts of the extended CPU state (SDM 1, "XSAVE-Supported Features").
var xfrmBits = []struct {
	mask uint64
	name string
}{{0x3, "x87+SSE"}, {0x4, "AVX"}, {0x18, "MPX"}, {0xe0, "AVX-512"}, {0x200, "PKRU"}, {0x60000, "AMX"}}

func decode(s *sgx.SigStruct) Attributes {
	d := s.Describe()
	a := Attributes{
		Flags: d.Flags, FlagsMask: d.FlagsMask, XFRM: d.XFRM, XFRMMask: d.XFRMMask,
		MiscSelect: d.MiscSelect, MiscSelectMask: d.MiscSelectMask, Decoded: []string{},
	}
	if s.Debug() {
		a.Decoded = append(a.Decoded, "debug")
	}
	if s.Attributes.Flags&sgx.FlagMode64 != 0 {
		a.Decoded = append(a.Decoded, "64-bit")
	}
	for _, b := range xfrmBits {
		switch {
		case s.Attributes.XFRM&b.mask == b.mask:
			a.Decoded = append(a.Decoded, b.name+" required")
		case s.AttributesMask.XFRM&b.mask == b.mask:
			a.Decoded = append(a.Decoded, b.name+" forbidden")
		}
	}
	if s.MiscSelect&sgx.MiscExInfo != 0 {
		a.Decoded = append(a.Decoded, "page faults reported")
	}
	return a
}
