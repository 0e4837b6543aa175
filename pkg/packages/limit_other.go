//go:build !unix

package packages

func limitMemory(uint64) {}
