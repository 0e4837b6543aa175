// Package freeport finds ports for servers that programs of tests start.
package freeport

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
)

// Find returns a port of 127.0.0.1 that nothing listens on. It is below those that the kernel gives to connections
// (ip_local_port_range), of which one could take it before it is used.
func Find() (string, error) {
	var err error
	for range 100 {
		port := strconv.Itoa(10_000 + rand.IntN(20_000))
		var l net.Listener
		if l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", port)); err == nil {
			return port, l.Close()
		}
	}
	return "", errors.Join(errors.New("no port is free"), err)
}
