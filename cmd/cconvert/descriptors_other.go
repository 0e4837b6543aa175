//go:build !linux

package main

// keepDescriptors is needed on Linux only: elsewhere no foreign program is run with more rights than its own.
func keepDescriptors() {}
