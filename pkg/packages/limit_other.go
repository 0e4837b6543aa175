//go:build !unix

package packages

func limit(uint64, uint64) {}
