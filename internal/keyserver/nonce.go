package keyserver

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"

	"github.com/cconvert/cconvert/pkg/release"
)

const (
	nonceLife = time.Minute
	// maxUsed is how many nonces can be used in the time in which they are good. More are refused.
	maxUsed = 65_536
	macSize = 16
)

// nonces makes nonces that are good once, for a minute. It keeps nothing of those that are not used: they have their
// time and a code in them that only this server can make.
type nonces struct {
	key  [32]byte
	mu   sync.Mutex
	used map[[release.NonceSize]byte]time.Time
	now  func() time.Time
}

func newNonces(now func() time.Time) *nonces {
	n := &nonces{used: map[[release.NonceSize]byte]time.Time{}, now: now}
	_, _ = rand.Read(n.key[:]) // it does not fail
	return n
}

func (n *nonces) mac(of []byte) []byte {
	m := hmac.New(sha256.New, n.key[:])
	m.Write(of)
	return m.Sum(nil)[:macSize]
}

// next is a new nonce: its time, random bytes, and the code of both.
func (n *nonces) next() []byte {
	b := make([]byte, release.NonceSize-macSize, release.NonceSize)
	binary.BigEndian.PutUint64(b, uint64(n.now().UnixNano()))
	_, _ = rand.Read(b[8:])
	return append(b, n.mac(b)...)
}

// use reports whether a nonce is good, which it is no more afterwards.
func (n *nonces) use(b []byte) bool {
	if len(b) != release.NonceSize || !hmac.Equal(b[len(b)-macSize:], n.mac(b[:len(b)-macSize])) {
		return false
	}
	now := n.now()
	ends := time.Unix(0, int64(binary.BigEndian.Uint64(b))).Add(nonceLife)
	if now.After(ends) {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.used) >= maxUsed {
		for k, end := range n.used {
			if now.After(end) {
				delete(n.used, k)
			}
		}
	}
	k := [release.NonceSize]byte(b)
	if _, twice := n.used[k]; twice || len(n.used) >= maxUsed {
		return false
	}
	n.used[k] = ends
	return true
}
