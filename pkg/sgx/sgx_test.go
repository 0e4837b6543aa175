package sgx

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func testKey(t testing.TB) *Key {
	t.Helper()
	b, err := os.ReadFile("../../testdata/vectors/test-signing-key.pem")
	require.NoError(t, err)
	k, err := ParseKey(b, nil)
	require.NoError(t, err)
	return k
}

// naive computes the measurement record by record, as the manual describes it.
func naive(l Layout) Measurement {
	h := sha256.New()
	u := func(n uint64) []byte { return binary.LittleEndian.AppendUint64(nil, n) }
	record := func(parts ...[]byte) {
		var r [64]byte
		n := 0
		for _, p := range parts {
			n += copy(r[n:], p)
		}
		h.Write(r[:])
	}
	record([]byte("ECREATE\x00"), binary.LittleEndian.AppendUint32(nil, l.SSAFrameSize), u(l.Size))
	for _, a := range l.Areas {
		content := make([]byte, a.Size)
		copy(content, a.Data)
		for p := uint64(0); p < a.Size; p += PageSize {
			record([]byte("EADD\x00\x00\x00\x00"), u(a.Offset+p), u(uint64(a.Flags)))
			for c := p; !a.Unmeasured && c < p+PageSize; c += 256 {
				record([]byte("EEXTEND\x00"), u(a.Offset+c))
				h.Write(content[c : c+256])
			}
		}
	}
	var m Measurement
	h.Sum(m[:0])
	return m
}

func TestMeasureEqualsTheManual(t *testing.T) {
	data := make([]byte, 37*PageSize-100)
	_, _ = rand.Read(data)
	l := Layout{Size: 1 << 30, SSAFrameSize: 4, Areas: []Area{
		{Name: "odd", Offset: 5 * PageSize, Size: 37 * PageSize, Flags: R | W | REG, Data: data},
		{Name: "short", Offset: 100 * PageSize, Size: 33 * PageSize, Flags: R | REG, Data: data[:1]},
		{Name: "tcs", Offset: 200 * PageSize, Size: PageSize, Flags: TCS},
		{Name: "heap", Offset: 300 * PageSize, Size: 2500 * PageSize, Flags: R | W | X | REG, Unmeasured: true},
	}}
	m, err := Measure(context.Background(), l)
	require.NoError(t, err)
	assert.Equal(t, naive(l), m)

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = Measure(ctx, l)
	assert.ErrorIs(t, err, context.Canceled)
}

func TestLayoutCheck(t *testing.T) {
	area := func(offset, size uint64, data int) Layout {
		return Layout{Size: 1 << 20, Areas: []Area{{Name: "a", Offset: offset, Size: size, Data: make([]byte, data)}}}
	}
	assert.NoError(t, area(0, 1<<20, 1<<20).Check())
	for want, l := range map[string]Layout{
		"not a power of two": {Size: 3 << 20},
		"not page aligned":   area(1, PageSize, 0),
		"outside":            area(1<<20-PageSize, 2*PageSize, 0),
		"outside of the":     area(^uint64(0)&^4095, PageSize, 0),
		"has room for":       area(0, PageSize, PageSize+1),
	} {
		assert.ErrorContains(t, l.Check(), want)
	}
}

func signed(t testing.TB, k *Key) *SigStruct {
	t.Helper()
	s := &SigStruct{
		Date: Date{2026, 2, 28}, MiscMask: MiscMaskAll, Attributes: Attributes{FlagMode64, XFRMLegacy},
		AttributesMask: Attributes{FlagsMaskAll, ^uint64(0)}, MREnclave: Measurement{1, 2, 3}, ISVProdID: 7, ISVSVN: 9,
	}
	sig, err := k.Sign(context.Background(), s.ToBeSigned())
	require.NoError(t, err)
	require.NoError(t, s.Attach(&k.private.PublicKey, sig))
	return s
}

// Every single byte of a SIGSTRUCT matters.
func TestEveryByteOfASigStructIsChecked(t *testing.T) {
	b := signed(t, testKey(t)).Bytes()
	s, err := ParseSigStruct(b)
	require.NoError(t, err)
	assert.Equal(t, Date{2026, 2, 28}, s.Date)
	assert.Equal(t, uint16(9), s.ISVSVN)
	for i := range b {
		c := append([]byte(nil), b...)
		c[i] ^= 1
		_, err := ParseSigStruct(c)
		var check *CheckError
		require.ErrorAs(t, err, &check, "byte %#x", i)
	}
	_, err = ParseSigStruct(b[:1807])
	assert.ErrorContains(t, err, "size is 1807")
}

