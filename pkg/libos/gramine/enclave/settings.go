package enclave

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/cconvert/cconvert/pkg/sgx"
)

// Defaults of the signing tool if the manifest is silent.
const (
	defaultEnclaveSize     = "256M"
	defaultEnclaveSizeEDMM = "1024G"
	defaultMaxThreads      = 4
	maxThreadsLimit        = 1 << 16
)

// ReadSettings reads the sgx table of a manifest. Like the signing tool, it accepts sizes in hexadecimal and
// fills in defaults; it does not check the rest of the manifest.
func ReadSettings(text []byte) (sgx.Settings, error) {
	var m struct {
		SGX struct {
			EnclaveSize *string           `toml:"enclave_size"`
			MaxThreads  *int64            `toml:"max_threads"`
			EDMM        bool              `toml:"edmm_enable"`
			Debug       bool              `toml:"debug"`
			UseExInfo   bool              `toml:"use_exinfo"`
			ISVProdID   int64             `toml:"isvprodid"`
			ISVSVN      int64             `toml:"isvsvn"`
			CPUFeatures map[string]string `toml:"cpu_features"`
		} `toml:"sgx"`
	}
	if err := toml.Unmarshal(text, &m); err != nil {
		return sgx.Settings{}, fmt.Errorf("reading the manifest: %w", err)
	}
	in := m.SGX
	out := sgx.Settings{
		MaxThreads: defaultMaxThreads, EDMM: in.EDMM, Debug: in.Debug, UseExInfo: in.UseExInfo,
		ISVProdID: uint16(in.ISVProdID), ISVSVN: uint16(in.ISVSVN),
		CPUFeatures: map[string]string{
			"avx": "unspecified", "avx512": "unspecified", "amx": "unspecified", "mpx": "disabled", "pkru": "disabled",
		},
	}
	size := defaultEnclaveSize
	if in.EDMM {
		size = defaultEnclaveSizeEDMM
	}
	if in.EnclaveSize != nil {
		size = *in.EnclaveSize
	}
	var err error
	if out.EnclaveSize, err = ParseSize(size); err != nil {
		return out, fmt.Errorf("sgx.enclave_size: %w", err)
	}
	if in.MaxThreads != nil {
		if *in.MaxThreads < 1 || *in.MaxThreads > maxThreadsLimit {
			return out, fmt.Errorf("sgx.max_threads: %d is not between 1 and %d", *in.MaxThreads, maxThreadsLimit)
		}
		out.MaxThreads = int(*in.MaxThreads)
	}
	if n := in.ISVProdID; n < 0 || n > 0xffff {
		return out, fmt.Errorf("sgx.isvprodid: %d is not between 0 and 65535", n)
	}
	if n := in.ISVSVN; n < 0 || n > 0xffff {
		return out, fmt.Errorf("sgx.isvsvn: %d is not between 0 and 65535", n)
	}
	for name, v := range in.CPUFeatures {
		if _, ok := out.CPUFeatures[name]; !ok {
			continue
		}
		switch {
		case v == "required" || v == "disabled":
		case v == "unspecified" && name != "mpx" && name != "pkru":
		default:
			return out, fmt.Errorf("sgx.cpu_features.%s: %q is not allowed", name, v)
		}
		out.CPUFeatures[name] = v
	}
	return out, nil
}

// ParseSize reads a size in bytes as manifests write it: a number, decimal or 0x…, with an optional
// suffix K, M or G for powers of 1024. A decimal number does not begin with 0: others would read it as an octal one.
func ParseSize(s string) (uint64, error) {
	digits, shift := s, 0
	if n := len(s); n > 0 {
		if i := strings.IndexByte("KMG", s[n-1]); i >= 0 {
			digits, shift = s[:n-1], 10*(i+1)
		}
	}
	base := 10
	if hex, ok := strings.CutPrefix(strings.ToLower(digits), "0x"); ok {
		digits, base = hex, 16
	}
	n, err := strconv.ParseUint(digits, base, 64)
	if err != nil || n > 1<<62>>shift || base == 10 && len(digits) > 1 && digits[0] == '0' {
		return 0, fmt.Errorf("%q is not a size such as 512M or 4G", s)
	}
	return n << shift, nil
}

// FormatSize writes a size with the largest suffix that divides it, as the loader reads it.
func FormatSize(n uint64) string {
	for i, suffix := range []string{"G", "M", "K"} {
		if unit := uint64(1) << (30 - 10*i); n >= unit && n%unit == 0 {
			return strconv.FormatUint(n/unit, 10) + suffix
		}
	}
	return strconv.FormatUint(n, 10)
}
