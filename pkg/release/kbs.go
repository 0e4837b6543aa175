package release

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// The protocol of Trustee's key broker service, version 0.4.0, which servers want to the letter
// (confidential-containers, "Key Broker Service Attestation Protocol").
const (
	kbsVersion = "0.4.0"
	kbsTEE     = "sgx"
	kbsCookie  = "kbs-session-id"
	kbsAlg     = "ECDH-ES+A256KW" // RFC 7518, section 4.6
	kbsEnc     = "A256GCM"        // RFC 7518, section 5.3
	maxToken   = 1 << 20
)

// isResource reports whether a text names a resource of a key broker service: REPOSITORY/TYPE/TAG.
func isResource(text string) bool {
	parts := strings.Split(text, "/")
	return len(parts) == 3 && !slices.ContainsFunc(parts, func(p string) bool {
		return !isName(p, letters+digits, letters+digits+"._-", 128)
	})
}

type kbsChallenge struct {
	Nonce string `json:"nonce"`
}

// kbsKey is the key for which resources are encrypted (RFC 7517, "EC").
type kbsKey struct {
	Alg string `json:"alg"`
	Crv string `json:"crv"`
	Kty string `json:"kty"`
	X   string `json:"x"`
	Y   string `json:"y"`
}

// kbsRuntimeData is what the quote is about. Its fields are in the order of their names, as canonical JSON has them
// (RFC 8785), and hold nothing but ASCII.
type kbsRuntimeData struct {
	AdditionalEvidence string `json:"additional-evidence"`
	Nonce              string `json:"nonce"`
	Key                kbsKey `json:"tee-pubkey"`
}

type kbsAttestation struct {
	InitData    any `json:"init-data"`
	RuntimeData struct {
		Nonce string `json:"nonce"`
		Key   kbsKey `json:"tee-pubkey"`
	} `json:"runtime-data"`
	Evidence struct {
		Primary struct {
			Quote []byte `json:"quote"`
		} `json:"primary_evidence"`
		Additional string `json:"additional_evidence"`
	} `json:"tee-evidence"`
}

// kbsResource is a resource, encrypted (RFC 7516, section 7.2.2).
type kbsResource struct {
	Protected    string `json:"protected"`
	EncryptedKey string `json:"encrypted_key"`
	IV           string `json:"iv"`
	Ciphertext   string `json:"ciphertext"`
	Tag          string `json:"tag"`
}

// askKBS is Ask of a key broker service: each place is filled with the resource of the server that the configuration
// names for it.
func (s *Server) askKBS(
	ctx context.Context, quote func([64]byte) ([]byte, error), want []Slot,
) (map[Slot]Secret, error) {
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	greeting := []byte(`{"version":"` + kbsVersion + `","tee":"` + kbsTEE + `","extra-params":""}`)
	text, session, err := s.do(ctx, http.MethodPost, "/kbs/v0/auth", greeting, s.tls(), "")
	if err != nil {
		return nil, err
	}
	var challenge kbsChallenge
	if err := json.Unmarshal(text, &challenge); err != nil || challenge.Nonce == "" || len(challenge.Nonce) > maxToken {
		return nil, fmt.Errorf("%w: it has no challenge", ErrProtocol)
	}
	attestation, data, err := kbsAttest(key.PublicKey(), challenge.Nonce)
	if err != nil {
		return nil, err
	}
	q, err := quote(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrQuote, err)
	}
	attestation.Evidence.Primary.Quote = q
	body, err := json.Marshal(attestation)
	if err != nil {
		return nil, err
	}
	if _, _, err := s.do(ctx, http.MethodPost, "/kbs/v0/attest", body, s.tls(), session); err != nil {
		return nil, err
	}
	out := map[Slot]Secret{}
	for _, slot := range want {
		text, _, err := s.do(ctx, http.MethodGet, "/kbs/v0/resource/"+s.Resources[slot.String()], nil, s.tls(), session)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", slot, err)
		}
		value, err := openJWE(text, key)
		clear(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", slot, err)
		}
		secret := Secret{Value: value}
		if problem := secret.Problem(slot); problem != "" {
			return nil, fmt.Errorf("%w: what it has for %s %s", ErrProtocol, slot, problem)
		}
		out[slot] = secret
	}
	return out, nil
}

