//go:build !linux

package heap

func hugePages([]byte) {}
