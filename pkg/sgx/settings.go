package sgx

// Settings are what an enclave's memory and signature depend on, beside what is loaded into it.
type Settings struct {
	EnclaveSize uint64 // bytes
	MaxThreads  int
	EDMM        bool // the heap is added while the enclave runs
	Debug       bool
	UseExInfo   bool // page faults are reported to the enclave (SDM 3D, MISCSELECT)
	ISVProdID   uint16
	ISVSVN      uint16
	// CPUFeatures maps avx, avx512, amx, mpx and pkru to "unspecified", "disabled" or "required".
	CPUFeatures map[string]string
}
