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
	// maxUsed is how many enclaves can be answered in the time in which a nonce is good. More are refused.
	maxUsed = 65_536
	macSize = 16
)

// nonces makes nonces that are good once, for a minute. It keeps nothing of those that are not used: they have their
// time and a code in them that only this server can make.
type nonces struct {
	key [32]byte
	now func() time.Time

	mu sync.Mutex
	// used has those that were used since begin, and before those of the time before that.
	used, before map[[release.NonceSize]byte]bool
	begin        time.Time
}

func newNonces(now func() time.Time) *nonces {
	n := &nonces{used: map[[release.NonceSize]byte]bool{}, now: now, begin: now()}
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

// good reports whether a nonce is one of this server's, and of the last minute.
func (n *nonces) good(b []byte) bool {
	if len(b) != release.NonceSize || !hmac.Equal(b[len(b)-macSize:], n.mac(b[:len(b)-macSize])) {
		return false
	}
	made := time.Unix(0, int64(binary.BigEndian.Uint64(b)))
	return !n.now().After(made.Add(nonceLife))
}

// use reports whether a nonce is good, which it is no more afterwards. It is for whoever has proved to be an enclave:
// others would use up the room.
func (n *nonces) use(b []byte) bool {
	if !n.good(b) {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if now := n.now(); now.Sub(n.begin) > nonceLife {
		n.used, n.before, n.begin = map[[release.NonceSize]byte]bool{}, n.used, now
	}
	k := [release.NonceSize]byte(b)
	if n.used[k] || n.before[k] || len(n.used) >= maxUsed {
		return false
	}
	n.used[k] = true
	return true
}