// kbsAttest returns an attestation that lacks the quote, and the report data of that: the SHA-384 of the runtime data.
func kbsAttest(key *ecdh.PublicKey, nonce string) (a kbsAttestation, data [64]byte, err error) {
	point := key.Bytes() // uncompressed: 4, x, y
	jwk := kbsKey{
		Alg: kbsAlg, Crv: "P-256", Kty: "EC", X: base64.RawURLEncoding.EncodeToString(point[1:33]),
		Y: base64.RawURLEncoding.EncodeToString(point[33:]),
	}
	a.RuntimeData.Nonce, a.RuntimeData.Key = nonce, jwk
	canonical, err := canonicalJSON(kbsRuntimeData{Nonce: nonce, Key: jwk})
	sum := sha512.Sum384(canonical)
	copy(data[:], sum[:])
	return a, data, err
}

// canonicalJSON is json.Marshal that does not escape what RFC 8785 leaves as it is.
func canonicalJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

var errJWE = errors.New("it is not encrypted as it must be")

// openJWE decrypts a resource. Other ways than the one that was asked for are refused.
func openJWE(text []byte, key *ecdh.PrivateKey) ([]byte, error) {
	var r kbsResource
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, errJWE)
	}
	parts := make([][]byte, 5)
	for i, part := range []string{r.Protected, r.EncryptedKey, r.IV, r.Ciphertext, r.Tag} {
		var err error
		if parts[i], err = base64.RawURLEncoding.DecodeString(part); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrProtocol, errJWE)
		}
	}
	var header struct {
		Alg string `json:"alg"`
		Enc string `json:"enc"`
		APU string `json:"apu"`
		APV string `json:"apv"`
		EPK kbsKey `json:"epk"`
	}
	if err := json.Unmarshal(parts[0], &header); err != nil || header.Alg != kbsAlg || header.Enc != kbsEnc ||
		header.EPK.Crv != "P-256" || header.APU != "" || header.APV != "" {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, errJWE)
	}
	plain, err := decryptJWE(header.EPK, parts, []byte(r.Protected), key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return plain, nil
}

func decryptJWE(epk kbsKey, parts [][]byte, protected []byte, key *ecdh.PrivateKey) ([]byte, error) {
	x, errX := base64.RawURLEncoding.DecodeString(epk.X)
	y, errY := base64.RawURLEncoding.DecodeString(epk.Y)
	if errX != nil || errY != nil || len(x) != 32 || len(y) != 32 {
		return nil, errJWE
	}
	public, err := ecdh.P256().NewPublicKey(append(append([]byte{4}, x...), y...)) // which must be on the curve
	if err != nil {
		return nil, errJWE
	}
	shared, err := key.ECDH(public)
	if err != nil {
		return nil, errJWE
	}
	content, err := unwrapKey(concatKDF(shared), parts[1])
	clear(shared)
	if err != nil {
		return nil, err
	}
	defer clear(content)
	block, err := aes.NewCipher(content)
	if err != nil {
		return nil, errJWE
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil || len(parts[2]) != gcm.NonceSize() || len(parts[4]) != gcm.Overhead() {
		return nil, errJWE
	}
	plain, err := gcm.Open(nil, parts[2], append(parts[3], parts[4]...), protected)
	if err != nil {
		return nil, errJWE
	}
	return plain, nil
}

// concatKDF derives a key of 32 bytes from a shared secret (RFC 7518, section 4.6.2).
func concatKDF(shared []byte) []byte {
	h := sha256.New()
	number := func(n uint32) { _ = binary.Write(h, binary.BigEndian, n) }
	number(1)
	h.Write(shared)
	number(uint32(len(kbsAlg)))
	h.Write([]byte(kbsAlg))
	number(0) // of the producer
	number(0) // of the recipient
	number(256)
	return h.Sum(nil)
}

// unwrapKey undoes the wrapping of a key (RFC 3394, section 2.2.2).
func unwrapKey(kek, wrapped []byte) ([]byte, error) {
	block, err := aes.NewCipher(kek)
	clear(kek)
	if err != nil || len(wrapped) != 40 {
		return nil, errJWE
	}
	n := len(wrapped)/8 - 1
	out := bytes.Clone(wrapped[8:])
	var b [16]byte
	copy(b[:8], wrapped[:8])
	for j := 5; j >= 0; j-- {
		for i := n; i >= 1; i-- {
			t := binary.BigEndian.Uint64(b[:8]) ^ uint64(n*j+i)
			binary.BigEndian.PutUint64(b[:8], t)
			copy(b[8:], out[8*(i-1):8*i])
			block.Decrypt(b[:], b[:])
			copy(out[8*(i-1):8*i], b[8:])
		}
	}
	if subtle.ConstantTimeCompare(b[:8], []byte{0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6}) != 1 {
		return nil, errJWE
	}
	return out, nil
}
