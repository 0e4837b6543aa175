package release

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestSlots(t *testing.T) {
	for _, good := range []string{
		"env:A", "env:_x9", "file:/run/secrets/token", "file:/srv/a b", "key:app", "key:App_1-x", "tls:/run/tls",
		"tls:/tls",
	} {
		s, err := ParseSlot(good)
		require.NoError(t, err, good)
		assert.Equal(t, good, s.String())
	}
	for _, bad := range []string{
		"", "A", "env:", "env:A=B", "env:9", "env:A B", "env:ä", "file:", "file:token", "file:/token", "file:/",
		"file:/run/",
		"file:/run/../etc/x", "file:/run//x", "file:/etc/passwd", "file:/usr/lib/x", "file:/dev/attestation/keys/x",
		"file:/cconvert/app/x", "file:/proc/self/mem", "file:/run/a\nb", "file:/lib64/x", "tls:/etc/tls", "tls:/",
		"tls:",
		"key:", "key:../x", "key:_sgx_mrenclave", "key:a/b", "exec:sh", "ENV:A",
		"file:/" + strings.Repeat("a/", 600) + "b",
	} {
		_, err := ParseSlot(bad)
		assert.ErrorIs(t, err, ErrSlot, bad)
	}
	list := func(texts ...string) (out []Slot) {
		for _, text := range texts {
			kind, name, _ := strings.Cut(text, ":")
			out = append(out, Slot{kind, name})
		}
		return out
	}
	require.NoError(t, CheckSlots(list("env:A", "file:/run/s/a", "file:/run/s/b", "tls:/run/tls", "key:A")))
	for _, bad := range [][]Slot{
		list("env:A", "env:A"), list("file:/run/s/a", "file:/run/s/a/b"), list("tls:/run/s", "file:/run/s/tls.key"),
		list("tls:/run/s/x", "file:/run/s/x"), list("file:/etc/x"), make([]Slot, MaxSlots+1),
	} {
		assert.ErrorIs(t, CheckSlots(bad), ErrSlot)
	}
}

// A server fills what was asked for, and nothing else, and not otherwise.
func TestAnswers(t *testing.T) {
	want := []Slot{{KindEnv, "A"}, {KindTLS, "/run/tls"}, {KindKey, "k"}}
	good := map[string]Secret{
		"env:A": {Value: []byte("x")}, "tls:/run/tls": {Certificate: "PEM"}, "key:k": {Value: make([]byte, keySize)},
	}
	answer := func(version int, more map[string]Secret, less string) []byte {
		a := Answer{Version: version, Secrets: map[string]Secret{}}
		for k, v := range good {
			a.Secrets[k] = v
		}
		for k, v := range more {
			a.Secrets[k] = v
		}
		delete(a.Secrets, less)
		b, err := json.Marshal(a)
		require.NoError(t, err)
		return b
	}
	got, err := ParseAnswer(answer(Version, nil, ""), want)
	require.NoError(t, err)
	assert.Equal(t, "x", string(got[want[0]].Value))
	for what, b := range map[string][]byte{
		"another version":       answer(2, nil, ""),
		"one more":              answer(Version, map[string]Secret{"env:LD_PRELOAD": {Value: []byte("/x")}}, ""),
		"one less":              answer(Version, nil, "env:A"),
		"another":               answer(Version, map[string]Secret{"env:a": {Value: []byte("x")}}, "env:A"),
		"nothing":               answer(Version, map[string]Secret{"env:A": {}}, ""),
		"a short key":           answer(Version, map[string]Secret{"key:k": {Value: []byte("x")}}, ""),
		"a zero byte":           answer(Version, map[string]Secret{"env:A": {Value: []byte{0}}}, ""),
		"a certificate for one": answer(Version, map[string]Secret{"env:A": {Certificate: "x"}}, ""),
		"no certificate":        answer(Version, map[string]Secret{"tls:/run/tls": {Value: []byte("x")}}, ""),
		"a key with it": answer(Version, map[string]Secret{
			"tls:/run/tls": {Certificate: "x", Value: []byte("x")},
		}, ""),
		"a name twice": []byte(`{"version":1,"secrets":{"env:A":{"value":"eA=="},"env:A":{"value":"eA=="}}}`),
		"no JSON":      []byte("refused"),
		"too long":     []byte(strings.Repeat(" ", MaxAnswer+1)),
	} {
		_, err := ParseAnswer(b, want)
		assert.ErrorIs(t, err, ErrProtocol, what)
	}
}

func TestPins(t *testing.T) {
	p := Pin{1, 2}
	var again Pin
	require.NoError(t, again.UnmarshalText([]byte(p.String())))
	assert.Equal(t, p, again)
	for _, bad := range []string{"", "sha256/", "sha256/AAAA", strings.TrimPrefix(p.String(), "sha256/"), "sha1/AAAA"} {
		assert.ErrorIs(t, again.UnmarshalText([]byte(bad)), ErrAddress, bad)
	}
}

func FuzzMessages(f *testing.F) {
	f.Add([]byte(`{"version":1,"want":["env:A","tls:/run/tls"]}`))
	f.Add([]byte(`{"version":1,"secrets":{"env:A":{"value":"eA=="}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRequest(b)
		if err == nil {
			if again := CheckSlots(r.Want); again != nil {
				t.Fatal(again)
			}
		} else if !errors.Is(err, ErrProtocol) {
			t.Fatal(err)
		}
		if got, err := ParseAnswer(b, []Slot{{KindEnv, "A"}}); err == nil && len(got) != 1 {
			t.Fatal(got)
		}
	})
}
