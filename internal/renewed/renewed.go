// Package certfile reads a server's certificate from files that somebody renews while the server runs.
package certfile

import (
	"crypto/tls"
	"os"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// Pair is a certificate and its key in files.
type Pair struct {
	cert, key string

	mu      sync.Mutex
	read    *tls.Certificate
	of      [2]time.Time // when the files were changed that were read
	checked time.Time
}

// lookAgain is how long a certificate is used before its files are looked at again.
const lookAgain = 10 * time.Second

// New returns the certificate and the key in two files.
func New(cert, key string) *Pair { return &Pair{cert: cert, key: key} }

// Certificate returns what the files have. If they cannot be read any more, or do not belong together while they are
// being replaced, it is what they had before.
func (p *Pair) Certificate() (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.read != nil && time.Since(p.checked) < lookAgain {
		return p.read, nil
	}
	p.checked = time.Now()
	of := [2]time.Time{changed(p.cert), changed(p.key)}
	if p.read != nil && of == p.of {
		return p.read, nil
	}
	pair, err := tls.LoadX509KeyPair(p.cert, p.key)
	if err != nil && p.read != nil {
		logrus.Warnf("the certificate is not renewed: %v", err)
		return p.read, nil
	}
	if err != nil {
		return nil, err
	}
	p.read, p.of = &pair, of
	return p.read, nil
}

// changed is when a file was; the zero time if it is not there.
func changed(file string) time.Time {
	info, err := os.Stat(file)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}
