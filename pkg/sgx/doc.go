// Package sgx computes what the hardware of Intel SGX computes and checks when an enclave is built:
// the measurement of its initial memory and the signature over it.
//
//   - MRENCLAVE is the SHA-256 of how the enclave was built, page by page. Two enclaves with the same
//     MRENCLAVE started with exactly the same code, data and layout. See [Measure].
//   - SIGSTRUCT is the 1808-byte structure in which a vendor signs an MRENCLAVE. The CPU refuses to
//     start an enclave without a valid one. See [SigStruct].
//   - MRSIGNER is the SHA-256 of the public key in the SIGSTRUCT: the vendor's identity.
//
// The package knows nothing about containers or library operating systems: whoever knows how an
// enclave is laid out describes it as a [Layout]. No SGX hardware is needed for anything here.
//
// References are to the Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3D,
// chapters "Enclave Access Control and Data Structures" and "SGX Instruction References".
package sgx