func TestAttachRefuses(t *testing.T) {
	k, other := testKey(t), mustGenerate(t)
	s := signed(t, k)
	sig, err := k.Sign(context.Background(), s.ToBeSigned())
	require.NoError(t, err)
	assert.ErrorContains(t, s.Attach(&other.private.PublicKey, sig), "does not belong")
	assert.ErrorContains(t, s.Attach(&k.private.PublicKey, sig[:383]), "does not belong")
	s.ISVSVN++
	assert.ErrorContains(t, s.Attach(&k.private.PublicKey, sig), "does not belong")
}

func TestCheckEnclave(t *testing.T) {
	s := signed(t, testKey(t))
	a := Attributes{FlagMode64, XFRMLegacy}
	assert.NoError(t, s.CheckEnclave(s.MREnclave, a, 0))
	assert.ErrorContains(t, s.CheckEnclave(Measurement{}, a, 0), "MRENCLAVE")
	assert.ErrorContains(t, s.CheckEnclave(s.MREnclave, Attributes{FlagMode64 | FlagDebug, XFRMLegacy}, 0), "flags")
	assert.ErrorContains(t, s.CheckEnclave(s.MREnclave, Attributes{FlagMode64, 7}, 0), "XFRM")
	assert.ErrorContains(t, s.CheckEnclave(s.MREnclave, a, 1), "MISCSELECT")
}

func mustGenerate(t testing.TB) *Key {
	t.Helper()
	k, err := GenerateKey(rand.Reader)
	require.NoError(t, err)
	return k
}

func TestGeneratedKeyRoundTrip(t *testing.T) {
	k := mustGenerate(t)
	text, err := k.PEM(nil)
	require.NoError(t, err)
	back, err := ParseKey(text, nil)
	require.NoError(t, err)
	assert.True(t, k.private.Equal(back.private))
	_, err = ParseSigStruct(signed(t, back).Bytes())
	assert.NoError(t, err)
}

// A key that is closed is gone, as far as it can be reached.
func TestClose(t *testing.T) {
	k := mustGenerate(t)
	p := k.private
	public, err := k.Public(context.Background())
	require.NoError(t, err)
	require.NoError(t, k.Close())
	for _, n := range append(p.Primes, p.D, p.Precomputed.Dp, p.Precomputed.Dq, p.Precomputed.Qinv) {
		for _, word := range n.Bits() {
			assert.Zero(t, word)
		}
	}
	after, err := k.Public(context.Background())
	require.NoError(t, err)
	assert.Equal(t, public, after, "the public half stays")
	_, err = k.Sign(context.Background(), []byte("x"))
	assert.Error(t, err)
}

func TestParseKeySaysWhatIsWrong(t *testing.T) {
	pkcs8 := func(k any) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		require.NoError(t, err)
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	usual, err := rsa.GenerateKey(rand.Reader, 3072)
	require.NoError(t, err)
	small, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	block := func(kind string) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: []byte("x")})
	}
	for want, text := range map[string][]byte{
		"public exponent 65537: SGX demands 3": pkcs8(usual),
		"RSA-2048: SGX demands RSA-3072":       pkcs8(small),
		"*ecdsa.PrivateKey: SGX demands":       pkcs8(curve),
		"elliptic-curve key":                   block("EC PRIVATE KEY"),
		"is encrypted":                         block("ENCRYPTED PRIVATE KEY"),
		"is a public key":                      block("PUBLIC KEY"),
		"not a valid PKCS#1":                   block("RSA PRIVATE KEY"),
		"not a valid PKCS#8":                   block("PRIVATE KEY"),
		"no PEM block":                         []byte("hello"),
		`has "\n" where its lines must end`:    []byte(strings.ReplaceAll(string(block("PRIVATE KEY")), "\n", `\n`)),
	} {
		_, err := ParseKey(text, nil)
		assert.ErrorContains(t, err, want)
	}
}

func TestDates(t *testing.T) {
	d, err := ParseDate("0000-00-00")
	require.NoError(t, err)
	assert.Equal(t, Date{}, d)
	for _, bad := range []string{"", "2026-13-01", "2026-02-30", "26-1-1", "yesterday"} {
		_, err := ParseDate(bad)
		assert.Error(t, err, bad)
	}
}

func TestMeasurementText(t *testing.T) {
	m := Measurement{0xab}
	b, err := json.Marshal(m)
	require.NoError(t, err)
	var back Measurement
	require.NoError(t, json.Unmarshal(b, &back))
	assert.Equal(t, m, back)
	assert.Error(t, back.UnmarshalText([]byte("ab")))
}

func BenchmarkMeasure(b *testing.B) {
	l := Layout{
		Size: 4 << 30, SSAFrameSize: 4,
		Areas: []Area{{Name: "heap", Size: 4 << 30, Flags: R | W | X | REG, Unmeasured: true}},
	}
	b.SetBytes(4 << 30 / PageSize * recordSize)
	for b.Loop() {
		if _, err := Measure(context.Background(), l); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSHA256(b *testing.B) {
	data := make([]byte, 4<<30/PageSize*recordSize)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		sha256.Sum256(data)
	}
}
