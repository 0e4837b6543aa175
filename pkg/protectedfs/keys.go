package protectedfs

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"hash"
)

// Labels of what is derived from a key.
const (
	metadataLabel = "SGX-PROTECTED-FS-METADATA-KEY"
	nodeLabel     = "CCONVERT-PROTECTED-FS-NODE-KEYS-V1"
)

// derive returns a key for a purpose (NIST SP 800-108, with AES-CMAC, as Gramine derives the metadata's).
func (k Key) derive(label string, nonce [nonceSize]byte) Key {
	var in [104]byte
	le.PutUint32(in[0:], 1)
	copy(in[4:68], label)
	copy(in[68:100], nonce[:])
	le.PutUint32(in[100:], 128)
	return cmac(k, in[:])
}

// ID returns a name of the key that can be published, in hexadecimal: it tells two keys apart and nothing else of them.
func (k Key) ID() string {
	derived := k.derive(nodeLabel, [nonceSize]byte{})
	mac := hmac.New(sha256.New, derived[:])
	mac.Write([]byte("id\x00"))
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

// cmac is AES-CMAC (RFC 4493) of a message whose last block is not a whole one.
func cmac(k Key, message []byte) (mac Key) {
	block, err := aes.NewCipher(k[:])
	if err != nil {
		panic(err) // the key has 16 bytes
	}
	var sub Key
	block.Encrypt(sub[:], sub[:])
	for range 2 { // K1, then K2
		carry := byte(0)
		for i := len(sub) - 1; i >= 0; i-- {
			sub[i], carry = sub[i]<<1|carry, sub[i]>>7
		}
		sub[len(sub)-1] ^= 0x87 & -carry
	}
	for ; len(message) >= len(mac); message = message[len(mac):] {
		subtle.XORBytes(mac[:], mac[:], message)
		block.Encrypt(mac[:], mac[:])
	}
	last := sub
	subtle.XORBytes(last[:], last[:], message)
	last[len(message)] ^= 0x80
	subtle.XORBytes(mac[:], mac[:], last[:])
	block.Encrypt(mac[:], mac[:])
	return mac
}

// nodeKeys returns the keys of the nodes of a file. Goroutines must not share it: each takes a clone.
type nodeKeys interface {
	node(number int64) Key
	nonce() [nonceSize]byte
	clone() nodeKeys
}

// randomKeys are new for every file that is written, as Gramine writes them.
type randomKeys struct{}

func (randomKeys) node(int64) (k Key) {
	rand.Read(k[:]) // never fails (crypto/rand, "Read")
	return k
}

func (randomKeys) nonce() (n [nonceSize]byte) {
	rand.Read(n[:])
	return n
}

func (r randomKeys) clone() nodeKeys { return r }

// derivedKeys follow from the wrap key, the path, and the size and the SHA-256 of the content, so that the same file is
// always encrypted to the same bytes. As the IV is always the same, no key may encrypt two texts: a key is a value of a
// pseudo-random function of all that the text of its node follows from.
type derivedKeys struct {
	file []byte
	mac  hash.Hash
}

func newDerivedKeys(k Key, path string, size int64, content [sha256.Size]byte) *derivedKeys {
	base := k.derive(nodeLabel, [nonceSize]byte{})
	mac := hmac.New(sha256.New, base[:])
	in := le.AppendUint64([]byte("file\x00"), uint64(len(path)))
	in = append(in, path...)
	in = le.AppendUint64(in, uint64(size))
	mac.Write(append(in, content[:]...))
	file := mac.Sum(nil)
	return &derivedKeys{file, hmac.New(sha256.New, file)}
}

func (d *derivedKeys) value(label string, n int64) (out [sha256.Size]byte) {
	var in [16]byte
	d.mac.Reset()
	d.mac.Write(binary.LittleEndian.AppendUint64(append(in[:0], label...), uint64(n)))
	d.mac.Sum(out[:0])
	return out
}

func (d *derivedKeys) node(number int64) Key {
	v := d.value("node\x00", number)
	return Key(v[:len(Key{})])
}

func (d *derivedKeys) nonce() [nonceSize]byte { return d.value("nonce\x00", 0) }

func (d *derivedKeys) clone() nodeKeys { return &derivedKeys{d.file, hmac.New(sha256.New, d.file)} }

var zeroIV [ivSize]byte

// gcm returns the cipher of a node.
func gcm(k Key) cipher.AEAD {
	block, err := aes.NewCipher(k[:])
	if err != nil {
		panic(err) // the key has 16 bytes
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // the block has 16 bytes
	}
	return aead
}
