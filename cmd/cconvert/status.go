package main

import (
	"net"
	"net/http"
	"time"
)

// serveStatus answers those who watch over a service: /healthz, /readyz and /metrics.
func serveStatus(l net.Listener, h http.Handler) {
	s := http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
	_ = s.Serve(l)
}
